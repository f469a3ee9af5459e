"""``xattn generate``: continue a prompt, answer a message, or attend to files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xattn.cli.console import print_line, print_piece
from xattn.cli.jsonl import Record
from xattn.cli.loading import load_model, numbers_of
from xattn.cli.memories import Files
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
from xattn.cli.texts import (
    as_record,
    records_of,
    require_one_input,
    run_jsonl,
    run_texts,
)
from xattn.errors import UsageError

if TYPE_CHECKING:
    from xattn.generation import Generation
    from xattn.memory import Memory
    from xattn.model import Model

Prompts = Annotated[
    list[str] | None,
    typer.Argument(metavar="PROMPT", help="Prompts; - reads stdin, one prompt a line."),
]
MemoryFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--memory",
        metavar="FILE",
        help="Attend to this text file or recording; - is stdin. May be repeated for an "
        "encoder-decoder, which attends to all of them together.",
    ),
]
Chat = Annotated[bool, typer.Option("--chat", help="A prompt is a message; use the chat template.")]
System = Annotated[str | None, typer.Option(help="With --chat: the system message.")]
Stream = Annotated[bool, typer.Option("--stream", help="Print words as they are chosen.")]

_MESSAGE = '{"role": …, "content": …}'
_CHAT_WITH_MEMORY = (
    "a chat template begins a conversation, and what goes on from a memory is no beginning; "
    "leave out --chat and 'messages', or put the file's text into the message."
)


@takes(settings=GENERATION, store=STORE, loading=ADAPTED)
def generate(
    prompts: Prompts = None,
    *,
    model: ModelName = "smollm2-135m-instruct",
    memory: MemoryFiles = None,
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
    """Continue prompts, answer messages, or attend to files.

    With --chat a prompt is a message. An encoder-decoder model reads the prompt with its encoder.
    With --memory it attends to files instead, and PROMPT, which may then be left out, is what its
    answer begins with. A decoder-only model goes on from one file with PROMPT. Files are encoded as
    'xattn encode' does it, and found in the store from then on; what a decoder-only model reads as
    PROMPT is not kept.

    Records of --jsonl have a "prompt" or chat "messages", and may have a "memory" of their own, a
    path or a list of paths; the output adds "text".
    """
    attended = memory or []
    require_one_input(prompts, jsonl, output, what="PROMPT", needed=not attended)
    _require_one_reader_of_stdin(prompts or [], attended, jsonl)
    _require_agreement(
        chat=chat,
        system=system,
        attended=attended,
        prints_json=json or jsonl is not None,
        stream=stream,
        settings=settings,
    )
    loaded = load_model(model, **loading)
    if cache and loaded.spec.encoder is not None:
        use_store(loaded, store)
    files = Files(loaded, (lambda: use_store(loaded, store)) if cache else None)
    if attended:
        _require_goes_on(loaded, attended, prompted=bool(prompts) or jsonl is not None)
        files.read(attended)  # what cannot be read is said before anything is answered
    wrap = _message(system) if chat else _same

    def asked(record: Record) -> _Ask:
        sources = _sources(record, attended)
        if sources:
            return _asked_of(loaded, files, sources, record, chat=chat)
        return _Ask(prompt=_messages(record) if "messages" in record else wrap(_prompt(record)))

    def work(records: Sequence[Record]) -> list[Record]:
        asks = [asked(record) for record in records]
        logprobs = "logprobs" in settings
        return [
            as_record(answer, field="text", logprobs=logprobs) | _passes(ask)
            for answer, ask in zip(_answers(loaded, asks, settings), asks, strict=True)
        ]

    if jsonl is not None:
        options = settings | {"generate": model, **numbers_of(loading)} | lossy(store, cache)
        options |= {"chat": chat, "system": system} | ({"memory": attended} if attended else {})
        fields = ["prompt", "messages", "memory"]
        run_jsonl(jsonl, output, work, fields=fields, options=options, batch_size=batch_size)
    elif stream:
        for record in records_of(prompts or [], "prompt"):
            _stream(loaded, asked(record), settings)
    else:
        run_texts(prompts or [], work, field="prompt", result_field="text", json=json)


@dataclass(frozen=True, kw_only=True)
class _Ask:
    """One answer that is wanted."""

    prompt: Any
    memories: "tuple[Memory, ...]" = ()
    """What it attends to; none where the prompt is all there is."""
    encoder_passes: int = 0
    """What the memories took in this call."""


def _asked_of(
    model: "Model", files: Files, sources: Sequence[str], record: Record, *, chat: bool
) -> _Ask:
    """What a record asks of files."""
    if chat or "messages" in record:
        raise UsageError(f"a record with a memory is no chat: {_CHAT_WITH_MEMORY}")
    _require_goes_on(model, sources, prompted="prompt" in record)
    prompt = _prompt(record) if "prompt" in record else None
    memories, passes = files.read(sources)
    return _Ask(prompt=prompt, memories=memories, encoder_passes=passes)


def _answers(
    model: "Model", asks: Sequence[_Ask], settings: Mapping[str, Any]
) -> "list[Generation]":
    """In the order asked; those with memories are one batch, those without another."""
    found: dict[int, Generation] = {}
    for places in (
        [place for place, ask in enumerate(asks) if ask.memories],
        [place for place, ask in enumerate(asks) if not ask.memories],
    ):
        if places:
            inputs = _inputs(model, [asks[place] for place in places])
            found |= zip(places, model.generate_batch(**inputs, **settings), strict=True)
    return [found[place] for place in range(len(asks))]


def _inputs(model: "Model", asks: Sequence[_Ask]) -> dict[str, Any]:
    """A decoder continues the prompt; an encoder, where there is one and no memory, reads it."""
    prompts = [ask.prompt for ask in asks]
    if asks[0].memories:
        return {"memories": [ask.memories for ask in asks], "prompts": prompts}
    return {"prompts" if model.spec.encoder is None else "memories": prompts}


def _passes(ask: _Ask) -> Record:
    """What finding its memories took: 0 encoder passes where the store had them."""
    return {"encoder_passes": ask.encoder_passes} if ask.memories else {}


def _stream(model: "Model", ask: _Ask, settings: dict[str, Any]) -> None:
    if ask.memories:
        pieces = model.stream(ask.memories, ask.prompt, **settings)
    elif model.spec.encoder is None:
        pieces = model.stream(prompt=ask.prompt, **settings)
    else:
        pieces = model.stream(ask.prompt, **settings)
    for piece in pieces:
        print_piece(piece)
    print_line("")


def _message(system: str | None) -> Callable[[str], Any]:
    """A prompt as the messages of a chat."""
    before = [] if system is None else [{"role": "system", "content": system}]
    return lambda text: [*before, {"role": "user", "content": text}]


def _same(text: str) -> str:
    return text


def _prompt(record: Record) -> str:
    """A record's prompt; raises :class:`UsageError` for anything but text."""
    prompt = record.get("prompt")
    if not isinstance(prompt, str):
        raise UsageError(f"'prompt' must be text, but is {prompt!r} instead.")
    return prompt


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


