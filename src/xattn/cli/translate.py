"""``xattn translate``: text in one language to text in another."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from xattn.cli.jsonl import Record
from xattn.cli.loading import load_model, numbers_of
from xattn.cli.options import (
    ADAPTED,
    GENERATION,
    STORE,
    BatchSize,
    Cache,
    Json,
    JsonLines,
    ModelName,
    Output,
    takes,
)
from xattn.cli.stores import lossy, use_store
from xattn.cli.texts import Work, as_record, require_one_input, run_jsonl, run_texts

Texts = Annotated[
    list[str] | None,
    typer.Argument(metavar="TEXT", help="Texts; - reads stdin, one text a line."),
]
SourceLanguage = Annotated[
    str | None,
    typer.Option("--source-language", "-s", help="As the model names it: eng_Latn, en …"),
]
TargetLanguage = Annotated[
    str | None,
    typer.Option("--target-language", "-t", help="As the model names it: deu_Latn, de …"),
]


@takes(settings=GENERATION, store=STORE, loading=ADAPTED)
def translate(
    texts: Texts = None,
    *,
    model: ModelName = "",
    source_language: SourceLanguage = None,
    target_language: TargetLanguage = None,
    cache: Cache = True,
    json: Json = False,
    jsonl: JsonLines = None,
    output: Output = "-",
    batch_size: BatchSize = 8,
    settings: dict[str, Any],
    store: dict[str, Any],
    loading: dict[str, Any],
) -> None:
    """Translate texts with an encoder-decoder model.

    Records of --jsonl have a "text"; the output adds "translation".
    """
    require_one_input(texts, jsonl, output, what="TEXT")
    loaded = load_model(model, **loading)
    if cache:
        use_store(loaded, store)

    def work(records: Sequence[Record]) -> list[Record]:
        sources = [record["text"] for record in records]
        answers = loaded.generate_batch(
            sources, language=source_language, target_language=target_language, **settings
        )
        logprobs = "logprobs" in settings
        return [as_record(answer, field="translation", logprobs=logprobs) for answer in answers]

    if jsonl is not None:
        options = settings | {"translate": model, **numbers_of(loading)} | lossy(store, cache)
        options |= {"from": source_language, "to": target_language}
        run_jsonl(jsonl, output, work, fields=["text"], options=options, batch_size=batch_size)
    else:
        given = texts or []
        by_line = _blank_stays_blank(work) if "-" in given else work
        run_texts(given, by_line, field="text", result_field="translation", json=json)


def _blank_stays_blank(work: Work) -> Work:
    """Line n of the output translates line n of stdin, the blank ones too."""

    def by_line(records: Sequence[Record]) -> Sequence[Record]:
        [record] = records
        return work(records) if record["text"].strip() else [{"translation": ""}]

    return by_line
