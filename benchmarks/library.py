"""A corpus of thousands of passages: indexing, searching, editing, and kill -9.

    python benchmarks/library.py [--passages 20000] [--questions 200] [--asked 20] [--kills 20]

The corpus is generated and the same each time: files of 40 paragraphs of made-up words, of which
each file has some of its own, and each paragraph one that no other has. It is indexed with the
default embedder (a quarter of it first, so that the memory of both can be compared), searched,
asked by SmolLM2 (twice, so that passages were read before the second time), edited in one file, and
indexed again while it is killed at random times, until it is done.

Writes a JSON record and a Markdown page to benchmarks/results/MACHINE-DATE/.
"""

import argparse
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xattn.bench.machine import record, results
from xattn.memory import digest_of
from xattn.readable import readable_bytes

RESULTS = results(Path(__file__).parent / "results")
PACKAGES = ("torch", "sentence-transformers", "lancedb", "pyarrow")
PARAGRAPHS, SENTENCES, WORDS = 40, 4, 11
SYLLABLES = "ba ce di fo gu ha ki lo mu ne pa ri so tu ve wa".split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--passages", type=int, default=20_000)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--asked", type=int, default=20, help="questions that are answered")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--phase", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.phase:
        print(json.dumps(PHASES[arguments.phase[0]](*arguments.phase[1:])))
        return
    measured = measure(arguments)
    found = {"machine": record(arguments.threads, packages=PACKAGES), **measured}
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "library.json").write_text(json.dumps(found, indent=2) + "\n")
    (RESULTS / "library.md").write_text(page(found))
    print(page(found))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    threads, rng = str(arguments.threads), random.Random(7)
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        docs, library = place / "docs", place / "corpus.xattn"
        marks = write_corpus(docs, arguments.passages)
        part = place / "part"
        write_corpus(part, arguments.passages // 4)
        quarter = phase("index", str(part), str(place / "part.xattn"), threads)
        whole = phase("index", str(docs), str(library), threads)
        disk = sum(path.stat().st_size for path in library.rglob("*") if path.is_file())
        print(quarter, whole, flush=True)
        questions = place / "questions.json"
        questions.write_text(json.dumps(rng.sample(marks, min(len(marks), arguments.questions))))
        found = phase("search", str(questions), str(library), threads)
        questions.write_text(json.dumps(rng.sample(marks, min(len(marks), arguments.asked))))
        asked = phase("ask", str(questions), str(library), threads)
        again = phase("index", str(docs), str(library), threads)
        edited = docs / "file00003.txt"
        lines = edited.read_text().split("\n\n")
        lines[5] = lines[5].replace(". ", ", which is new. ", 1)
        edited.write_text("\n\n".join(["A line before all others.", *lines]))
        edit = phase("index", str(docs), str(library), threads)
        clean = phase("content", str(library))
        killed, moments = place / "killed.xattn", []
        for _ in range(arguments.kills):
            after = rng.uniform(0, 1.5 * whole["seconds"] / arguments.kills)
            moments.append(kill(str(docs), str(killed), threads, after))
        resumed = phase("index", str(docs), str(killed), threads)
        return {
            "passages": whole["passages"],
            "files": whole["added"],
            "index": whole,
            "index of a quarter": quarter,
            "disk_bytes": disk,
            "text_bytes": sum(path.stat().st_size for path in docs.iterdir()),
            "search": found,
            "ask": asked,
            "without a change": again,
            "one file edited": edit,
            "kills": len(moments),
            "seconds before each kill": moments,
            "resumed": resumed,
            "same as without kills": phase("content", str(killed)) == clean,
        }


# The corpus


def write_corpus(directory: Path, passages: int) -> list[str]:
    """Files of paragraphs, and a question for each paragraph: the word that it alone has."""
    directory.mkdir()
    rng, marks = random.Random(1), []
    common = [word(rng, 2) for _ in range(400)]
    for n in range(-(-passages // PARAGRAPHS)):
        own = [word(rng, 3) for _ in range(30)]
        paragraphs = []
        for m in range(PARAGRAPHS):
            mark = f"{word(rng, 3)}{n}{SYLLABLES[m % 16]}{m}"
            marks.append(mark)
            paragraphs.append(paragraph(rng, common, own, mark))
        (directory / f"file{n:05}.txt").write_text("\n\n".join(paragraphs) + "\n")
    return marks


def paragraph(rng: random.Random, common: list[str], own: list[str], mark: str) -> str:
    sentences = [rng.choices(common, k=WORDS - 3) + rng.choices(own, k=3) for _ in range(SENTENCES)]
    rng.choice(sentences).append(mark)
    for words in sentences:
        rng.shuffle(words)
    return " ".join(f"{' '.join(words).capitalize()}." for words in sentences)


def word(rng: random.Random, syllables: int) -> str:
    return "".join(rng.choices(SYLLABLES, k=syllables))


# What is measured, each in a process of its own


def phase(*what: str) -> Any:
    ran = subprocess.run(
        [sys.executable, __file__, "--phase", *what], stdout=subprocess.PIPE, check=True
    )
    return json.loads(ran.stdout)


def kill(docs: str, library: str, threads: str, after: float) -> float:
    """Kill a run so many seconds after it has begun to work."""
    command = [sys.executable, __file__, "--phase", "index", docs, library, threads]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert running.stderr is not None
    for line in running.stderr:
        if line.startswith(b"begun"):
            break
    time.sleep(after)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    return round(after, 2)


def index(docs: str, root: str, threads: str) -> dict[str, Any]:
    import torch

    from xattn.library.library import Library

    torch.set_num_threads(int(threads))
    with Library(root) as library:
        print("begun", file=sys.stderr, flush=True)
        report = library.add(docs)
        return {
            "passages": len(library),
            "added": report.added,
            "changed": report.changed,
            "unchanged": report.unchanged,
            "passages_added": report.passages_added,
            "passages_kept": report.passages_kept,
            "seconds": round(report.seconds, 2),
            "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        }


def search(questions: str, root: str, threads: str) -> dict[str, Any]:
    """Seconds of each search, and of its parts; and whether the one right passage is first."""
    import torch

    from xattn.library.library import Library

    torch.set_num_threads(int(threads))
    with Library(root) as library:
        marks = json.loads(Path(questions).read_text())
        for mark in marks[:5]:
            library.search(mark)
        whole, embed, right = [], [], 0
        for mark in marks:
            question = f"Where is {mark} spoken of?"
            seconds, found = timed(library.search, question)
            whole.append(seconds)
            right += any(mark in one.passage.text.lower() for one in found[:5])
            embed.append(timed(library.embedder.embed_question, question)[0])
        return {
            "questions": len(marks),
            "p50_ms": milliseconds(whole, 50),
            "p95_ms": milliseconds(whole, 95),
            "embedding_p50_ms": milliseconds(embed, 50),
            "recall_at_5": right / len(marks),
        }


def ask(questions: str, root: str, threads: str) -> dict[str, Any]:
    """Seconds of each answer from eight passages: read for the first time, and from the store."""
    import torch

    import xattn

    torch.set_num_threads(int(threads))
    marks = json.loads(Path(questions).read_text())
    model = xattn.load("smollm2-135m-instruct", offline=True)
    with (
        tempfile.TemporaryDirectory() as directory,
        xattn.MemoryStore(directory) as store,
        xattn.Library(root, model=model, store=store) as library,
    ):
        library.ask("Where is nothing spoken of?")
        rounds, passes = [], []
        for _ in range(2):
            before = model.counters.encoder_passes
            rounds.append([timed(library.ask, f"Where is {mark} spoken of?")[0] for mark in marks])
            passes.append(model.counters.encoder_passes - before)
    return {
        "questions": len(marks),
        **{
            f"{name}_{percent}_ms": milliseconds(seconds, percent)
            for name, seconds in zip(("first", "again"), rounds, strict=True)
            for percent in (50, 95)
        },
        "encoder_passes": passes,
    }


def content(root: str) -> list[Any]:
    """What a library holds, as a digest, and how many rows its database has."""
    from xattn.library.library import Library

    def lines() -> Iterator[bytes]:
        for passage in library.passages():
            yield f"{passage.source} {passage.start} {passage.end} {passage.id}".encode()

    with Library(root) as library:
        rows = library._opened.index.count()
        return [len(library), rows, digest_of(*sorted(lines()))]


PHASES: dict[str, Callable[..., Any]] = {
    "index": index,
    "search": search,
    "ask": ask,
    "content": content,
}


def timed(work: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work(*arguments)
    return time.perf_counter() - started, result


def milliseconds(seconds: list[float], percent: float) -> float:
    return round(1e3 * float(np.percentile(seconds, percent)), 2)


def page(found: dict[str, Any]) -> str:
    whole, quarter, edit = found["index"], found["index of a quarter"], found["one file edited"]
    rate, asked = whole["passages"] / whole["seconds"], found["ask"]
    rows = {
        f"index {whole['passages']} passages of {found['files']} files": f"{whole['seconds']} s, "
        f"{rate:.0f} a second",
        "text, and the library on disk": f"{readable_bytes(found['text_bytes'])}, "
        f"{readable_bytes(found['disk_bytes'])}",
        f"peak memory at {quarter['passages']} and {whole['passages']} passages": (
            f"{readable_bytes(quarter['peak_bytes'])}, {readable_bytes(whole['peak_bytes'])}"
        ),
        "search, p50 and p95": f"{found['search']['p50_ms']} ms, {found['search']['p95_ms']} ms "
        f"({found['search']['embedding_p50_ms']} ms of it embed the question)",
        "an answer from 8 passages, p50 and p95": f"{asked['first_50_ms'] / 1e3:.2f} s, "
        f"{asked['first_95_ms'] / 1e3:.2f} s; asked again {asked['again_50_ms'] / 1e3:.2f} s, "
        f"{asked['again_95_ms'] / 1e3:.2f} s, with {asked['encoder_passes'][1]} encoder passes",
        "the right passage among the first 5": f"{found['search']['recall_at_5']:.1%}",
        "index again, nothing changed": f"{found['without a change']['seconds']} s",
        "index again, one file edited": f"{edit['seconds']} s, {edit['changed']} file read, "
        f"{edit['passages_added']} passages embedded, {edit['passages_kept']} only moved",
        f"killed {found['kills']} times, then finished": "the same passages"
        if found["same as without kills"]
        else "OTHER PASSAGES",
    }
    head = ", ".join(f"{name} {value}" for name, value in found["machine"].items())
    lines = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"# A library of {whole['passages']} passages\n\n{head}\n\n| | |\n|---|---|\n{lines}\n"


if __name__ == "__main__":
    main()
