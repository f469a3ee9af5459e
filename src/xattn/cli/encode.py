"""``xattn encode``: sources into the store, so that nothing has to be encoded later."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from xattn.cli.console import print_error, print_json, print_line
from xattn.cli.failures import code_of
from xattn.cli.jsonl import Record
from xattn.cli.loading import load_model, numbers_of
from xattn.cli.memories import content_of
from xattn.cli.options import ADAPTED, STORE, Json, JsonLines, ModelName, Output, takes
from xattn.cli.stores import open_store
from xattn.cli.texts import require_one_input, run_jsonl
from xattn.errors import UsageError, XattnError
from xattn.readable import readable_bytes

if TYPE_CHECKING:
    from xattn.model import Model
    from xattn.store import MemoryStore

Sources = Annotated[
    list[str] | None,
    typer.Argument(metavar="FILE", help="Recordings, or text files; - reads one from stdin."),
]
MaxPositions = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Tokens in a chunk of a long text, at most. 'xattn generate --memory' cuts as if this "
        "were unset: 512.",
    ),
]
SourceLanguage = Annotated[
    str | None,
    typer.Option("--source-language", "-s", help="Of a text, as the model names it."),
]


For = Annotated[
    Literal["transcribe", "generate"],
    typer.Option(
        "--for",
        help="Who is to find it. transcribe: windows of a recording, or chunks of a text, as "
        "'xattn transcribe' and 'xattn generate --memory' read them. generate: one memory, of 30 s "
        "of a recording at most, as 'xattn generate SOURCE', 'xattn translate' and "
        "store.get_or_encode(model, source) read it.",
    ),
]


@takes(store=STORE, loading=ADAPTED)
def encode(
    sources: Sources = None,
    *,
    model: ModelName = "",
    for_: For = "transcribe",
    max_positions: MaxPositions = None,
    source_language: SourceLanguage = None,
    json: Json = False,
    jsonl: JsonLines = None,
    output: Output = "-",
    store: dict[str, Any],
    loading: dict[str, Any],
) -> None:
    """Encode files into the store, once.

    What is there already is not encoded again. Long texts are cut into chunks at sentence ends,
    long recordings into windows, and an edited text encodes the chunks that changed. A decoder-only
    model reads a text as one piece.

    Records of --jsonl have a "source", the path of a file; the output adds the keys, what was
    found, and what was encoded.
    """
    require_one_input(sources, jsonl, output, what="FILE")
    if for_ == "generate" and max_positions is not None:
        raise UsageError("--max-positions cuts a text in chunks; --for generate makes one memory.")
    kept = open_store(store)
    loaded = load_model(model, **loading)
    given = {"max_positions": max_positions, "language": source_language}
    how = {name: value for name, value in given.items() if value is not None}

    def encode_one(source: Any) -> Record:
        return _encode_one(loaded, kept, source, for_, how)

    def work(records: Sequence[Record]) -> list[Record]:
        return [encode_one(record["source"]) for record in records]

    if jsonl is not None:
        # The store is what the work is for: records of another one are not done.
        where = {"store": str(kept.root), "tenant": kept.tenant, "codec": kept.codec}
        options = how | {"encode": model, "for": for_, **numbers_of(loading)} | where
        run_jsonl(jsonl, output, work, fields=["source"], options=options)
        return
    documents, worst = [], 0
    for source in sources or []:
        try:
            report = encode_one(source)
        except XattnError as error:
            worst = max(worst, code_of(error))
            print_error(error)
            continue
        documents.append({"source": source} | report)
        if not json:
            print_line(_line(source, report))
    if json and documents:
        print_json(documents if len(sources or []) > 1 else documents[0])
    if worst:
        raise typer.Exit(worst)


def _encode_one(
    model: "Model", store: "MemoryStore", source: Any, for_: str, how: dict[str, Any]
) -> dict[str, Any]:
    if not isinstance(source, str):
        raise UsageError(f"'source' must be the path of a file, but is {source!r}.")
    started = time.perf_counter()
    content = content_of(model, source)
    if for_ == "generate":
        pieces = [model.prepare(content, **how)]
    else:
        pieces = model.prepare_long(content, **how)
    before = model.counters.encoder_passes
    memories = store.get_or_encode_prepared(model, pieces)
    encoded = model.counters.encoder_passes - before
    return {
        "keys": [memory.key.digest for memory in memories],
        "found": len(memories) - encoded,
        "encoded": encoded,
        "positions": sum(map(len, memories)),
        "bytes": sum(memory.size_bytes for memory in memories),
        "seconds": round(time.perf_counter() - started, 3),
    }


def _line(source: str, report: dict[str, Any]) -> str:
    pieces = report["found"] + report["encoded"]
    return (
        f"{source}: {pieces} {'piece' if pieces == 1 else 'pieces'}, {report['encoded']} encoded, "
        f"{report['found']} found; {report['positions']} positions, "
        f"{readable_bytes(report['bytes'])}, {report['seconds']:.2f} s"
    )
