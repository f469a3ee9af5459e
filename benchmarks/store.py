"""Reading a memory back, against encoding it again.

    python benchmarks/store.py [--only reload codecs bytes] [--runs 20] [--tokens 512 2048 8192]

``reload``: Whisper tiny.en on 30 s of audio, and a random T5-small (shaped as google-t5/t5-small)
at 512, 2048 and 8192 tokens. Each run encodes, reads from the page cache through a store object
that has never seen the entry (so that its digest is verified), and reads after the file's pages
were dropped; the three are interleaved, and medians and ratios are reported. ``codecs``: what each
loses of states, and of keys and values, of real weights. ``bytes``: what memories of real shapes
take at rest and in use, and what transformers holds of them for 5 beams (``shapes.py``).

Writes a JSON record and a Markdown page to benchmarks/results/MACHINE-DATE/; parts that are not run
stay as they were there.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from shapes import MEBI, table

import xattn
from xattn.bench.machine import record, results
from xattn.memory import Memory
from xattn.store import CODECS, MemoryStore
from xattn.store.codecs import KV_BLOCK, encode, error_of
from xattn.store.payload import as_kept

ROOT = Path(__file__).parents[1]
RECORDING = ROOT / "examples" / "assets" / "recording.wav"
RESULTS = results(Path(__file__).parent / "results")
PACKAGES = ("torch", "transformers", "safetensors", "blake3")
TITLES = {
    "reload": "Reading back against encoding again, medians",
    "codecs": "Codecs, on real weights: states of an encoder",
    "kv codecs": "Codecs, on real weights: keys and values of SmolLM2-135M",
    "bytes": "Bytes of real shapes, MiB",
}
NOTES = {
    "kv codecs": "Texts of 100 to 300 tokens, a question about each, 24 tokens, greedy. The error "
    "of a layer is relative to that layer's own keys or values.",
    "bytes": "At rest: payloads as a store writes them, spans included. In use: one memory in "
    "bfloat16, whatever the beams. Transformers: its own models on the meta device, after one step "
    "of the decoder; its states are those that `generate` keeps in every row (none for the last "
    "two). xattn does not run Llama-Vision yet: its decoder is built from a spec by hand.",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parts = ["reload", "codecs", "bytes"]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--texts", type=int, default=20, help="prompts of the codecs of K/V")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    measured: dict[str, Any] = {}
    if "reload" in arguments.only:
        measured["reload"] = list(reloads(arguments.runs, arguments.tokens))
    if "codecs" in arguments.only:
        measured["codecs"] = codecs()
        measured["kv codecs"] = kv_codecs(arguments.texts)
    if "bytes" in arguments.only:
        measured["bytes"] = table()
    found = merged(measured, record(arguments.threads, packages=PACKAGES))
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "store.json").write_text(json.dumps(found, indent=2) + "\n")
    (RESULTS / "store.md").write_text(page(found))
    print(page(found))


def merged(measured: dict[str, Any], machine: dict[str, str]) -> dict[str, Any]:
    """Today's figures with those just measured in the place of the old ones."""
    path = RESULTS / "store.json"
    before: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    of_run = before.pop("machine", machine)
    runs = {part: of_run for part in TITLES if part in before} | before.get("runs", {})
    return {**before, **measured, "runs": runs | dict.fromkeys(measured, machine)}


# Reload against re-encode


def reloads(runs: int, lengths: list[int]) -> Any:
    whisper = xattn.load("whisper-tiny.en")
    yield reload("Whisper tiny.en, 30 s", whisper, str(RECORDING), runs)
    with tempfile.TemporaryDirectory() as directory:
        t5 = t5_small(Path(directory))
        for tokens in lengths:
            source = torch.randint(3, 32000, (tokens,), generator=torch.Generator().manual_seed(1))
            yield reload(f"T5-small, {tokens} tokens", t5, source.tolist(), runs)


