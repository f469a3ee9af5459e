"""Reading a memory back, against encoding it again.

    python benchmarks/store.py [--runs 20] [--tokens 512 2048 8192]

Whisper tiny.en on 30 s of audio, and a random T5-small (the shape of google-t5/t5-small) at 512,
2048 and 8192 tokens. Each run encodes, reads from the page cache through a store object that has
never seen the entry (so that its digest is verified), and reads after the file's pages were
dropped; the three are interleaved, and medians and ratios are reported. Then bytes: states in every
codec with the error of each, and per-layer keys and values, for real shapes.

Writes a JSON record and a Markdown page to benchmarks/results/MACHINE-DATE/.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from machine import RESULTS, record

import xattn
from xattn.memory import Memory
from xattn.store import CODECS, MemoryStore
from xattn.store.codecs import decode, encode, error_of

ROOT = Path(__file__).parents[1]
RECORDING = ROOT / "examples" / "assets" / "recording.wav"
PACKAGES = ("torch", "transformers", "safetensors", "blake3")
MEBI = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found: dict[str, Any] = {"machine": record(arguments.threads, PACKAGES)}
    found["reload"] = list(reloads(arguments.runs, arguments.tokens))
    found["codecs"] = codecs()
    found["bytes"] = shapes()
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "store.json").write_text(json.dumps(found, indent=2) + "\n")
    (RESULTS / "store.md").write_text(page(found))
    print(page(found))


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
            pairs = [(memory, through(memory, codec)) for memory in memories]
            errors = [error_of(m.states_SD, lossy.states_SD) for m, lossy in pairs]
            bytes_ = sum(size(encode(m.states_SD, codec)) for m in memories)
            row[f"{name}, bytes of float32"] = round(
                bytes_ / sum(m.size_bytes for m in memories), 3
            )
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


def through(memory: Memory, codec: Any) -> Memory:
    tensors = encode(memory.states_SD, codec)
    return replace(memory, states_SD=decode(tensors, codec, memory.width, torch.float32))


def agreement(model: xattn.Model, pairs: list[tuple[Memory, Memory]]) -> tuple[int, int]:
    plain = model.generate_batch([memory for memory, _ in pairs])
    lossy = [model.generate(memory) for _, memory in pairs]
    return sum(a.tokens == b.tokens for a, b in zip(plain, lossy, strict=True)), len(pairs)


def size(tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


# Bytes of real shapes

SHAPES = (
    # name, positions, memories, width, layers that cross-attend, key/value heads x head width
    ("whisper-large-v3, 30 s", 1500, 1, 1280, 32, 1280),
    ("flan-t5-xl, 100 passages of 250 tokens", 250, 100, 2048, 24, 2048),
    ("Llama-3.2-11B-Vision, a picture of 4 tiles", 6404, 1, 4096, 8, 1024),
)


def shapes() -> list[dict[str, Any]]:
    """Mebibytes of states in each codec, of keys and values, and what 5 beams hold of those."""
    rows = []
    for name, positions, count, width, layers, kv_width in SHAPES:
        states = positions * count * width
        kv = 2 * layers * positions * count * kv_width * 2
        row = {"shape": name, "K/V, 16 bits": mib(kv), "K/V in transformers, 5 beams": mib(5 * kv)}
        sample = torch.randn(64, width, generator=torch.Generator().manual_seed(1))
        for codec in CODECS:
            share = size(encode(sample, codec)) / (sample.numel() * 4)
            row[f"states, {codec}"] = mib(states * 4 * share)
        rows.append(row)
    # A decoder-only model caches its prompt: 30 layers of 3 heads of 64, in 16 bits.
    kv = 2 * 30 * 2048 * 3 * 64 * 2
    rows.append(
        {
            "shape": "SmolLM2-135M, a prompt of 2048 tokens",
            "K/V, 16 bits": mib(kv),
            "K/V in transformers, 5 beams": mib(5 * kv),
        }
    )
    return rows


def mib(size: float) -> float:
    return round(size / MEBI, 2)


def page(found: dict[str, Any]) -> str:
    lines = ["# The memory store", ""]
    lines += [f"- {name}: {value}" for name, value in found["machine"].items()]
    titles = {
        "reload": "Reading back against encoding again, medians",
        "codecs": "Codecs, on real weights",
        "bytes": "Bytes of real shapes, MiB",
    }
    for part, title in titles.items():
        rows = found[part]
        names = list(dict.fromkeys(name for row in rows for name in row))
        lines += ["", f"## {title}", "", f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
        lines += [f"| {' | '.join(str(row.get(n, '-')) for n in names)} |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