def _sources(record: Record, attended: Sequence[str]) -> Sequence[str]:
    """The files that a record attends to: its own, or else those of the command."""
    if "memory" not in record:
        return attended
    given = record["memory"]
    sources = [given] if isinstance(given, str) else given
    fits = isinstance(sources, list) and all(isinstance(source, str) for source in sources)
    if not fits or not sources or "-" in sources:
        raise UsageError(
            f"'memory' must be the path of a file, or a list of paths, but is {given!r} instead."
        )
    return list(sources)


def _require_agreement(
    *,
    chat: bool,
    system: str | None,
    attended: Sequence[str],
    prints_json: bool,
    stream: bool,
    settings: Mapping[str, Any],
) -> None:
    """Raise :class:`UsageError` for flags that do not go together."""
    if stream and prints_json:
        raise UsageError(
            "--stream prints text as it comes; it goes with neither --json nor --jsonl."
        )
    if system is not None and not chat:
        raise UsageError("--system is a chat message; add --chat.")
    if chat and attended:
        raise UsageError(f"--memory does not go with --chat: {_CHAT_WITH_MEMORY}")
    if "logprobs" in settings and not prints_json:
        raise UsageError("--logprobs is reported as JSON; add --json.")


def _require_goes_on(model: "Model", sources: Sequence[str], *, prompted: bool) -> None:
    """Raise :class:`UsageError` unless ``model`` can answer with the memories of ``sources``."""
    if model.spec.encoder is not None:
        return
    if len(sources) > 1:
        raise UsageError(
            "--memory must be 1 file for a decoder-only model, which goes on from its text, but is "
            f"{len(sources)} files; join them in one file."
        )
    if not prompted:
        raise UsageError(
            "PROMPT must be given with --memory for a decoder-only model, which goes on with it."
        )


def _require_one_reader_of_stdin(
    prompts: Sequence[str], attended: Sequence[str], jsonl: str | None
) -> None:
    """Raise :class:`UsageError` where two would read stdin, and the second find nothing."""
    readers = ["PROMPT"] * ("-" in prompts) + ["--memory"] * attended.count("-")
    readers += ["--jsonl"] * (jsonl == "-")
    if len(readers) > 1:
        raise UsageError(
            f"stdin must be read by 1 of the arguments, but {' and '.join(readers)} are '-'; "
            "give the others a file."
        )