def t5_small(directory: Path) -> xattn.Model:
    """The shape of google-t5/t5-small, with random weights."""
    import transformers

    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=32128, decoder_start_token_id=0)
    transformers.T5ForConditionalGeneration(config).save_pretrained(directory)
    return xattn.load(directory)


def reload(name: str, model: xattn.Model, source: Any, runs: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {"encode": [], "page cache": [], "dropped": []}
    with tempfile.TemporaryDirectory(dir=ROOT) as directory:
        store = MemoryStore(directory)
        memory = store.get_or_encode(model, source)
        [path] = Path(directory).rglob("tenants/*/??/*.safetensors")
        prepared = model.prepare(source)
        for _ in range(runs):
            seconds["encode"].append(timed(lambda: model.encode_prepared([prepared])))
            seconds["page cache"].append(timed(reader(directory, memory)))
            drop(path)
            seconds["dropped"].append(timed(reader(directory, memory)))
        size = memory.size_bytes
    median = {key: statistics.median(values) for key, values in seconds.items()}
    print(name, median, flush=True)
    return {
        "source": name,
        "mebibytes": round(size / MEBI, 2),
        "encode_ms": round(1e3 * median["encode"], 2),
        "page_cache_ms": round(1e3 * median["page cache"], 3),
        "dropped_ms": round(1e3 * median["dropped"], 3),
        "times_faster": round(median["encode"] / median["page cache"], 1),
        "times_faster_dropped": round(median["encode"] / median["dropped"], 1),
        "gigabytes_per_second": round(size / median["page cache"] / 1e9, 2),
    }


def reader(directory: str, memory: Memory) -> Callable[[], None]:
    """Read the memory, all of it, through a store that does not know it yet."""
    store = MemoryStore(directory, ram_bytes=0)

    def read() -> None:
        found = store.get(memory.key)
        assert found is not None
        found.states_SD.sum()

    return read


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def drop(path: Path) -> None:
    """Have the system forget the file's pages."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


# Codecs


def codecs() -> list[dict[str, Any]]:
    """Size, error and agreement of tokens on real weights: Whisper on speech, g2p on words."""
    whisper, g2p = xattn.load("whisper-tiny.en"), xattn.load("g2p-en")
    speech = [whisper.encode(samples) for samples in recordings()]
    words = g2p.encode_batch(vocabulary())
    rows = []
    for codec in CODECS:
        row: dict[str, Any] = {"codec": codec}
        for name, model, memories in (("whisper", whisper, speech), ("g2p", g2p, words)):
            pairs = [(memory, as_kept(memory, codec)) for memory in memories]
            errors = [error_of(m.states_SD, lossy.states_SD) for m, lossy in pairs]
            row[f"{name}, bytes of float32"] = share(memories, codec)
            row[f"{name}, relative L2"] = round(statistics.mean(e.relative_l2 for e in errors), 5)
            row[f"{name}, largest"] = round(max(e.largest for e in errors), 4)
            same, total = agreement(model, pairs)
            row[f"{name}, same tokens"] = f"{same} of {total}"
        rows.append(row)
        print(row, flush=True)
    return rows


def recordings() -> list[Any]:
    from xattn.inputs.audio import read_audio

    sounds = sorted(Path("/usr/share/asterisk/sounds/en_US_f_Allison").glob("*.wav"))
    heard = [read_audio(file) for file in sounds if file.stat().st_size > 60_000] if sounds else []
    fitting = [audio.samples_T for audio in heard if audio.seconds < 30][:20]
    return fitting or [read_audio(RECORDING).samples_T]


def vocabulary() -> list[str]:
    text = " ".join(path.read_text() for path in sorted((ROOT / "docs").rglob("*.md")))
    return sorted({word.lower() for word in text.split() if word.isalpha() and word.isascii()})[
        :300
    ]


def agreement(model: xattn.Model, pairs: list[tuple[Memory, Memory]]) -> tuple[int, int]:
    plain = model.generate_batch([memory for memory, _ in pairs])
    lossy = [model.generate(memory) for _, memory in pairs]
    return sum(a.tokens == b.tokens for a, b in zip(plain, lossy, strict=True)), len(pairs)


def size(tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def share(memories: list[Memory], codec: Any) -> float:
    """What the states take in a codec, of what they take as they are."""
    written = [encode(m.states_SD, codec, KV_BLOCK if m.holds_kv else None) for m in memories]
    return round(sum(map(size, written)) / sum(m.size_bytes for m in memories), 3)


# Codecs of keys and values

QUESTION = "\n\nQuestion: What does this text say, in one sentence?\nAnswer:"


def kv_codecs(count: int) -> list[dict[str, Any]]:
    """Size, error and agreement of answers on the keys and values of a decoder-only model."""
    model = xattn.load("smollm2-135m-instruct")
    memories = [model.encode(text) for text in texts(model, count)]
    plain = [answer(model, memory) for memory in memories]
    rows = []
    for codec in CODECS:
        pairs = [(memory, as_kept(memory, codec)) for memory in memories]
        errors = [error_of(m.states_SD, lossy.states_SD) for m, lossy in pairs]
        keys, values = worst_layers(model, pairs)
        lossy = [answer(model, memory) for _, memory in pairs]
        same = sum(a == b for a, b in zip(plain, lossy, strict=True))
        agreed = sum(map(common, plain, lossy)) / sum(map(len, plain))
        row = {
            "codec": codec,
            "bytes of float32": share(memories, codec),
            "relative L2": round(statistics.mean(e.relative_l2 for e in errors), 5),
            "worst layer, keys": round(keys, 5),
            "worst layer, values": round(values, 5),
            "same answers": f"{same} of {len(pairs)}",
            "tokens before the first difference": round(agreed, 3),
        }
        rows.append(row)
        print(row, flush=True)
    return rows


def texts(model: xattn.Model, count: int) -> list[str]:
    """Paragraphs of the documentation, put together until they have 100 to 300 tokens."""
    found, held = [], ""
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for paragraph in path.read_text().split("\n\n"):
            longer = f"{held}\n\n{paragraph}".strip()
            tokens = len(model.tokenizer.encode(longer).ids)
            if 100 <= tokens <= 300:
                found.append(longer)
            held = longer if tokens < 100 else ""
    assert len(found) >= count, f"the documentation has {len(found)} texts of that length"
    return found[:: len(found) // count][:count]


def answer(model: xattn.Model, memory: Memory) -> tuple[int, ...]:
    """Greedy tokens of an answer."""
    settings = {"max_new_tokens": 24, "do_sample": False, "num_beams": 1}
    return model.generate(memory, prompt=QUESTION, **settings).tokens


def common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Tokens before the first that differs."""
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))


def worst_layers(model: xattn.Model, pairs: list[tuple[Memory, Memory]]) -> tuple[float, float]:
    """Relative L2 of the layer that lost most of its keys, and of its values, over all texts."""
    shape = (-1, model.spec.decoder.layers, 2, pairs[0][0].width // model.spec.decoder.layers // 2)
    want_SL2F, found_SL2F = (
        torch.cat([memory.states_SD for memory in memories]).view(shape)
        for memories in zip(*pairs, strict=True)
    )
    lost_L2 = (found_SL2F - want_SL2F).norm(dim=(0, 3)) / want_SL2F.norm(dim=(0, 3))
    keys, values = lost_L2.amax(dim=0).tolist()
    return keys, values


# The page


def page(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = ["# The memory store"]
    for part, title in TITLES.items():
        if part not in found:
            continue
        rows = found[part]
        names = list(dict.fromkeys(name for row in rows for name in row))
        run = ", ".join(f"{name} {value}" for name, value in found["runs"][part].items())
        lines += ["", f"## {title}", "", f"{NOTES.get(part, '')} Measured on: {run}.".strip()]
        lines += ["", f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
        lines += [f"| {' | '.join(str(row.get(n, '-')) for n in names)} |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
