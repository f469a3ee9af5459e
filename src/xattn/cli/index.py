"""``xattn index``: documents into a library, so that answers can rest on them."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xattn.cli.console import Progress, print_json, print_line, print_note
from xattn.cli.failures import FAILED
from xattn.cli.loading import load_model
from xattn.cli.options import LOADING, MODEL, STORE, Json, takes
from xattn.cli.stores import use_store
from xattn.cli.where import scalar_of
from xattn.errors import UsageError
from xattn.readable import counted

if TYPE_CHECKING:
    from xattn.library.indexing import Report
    from xattn.library.library import Library

PASSAGES, EMBEDDING = "Passages", "Embedding"

Paths = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PATHS",
        help="Files, directories, and patterns such as 'docs/**/*.md'; none: all that the library "
        "has.",
    ),
]
LibraryDirectory = Annotated[
    str, typer.Option("--library", "-l", metavar="DIR", help="The library; made if need be.")
]
MetadataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--metadata",
        metavar="NAME=VALUE",
        help="That searches can filter by: year=2020, kind=guide, final=true. Repeatable; unset: "
        "as it was.",
    ),
]
Full = Annotated[
    bool, typer.Option("--full/--quick", help="Read files again whose size and time are the same.")
]
RemoveMissing = Annotated[
    bool,
    typer.Option(
        "--remove-missing/--keep-missing",
        help="Files that are gone leave the library wherever they were, not below PATHS only.",
    ),
]
Hidden = Annotated[bool, typer.Option("--hidden/--no-hidden", help="Hidden files as well.")]
Again = Annotated[
    bool,
    typer.Option(
        "--again",
        help="Make the library anew from its files, with the settings given; it can be searched "
        "meanwhile.",
    ),
]
PassageTokens = Annotated[
    int | None,
    typer.Option(
        min=1, rich_help_panel=PASSAGES, help="Of a passage, at most; unset: as it is, or 220."
    ),
]
Overlap = Annotated[
    int | None,
    typer.Option(
        min=0,
        rich_help_panel=PASSAGES,
        help="Tokens of the passage before that one begins with, at most; unset: as it is, or 32.",
    ),
]
Language = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=PASSAGES,
        help="Whose stems the search for words knows; unset: as it is, or english.",
    ),
]
Database = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        rich_help_panel=PASSAGES,
        help="A PostgreSQL server with pgvector, postgresql://…; unset: as it is, or lance, in "
        "the library's own directory.",
    ),
]
EmbedderName = Annotated[
    str | None,
    typer.Option(
        "--embedder",
        rich_help_panel=EMBEDDING,
        help="A model of sentence-transformers: name, pkg:PACKAGE/PATH or directory; unset: as it "
        "is, or all-MiniLM-L6-v2.",
    ),
]
Device = Annotated[str, typer.Option(rich_help_panel=EMBEDDING, help="cpu, cuda, mps …")]
MemoryModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        rich_help_panel=MODEL,
        help="Also read new passages with this model and keep their memories, so that nothing has "
        "to be encoded when it is asked.",
    ),
]
BatchSize = Annotated[
    int, typer.Option(min=1, rich_help_panel=EMBEDDING, help="Passages embedded at once.")
]


@takes(store=STORE, loading=LOADING)
def index(
    paths: Paths = None,
    *,
    library: LibraryDirectory = "corpus.xattn",
    metadata: MetadataOption = None,
    full: Full = False,
    remove_missing: RemoveMissing = False,
    hidden: Hidden = False,
    again: Again = False,
    passage_tokens: PassageTokens = None,
    overlap: Overlap = None,
    language: Language = None,
    database: Database = None,
    embedder: EmbedderName = None,
    embedder_device: Device = "cpu",
    embedder_batch_size: BatchSize = 32,
    model: MemoryModel = None,
    json: Json = False,
    store: dict[str, Any],
    loading: dict[str, Any],
) -> None:
    """Bring a library up to date with documents: text, Markdown, HTML, PDF, DOCX, tables, code.

    Only new passages are embedded: a second run reads what changed, files that are gone leave, and
    a run that was interrupted is gone on with. A file that cannot be read is told and left out, and
    the exit code is 1 then. With --model, its memories of new passages are made too.
    """
    from xattn.library.library import Library

    about = _metadata(metadata)
    settings: dict[str, Any] = {
        "embedder": embedder,
        "passage_tokens": passage_tokens,
        "overlap": overlap,
        "language": language,
    }
    how: dict[str, Any] = {
        "device": embedder_device,
        "batch_size": embedder_batch_size,
        "offline": loading.get("offline", False),
        "database": database,
    }
    loaded = None if model is None else load_model(model, **loading)
    if loaded is not None:
        use_store(loaded, store)
    with (
        Library(library, **how, **({} if again else settings)) as opened,
        Progress("index", unit="MB", results_on_stdout=False) as progress,
    ):

        def tell(done_bytes: int, all_bytes: int) -> None:
            progress.update(done_bytes / 1e6, all_bytes / 1e6)

        reports = []
        if again:
            reports.append(opened.remake(**settings, progress=tell))
        if paths or not again:
            reports.append(
                opened.add(
                    paths or (),
                    metadata=about,
                    full=full,
                    remove_missing=remove_missing,
                    hidden=hidden,
                    progress=tell,
                )
            )
        document: dict[str, Any] = {"library": str(opened.root), "passages": len(opened)}
        _tell_what_is_unseen(opened)
    if loaded is not None and loaded.store is not None:
        with (
            Library(library, model=loaded) as opened,
            Progress("read", unit="passages", results_on_stdout=False) as progress,
        ):
            document["memories"] = opened.remember(progress.update)
    for report in reports:
        for failure in report.failures:
            named = failure.source in failure.reason
            print_note(failure.reason if named else f"{failure.source}: {failure.reason}")
        if report.failed > len(report.failures):
            print_note(f"and {report.failed - len(report.failures)} more that cannot be read")
    if json:
        print_json(document | asdict(reports[-1]))
    else:
        for report in reports:
            print_line(_line(document, report))
    if any(report.failed for report in reports):
        raise typer.Exit(FAILED)


def _tell_what_is_unseen(library: "Library") -> None:
    """Where the embedder cuts what a passage may have."""
    embedder, most = library.embedder, library.settings.passage_tokens
    longest = getattr(embedder, "longest", None)
    if longest is not None and most > longest:
        print_note(
            f"passages may have {most} tokens, of which {embedder.name} reads {longest}: the rest "
            "is found by its words only"
        )


def _metadata(given: list[str] | None) -> dict[str, Any] | None:
    if not given:
        return None
    found: dict[str, Any] = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise UsageError(f"`--metadata` must be NAME=VALUE, but is {text!r} instead.")
        found[name] = scalar_of(value)
    return found


def _line(document: dict[str, Any], report: "Report") -> str:
    files = [
        f"{count} {what}"
        for what in ("added", "changed", "removed", "unchanged", "failed")
        if (count := getattr(report, what))
    ]
    return (
        f"{document['library']}: {', '.join(files) or 'no files'}; "
        f"{counted(report.passages_added, 'passage')} embedded, {report.passages_kept} kept, "
        f"{report.passages_removed} removed; {counted(document['passages'], 'passage')} in all, "
        f"{report.seconds:.2f} s"
    )
