"""``xattn generate``: continue a prompt, or answer a message."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xattn.cli.console import print_line, print_piece
from xattn.cli.jsonl import Record
from xattn.cli.loading import load_model
from xattn.cli.options import (
    GENERATION,
    LOADING,
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
from xattn.cli.texts import (
    as_record,
    read_texts,
    require_one_input,
    run_jsonl,
    run_texts,
)
from xattn.errors import UsageError

if TYPE_CHECKING:
    from xattn.model import Model

Prompts = Annotated[
    list[str] | None,
    typer.Argument(metavar="PROMPT", help="Prompts; - reads stdin, one prompt a line."),
]
Chat = Annotated[bool, typer.Option("--chat", help="A prompt is a message; use the chat template.")]
System = Annotated[str | None, typer.Option(help="With --chat: the system message.")]
Stream = Annotated[bool, typer.Option("--stream", help="Print words as they are chosen.")]

_MESSAGE = '{"role": …, "content": …}'


@takes(settings=GENERATION, store=STORE, loading=LOADING)
def generate(
    prompts: Prompts = None,
    *,
    model: ModelName = "smollm2-135m-instruct",
    chat: Chat = False,
    system: System = None,
    stream: Stream = False,
    cache: Cache = True,
    json: Json = False,
    jsonl: JsonLines = None,
    output: Output = "-",
    batch_size: BatchSize = 8,
    settings: dict[str, Any],
    store: dict[str, Any],
    loading: dict[str, Any],
) -> None:
    """Continue prompts, or answer them with --chat.

    An encoder-decoder model reads the prompt with its encoder. Records of --jsonl have a "prompt"
    or chat "messages"; the output adds "text".
    """
    require_one_input(prompts, jsonl, output, what="PROMPT")
    if stream and (json or jsonl is not None):
        raise UsageError(
            "--stream prints text as it comes; it goes with neither --json nor --jsonl."
        )
    if system is not None and not chat:
        raise UsageError("--system is a chat message; add --chat.")
    loaded = load_model(model, **loading)
    if cache and loaded.spec.encoder is not None:
        use_store(loaded, store)
    if "logprobs" in settings and not json and jsonl is None:
        raise UsageError("--logprobs is reported as JSON; add --json.")
    wrap = _message(system) if chat else _same

    def work(records: Sequence[Record]) -> list[Record]:
        prompts = [
            _messages(record) if "messages" in record else wrap(_prompt(record))
            for record in records
        ]
        answers = loaded.generate_batch(**_inputs(loaded, prompts), **settings)
        logprobs = "logprobs" in settings
        return [as_record(answer, field="text", logprobs=logprobs) for answer in answers]

    if jsonl is not None:
        options = settings | {
            "generate": model,
            "dtype": loading["dtype"],
            "chat": chat,
            "system": system,
        }
        options |= lossy(store, cache)
        fields = ["prompt", "messages"]
        run_jsonl(jsonl, output, work, fields=fields, options=options, batch_size=batch_size)
    elif stream:
        for text in read_texts(prompts or []):
            _stream(loaded, wrap(text), settings)
    else:
        run_texts(prompts or [], work, field="prompt", result_field="text", json=json)


def _message(system: str | None) -> Callable[[str], Any]:
    """A prompt as the messages of a chat."""
    before = [] if system is None else [{"role": "system", "content": system}]
    return lambda text: [*before, {"role": "user", "content": text}]


def _same(text: str) -> str:
    return text


def _prompt(record: Record) -> str:
    """A record's prompt; raises :class:`UsageError` for anything but text."""
    if not isinstance(record["prompt"], str):
        raise UsageError(f"'prompt' must be text, but is {record['prompt']!r} instead.")
    return record["prompt"]


def _messages(record: Record) -> Any:
    """A record's chat messages; raises :class:`UsageError` for anything else."""
    messages = record["messages"]
    fits = isinstance(messages, list) and all(
        isinstance(message, dict)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str)
        for message in messages
    )
    if not fits or not messages:
        raise UsageError(f"'messages' must be a list of {_MESSAGE}, but is {messages!r} instead.")
    return messages


def _inputs(model: "Model", prompts: Sequence[Any]) -> dict[str, Any]:
    """A decoder continues the prompt; an encoder, where there is one, reads it."""
    return {"prompts" if model.spec.encoder is None else "memories": prompts}


def _stream(model: "Model", prompt: Any, settings: dict[str, Any]) -> None:
    if model.spec.encoder is None:
        pieces = model.stream(prompt=prompt, **settings)
    else:
        pieces = model.stream(prompt, **settings)
    for piece in pieces:
        print_piece(piece)
    print_line("")
