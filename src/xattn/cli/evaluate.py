"""``xattn eval qa``: readers side by side on questions whose answers are known."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from xattn.cli.ask import reader_of
from xattn.cli.console import Progress, print_json, print_line, print_table
from xattn.cli.loading import load_model
from xattn.cli.options import ADAPTED, Json, ModelName, takes
from xattn.errors import UsageError
from xattn.readable import readable_bytes

if TYPE_CHECKING:
    from xattn.library.calibration import Calibration
    from xattn.library.evaluation import Scores
    from xattn.library.library import Library
    from xattn.library.passage import Passage
    from xattn.library.squad import Question, Questions

RECALLS = (1, 3, 5, 8)

Data = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Questions in SQuAD's format, .json or .json.gz."),
]
Readers = Annotated[
    list[str] | None,
    typer.Option("--reader", help="parallel, plain or fusion; repeatable. Unset: all that fit."),
]
Passages = Annotated[
    list[int] | None, typer.Option("-k", min=1, help="Passages read; repeatable. Unset: 3.")
]
Most = Annotated[int | None, typer.Option("--questions", min=1, help="Ask that many at most.")]
Split = Annotated[
    Literal["all", "even", "odd"],
    typer.Option(help="Every question, or every other: tune on even ones, report on odd ones."),
]
Calibrate = Annotated[
    bool,
    typer.Option(
        "--calibrate/--no-calibrate",
        help="First find, on the other half of the questions, the heads that tell what an answer "
        "rests on, and how much they must read of it; print them as TOML.",
    ),
]
Positions = Annotated[
    Literal["sequence", "shared"], typer.Option(help="Parallel: where passages stand.")
]
Temperature = Annotated[float, typer.Option("--passage-temperature", help="Parallel.")]
Scale = Annotated[float, typer.Option("--passage-scale", help="Parallel.")]
Recompute = Annotated[float, typer.Option(help="Parallel: share that is read again.")]


@takes(loading=ADAPTED)
def qa(
    *,
    data: Data = None,
    model: ModelName = "smollm2-135m-instruct",
    reader: Readers = None,
    k: Passages = None,
    questions: Most = None,
    split: Split = "odd",
    calibrate: Calibrate = False,
    positions: Positions = "sequence",
    passage_temperature: Temperature = 0.9,
    passage_scale: Scale = 1.0,
    recompute: Recompute = 0.0,
    json: Json = False,
    loading: dict[str, Any],
) -> None:
    """Ask questions of a library made of their paragraphs, and score what each reader answers.

    Recall is retrieval's; contains-answer, exact match and F1 are SQuAD's; citation precision is
    how often the first citation of a right answer has the answer in it; support AUC how often a
    right answer is better supported than a wrong one. Times are to the first token, with the
    passages' memories there (warm) and with nothing encoded (cold).
    """
    from xattn.library.calibration import toml_of
    from xattn.library.evaluation import recall_of
    from xattn.library.squad import read_questions
    from xattn.models.parallel import Parallel

    if data is None:
        raise UsageError("no questions were given; name a file in SQuAD's format with --data.")
    found = read_questions(data)
    chosen, others = _split(found, split, questions)
    if calibrate and not others:
        raise UsageError("--calibrate needs --split even or odd: it looks at the other half.")
    how = Parallel(
        positions=positions,
        temperature=passage_temperature,
        scale=passage_scale,
        recompute=recompute,
    )
    loaded = load_model(model, **loading)
    goes_on = loaded.spec.decoder.cross_attention is None
    names = reader or (["parallel", "plain"] if goes_on else ["fusion"])
    chosen_readers = [reader_of(loaded, name, how) for name in names]
    with ExitStack() as stack:
        library = stack.enter_context(_library_of(found, stack))
        search = _search_in(library)
        texts = [paragraph.text for paragraph in found.paragraphs]
        recall = recall_of(search, chosen, texts, RECALLS).recall
        rows, calibrations = [], {}
        for one in chosen_readers:
            if calibrate:
                calibrations[one.name] = _calibrated(one, search, others, max(k or [3]))
            for count in k or [3]:
                rows.append(_scores(one, search, chosen, count, calibrations.get(one.name)))
    if json:
        document = {"recall": recall, "readers": [row.to_dict() for row in rows]}
        told = {name: _told(one) for name, one in calibrations.items()}
        print_json(document | ({"calibration": told} if told else {}))
        return
    print_line(f"{len(chosen)} questions, {len(texts)} paragraphs")
    print_line(", ".join(f"recall@{n} {value:.3f}" for n, value in recall.items()))
    print_table(HEADER, [_row(row) for row in rows])
    if calibrations:
        print_line("\n" + toml_of(loaded.network.encoder_digest, calibrations).rstrip())


HEADER = (
    *("reader", "k", "contains", "exact", "F1", "citations", "cited", "support AUC"),
    *("first token, warm", "cold", "answer", "encoder passes", "bytes"),
)


def _row(scores: "Scores") -> tuple[str, ...]:
    return (
        scores.reader,
        str(scores.k),
        f"{scores.contains_answer:.3f}",
        f"{scores.exact_match:.3f}",
        f"{scores.f1:.3f}",
        f"{scores.citation_precision:.3f}",
        f"{scores.cited:.3f}",
        "none" if scores.support_auc is None else f"{scores.support_auc:.3f}",
        f"{scores.warm_first_token_seconds:.3f} s",
        f"{scores.cold_first_token_seconds:.3f} s",
        f"{scores.answer_seconds:.3f} s",
        str(scores.encoder_passes),
        readable_bytes(scores.memory_bytes),
    )


def _split(
    found: "Questions", split: str, most: int | None
) -> "tuple[Sequence[Question], Sequence[Question]]":
    """The questions asked, and those of the other half."""
    even, odd = found.questions[::2], found.questions[1::2]
    chosen, others = {"all": (found.questions, ()), "even": (even, odd), "odd": (odd, even)}[split]
    return _spread(chosen, most), _spread(others, most)


def _spread(questions: "Sequence[Question]", most: int | None) -> "Sequence[Question]":
    """So many, evenly from all: neighbours are about the same paragraph."""
    if most is None or most >= len(questions):
        return questions
    return [questions[len(questions) * n // most] for n in range(most)]


def _library_of(found: "Questions", stack: ExitStack) -> "Library":
    """A library of the paragraphs, each one passage, for as long as the stack is open."""
    from xattn.library.library import Library

    directory = stack.enter_context(TemporaryDirectory(prefix="xattn-eval-"))
    library = Library(Path(directory) / "corpus.xattn", passage_tokens=LONGEST, overlap=0)
    library.add_texts({f"{one.title}/{n}": one.text for n, one in enumerate(found.paragraphs)})
    return library


LONGEST = 2048
"""Tokens of a paragraph at most: longer than any, so that each is one passage."""


def _search_in(library: "Library") -> "Callable[[str, int], Sequence[Passage]]":
    """Retrieval that looks for each question once, whichever readers then ask it."""
    kept: dict[str, list[Passage]] = {}
    most = max(*RECALLS, 8)

    def search(question: str, k: int) -> "Sequence[Passage]":
        if question not in kept or len(kept[question]) < k:
            kept[question] = [one.passage for one in library.search(question, max(k, most))]
        return kept[question][:k]

    return search


def _calibrated(reader: Any, search: Any, questions: "Sequence[Question]", k: int) -> "Calibration":
    from xattn.library.calibrating import calibrate

    with Progress(
        f"calibrate {reader.name}", unit="questions", results_on_stdout=False
    ) as progress:
        return calibrate(
            reader,
            search,
            questions,
            k=k,
            progress=lambda done: progress.update(done, len(questions)),
        )


def _scores(
    reader: Any,
    search: Any,
    questions: "Sequence[Question]",
    k: int,
    calibration: "Calibration | None",
) -> "Scores":
    """One reader's scores, with a store of its own that is as large as it must be."""
    from xattn.library.evaluation import evaluate
    from xattn.store import MemoryStore

    model = reader.model
    with TemporaryDirectory(prefix="xattn-eval-") as directory:
        stores: list[MemoryStore] = []

        def forget() -> None:
            for store in stores:
                store.close()
            stores[:] = [MemoryStore(Path(directory) / str(len(list(Path(directory).iterdir()))),
                                     ram_bytes=8 << 30)]  # fmt: skip
            model.store = stores[0]

        forget()
        with Progress(
            f"{reader.name}, k={k}", unit="questions", results_on_stdout=False
        ) as progress:
            scores = evaluate(
                reader,
                search,
                questions,
                k=k,
                forget=forget,
                calibration=calibration,
                progress=lambda done: progress.update(done, len(questions)),
            )
        stores[0].close()
        model.store = None
    return replace(scores, k=k)


def _told(calibration: "Calibration") -> dict[str, Any]:
    heads = [list(pair) for pair in calibration.heads or ()]
    return {"heads": heads, "threshold": calibration.threshold}
