"""The tour: transcribe, use a memory again, ask a language model, ask the guides, count bytes.

    python examples/demo.py [RECORDING]

Needs the weights packages of the ``demo`` extra, and no network.
"""

import argparse
import sys
import time
from pathlib import Path

import xattn
from xattn.inputs.audio import read_audio
from xattn.plot import draw_word_attention, word_attention

HERE = Path(__file__).parent
QUESTIONS = (
    "What is the capital of France? Answer in one short sentence.",
    "Name the three primary colours.",
)
GUIDE_QUESTIONS = ("What does `xattn doctor` say?", "What does ticket.cancel() do?")
WAYS = (
    ("greedy", {}),
    ("5 beams", {"num_beams": 5}),
    ("5 beams, absorbed", {"num_beams": 5, "form": "absorbed"}),
    ("sampled, temperature 0.4", {"do_sample": True, "temperature": 0.4, "seed": 1}),
    ("begun for it", {"prompt": " Several people"}),
)


def main() -> None:
    """Run the five parts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recording", nargs="?", default=HERE / "assets" / "recording.wav")
    parser.add_argument("--picture", default="out/attention.png", type=Path)
    parser.add_argument("--library", default="out/guides.xattn", type=Path)
    parser.add_argument("--no-cache", action="store_true", help="encode it again")
    arguments = parser.parse_args()
    whisper = xattn.load("whisper-tiny.en", offline=True)
    if not arguments.no_cache:
        whisper.store = xattn.MemoryStore()
    memory = transcribe(whisper, arguments.recording, arguments.picture)
    use_again(whisper, memory)
    model = answer_questions()
    ask_the_guides(model, arguments.library)
    account(whisper, memory)


def transcribe(model: xattn.Model, recording: str | Path, picture: Path) -> xattn.Memory:
    """Part 1: text, word times, and where the decoder looked."""
    heading(1, f"Transcribe {recording}")
    memory = remember(model, recording)
    answer = model.generate(memory, word_timestamps=True)
    print(answer.text.strip())
    print()
    for word in answer.words:
        print(f"  {word.start:6.2f} – {word.end:5.2f} s  {word.word.strip()}")
    attention = word_attention(model, memory, answer)
    samples = read_audio(recording).samples_T
    path = draw_word_attention(attention, answer, picture, samples_T=samples)
    print(f"\nWords against time: {path}")
    return memory


def remember(model: xattn.Model, recording: str | Path) -> xattn.Memory:
    """The recording's memory: from the store where it was encoded before, else by one pass."""
    if model.store is None:
        return model.encode(recording)
    memory = model.store.get_or_encode(model, recording)
    if model.store.counters.hits:
        print(f"Encoded by an earlier run, and read from {model.store.root}.\n")
    return memory


def use_again(model: xattn.Model, memory: xattn.Memory) -> None:
    """Part 2: five ways to decode, on the one memory."""
    heading(2, "Decode the same memory in other ways")
    for name, settings in WAYS:
        begun = time.perf_counter()
        answer = model.generate(memory, **settings)
        took = time.perf_counter() - begun
        text = f"{settings.get('prompt', '')}{answer.text}".strip()
        print(f"  {name:<25} {took:5.2f} s  {text}")
    passes = model.counters.encoder_passes
    print(f"\nEncoder passes: {passes}, for {len(WAYS) + 1} generations.")
    if passes and model.store is not None:
        print("The next run reads the memory from the store, and makes none.")


def answer_questions() -> xattn.Model:
    """Part 3: a decoder-only model on plain prompts, streamed."""
    heading(3, "Ask SmolLM2")
    begun = time.perf_counter()
    model = xattn.load("smollm2-135m-instruct", offline=True)
    print(f"Loaded {model!r} in {time.perf_counter() - begun:.1f} s")
    for question in QUESTIONS:
        print(f"\n> {question}")
        messages = [{"role": "user", "content": question}]
        for piece in model.stream(prompt=messages, max_new_tokens=60):
            print(piece, end="", flush=True)
        print()
    return model


def ask_the_guides(model: xattn.Model, directory: Path) -> None:
    """Part 4: index the project's own documents, and ask them."""
    heading(4, "Ask the guides, with footnotes")
    model.store = xattn.MemoryStore()
    with xattn.Library(directory, model=model, offline=True) as library:
        begun = time.perf_counter()
        # Without the model: of all these passages only those that are asked about are read.
        with xattn.Library(directory, offline=True) as bare:
            report = bare.add([HERE.parent / "README.md", HERE.parent / "docs"])
        print(f"{len(library)} passages, {report.passages_added} of them new, "
              f"in {time.perf_counter() - begun:.1f} s")  # fmt: skip
        for question in GUIDE_QUESTIONS:
            print(f"\n> {question}")
            answer = library.ask(question, k=1)
            print(answer)
            print(f"({answer.encoder_passes} encoder passes)")


def account(model: xattn.Model, memory: xattn.Memory) -> None:
    """Part 5: what the memory costs, and what it would cost elsewhere."""
    heading(5, "Bytes")
    decoder, beams = model.spec.decoder, 5
    per_layer = decoder.cross_bytes(len(memory))
    shared = decoder.cross_bytes(len(memory), form="absorbed")
    elsewhere = beams * per_layer
    print(
        f"memory {mebibytes(memory.size_bytes)} | "
        f"keys and values of {decoder.placement.count} layers "
        f"{mebibytes(per_layer)}, absorbed {mebibytes(shared)}, for 1 beam or {beams} | "
        f"transformers with {beams} beams {mebibytes(elsewhere)} of them "
        f"({elsewhere / per_layer:.1f} times as much)"
    )


def heading(number: int, title: str) -> None:
    """A line that parts the parts."""
    print(f"\n── {number}. {title} " + "─" * max(0, 70 - len(title)) + "\n")


def mebibytes(size: float) -> str:
    """Bytes for people."""
    return f"{size / 2**20:.1f} MiB"


if __name__ == "__main__":
    try:
        main()
    except xattn.XattnError as error:
        sys.exit(f"demo: {error}")
