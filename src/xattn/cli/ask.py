"""``xattn ask``: questions answered from a library, with what the answers rest on."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from xattn.cli.console import print_json, print_line, print_note
from xattn.cli.loading import load_model
from xattn.cli.options import ADAPTED, GENERATION, STORE, Cache, Json, ModelName, takes
from xattn.cli.stores import use_store
from xattn.cli.where import Where, where_of
from xattn.errors import UsageError

if TYPE_CHECKING:
    from xattn.library.answer import Answer, Citation
    from xattn.library.readers import Reader
    from xattn.model import Model

READING = "Reading"

Questions = Annotated[
    list[str] | None, typer.Argument(metavar="QUESTION", help="What to answer; may be several.")
]
LibraryDirectory = Annotated[
    Path, typer.Option("--library", "-l", metavar="DIR", help="What 'xattn index' made.")
]
Database = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="How the library's server is reached, where that takes a password: postgresql://…",
    ),
]
EmbedderName = Annotated[
    str | None,
    typer.Option("--embedder", help="Where the library's embedder is now, if it was moved."),
]
Passages = Annotated[
    int, typer.Option("-k", min=1, rich_help_panel=READING, help="Passages that are read.")
]
ReaderName = Annotated[
    Literal["auto", "parallel", "plain", "fusion"],
    typer.Option(
        "--reader",
        rich_help_panel=READING,
        help="parallel: a language model attends to passages that were each read before; plain: it "
        "reads them anew as one prompt; fusion: an encoder-decoder attends to passages; auto: what "
        "suits the model.",
    ),
]
Positions = Annotated[
    Literal["sequence", "shared"],
    typer.Option(rich_help_panel=READING, help="Parallel: where passages are taken to stand."),
]
Temperature = Annotated[
    float,
    typer.Option(
        "--passage-temperature",
        rich_help_panel=READING,
        help="Parallel: divides the scores of several passages; below 1 sharpens.",
    ),
]
Scale = Annotated[
    float,
    typer.Option(
        "--passage-scale",
        rich_help_panel=READING,
        help="Parallel: multiplies their log-sum-exp.",
    ),
]
Recompute = Annotated[
    float,
    typer.Option(
        rich_help_panel=READING,
        help="Parallel: share of the passages, what the question reads most of, that is read again "
        "with all before it in sight.",
    ),
]
Reranker = Annotated[
    str | None,
    typer.Option(rich_help_panel=READING, help="A cross-encoder that looks at what was found."),
]
CalibrationFile = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="FILE",
        rich_help_panel=READING,
        help="What 'xattn eval qa --calibrate' printed for the model: the heads that tell what an "
        "answer rests on, and the support from which on it does; unset: as xattn knows them.",
    ),
]
Show = Annotated[
    bool, typer.Option("--show/--bare", help="Footnotes with what is quoted, or the text alone.")
]
Html = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Also write a page on which a word of the answer lights up what it was read from.",
    ),
]


@takes(settings=GENERATION, store=STORE, loading=ADAPTED)
def ask(
    questions: Questions = None,
    *,
    library: LibraryDirectory = Path("corpus.xattn"),
    database: Database = None,
    embedder: EmbedderName = None,
    model: ModelName = "smollm2-135m-instruct",
    k: Passages = 8,
    where: Where = None,
    reranker: Reranker = None,
    reader: ReaderName = "auto",
    positions: Positions = "sequence",
    passage_temperature: Temperature = 0.9,
    passage_scale: Scale = 1.0,
    recompute: Recompute = 0.0,
    calibration: CalibrationFile = None,
    show: Show = True,
    html: Html = None,
    cache: Cache = True,
    json: Json = False,
    settings: dict[str, Any],
    store: dict[str, Any],
    loading: dict[str, Any],
) -> None:
    """Answer questions from a library, with footnotes that say what each sentence rests on.

    Passages are found by meaning and by words, and attended to as memories: from the store, where
    they were read before. [?] stands behind a sentence that rests on nothing in them, where a
    calibration says from which support on it does. Several questions are answered together, and
    passages that they share are held once.
    """
    from xattn.library.calibration import calibration_of, read_calibrations
    from xattn.library.library import Library
    from xattn.library.page import write_page
    from xattn.library.readers.language import SHARPENED
    from xattn.models.parallel import Parallel

    if not questions:
        raise UsageError('no question was given; try: xattn ask "What is …?" --library DIR')
    if html is not None and len(questions) > 1:
        raise UsageError(f"--html is a page for one question, but {len(questions)} were given.")
    if html is not None and html.is_dir():
        raise UsageError(f"--html must be a file, but {html} is a directory.")
    found = None if calibration is None else read_calibrations(calibration)
    how = Parallel(
        positions=positions,
        temperature=passage_temperature,
        scale=passage_scale,
        recompute=recompute,
    )
    with Library(
        library,
        database=database,
        embedder=embedder,
        reranker=reranker,
        offline=loading.get("offline", False),
    ) as opened:
        loaded = load_model(model, **loading)
        if cache:
            use_store(loaded, store)
        opened.reader = reader_of(loaded, reader, how)
        if how != SHARPENED and opened.reader.name != "parallel":
            raise UsageError(
                "--positions, --passage-temperature, --passage-scale and --recompute are of the "
                f"parallel reader, but passages are read by the {opened.reader.name} one."
            )
        known = calibration_of(loaded, opened.reader.name, found)
        answers = opened.ask_many(
            questions, k, where=where_of(where), calibration=known, **settings
        )
    if json:
        documents = [document_of(answer) for answer in answers]
        print_json(documents if len(documents) > 1 else documents[0])
    else:
        _print_all(answers, show=show)
    if not known.threshold:
        print_note(
            "no calibration is known of this model, so no sentence is marked [?]: see 'xattn eval "
            "qa --calibrate'"
        )
    if html is not None:
        print_note(f"wrote {write_page(answers[0], html)}")


def _print_all(answers: "Sequence[Answer]", *, show: bool) -> None:
    for place, answer in enumerate(answers):
        if len(answers) > 1:
            print_line(f"{'' if place == 0 else chr(10)}{answer.question}")
        print_line("\n".join(_shown(answer)) if show else answer.text)


def reader_of(model: "Model", name: str, how: Any) -> "Reader":
    """The reader of a name. Raises :class:`UsageError` where the model cannot read so."""
    from xattn.library.readers import FusionReader, ParallelReader, PlainReader

    if name == "auto":
        name = "parallel" if model.spec.decoder.cross_attention is None else "fusion"
    if name == "fusion":
        return FusionReader(model)
    return ParallelReader(model, how=how) if name == "parallel" else PlainReader(model)


def _shown(answer: "Answer") -> Sequence[str]:
    """The answer with its footnotes, and what each of them quotes."""
    lines = [answer.with_footnotes().strip()]
    for citation in answer.citations:
        quote = " ".join(citation.quote.split())
        lines += ["", f'[{citation.number}] "{quote}"', f"    {_place(citation)}"]
    return lines


def _place(citation: "Citation") -> str:
    said = {"changed": "; it changed since", "gone": "; it is gone"}
    return f"{citation.place}{said.get(citation.standing, '')} (support {citation.support:.2f})"


def document_of(answer: "Answer") -> dict[str, Any]:
    """An answer as JSON."""
    return {
        "question": answer.question,
        "text": answer.text,
        "supported": answer.is_supported,
        "sentences": [asdict(sentence) for sentence in answer.sentences],
        "citations": [_cited(citation) for citation in answer.citations],
        "passages": [
            {"source": p.source, "title": p.title, "start": p.start, "end": p.end, "page": p.page}
            for p in answer.passages
        ],
        "reader": answer.reader,
        "encoder_passes": answer.encoder_passes,
    }


def _cited(citation: "Citation") -> dict[str, Any]:
    passage, cell = citation.passage, citation.cell
    return {
        "number": citation.number,
        "source": passage.source,
        "title": passage.title,
        "heading": list(passage.heading),
        "page": passage.page,
        "start": citation.start,
        "end": citation.end,
        "row": None if cell is None else cell.row,
        "column": None if cell is None else cell.column,
        "quote": citation.quote,
        "support": citation.support,
        "standing": citation.standing,
    }
