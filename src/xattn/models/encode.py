"""From sources to memories, in two acts: a source is prepared, which names it, then encoded.

Between the two stands whoever keeps memories: what has a name need not be encoded again.

Axes: S positions, D model width, M mel bins, F log-mel frames; C channels, Y and X of pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xattn.errors import (
    InvalidSourceError,
    SourceNotFoundError,
    UnreadableSourceError,
    UsageError,
    require,
)
from xattn.inputs import audio
from xattn.inputs.audio import Audio
from xattn.inputs.chunks import chunks
from xattn.inputs.text import Tokenizer, canonical_text
from xattn.memory import (
    KV_PREPROCESSING,
    Memory,
    MemoryKey,
    Span,
    SpanTable,
    digest_of,
)
from xattn.models.network import Network
from xattn.models.parallel import Stand
from xattn.spec import AudioStemSpec

LABEL_CHARACTERS = 40
TEXT_PREPROCESSING = "text/1"
TOKENS_AT_SEAMS = 4
"""Tokens that a chunk may have more than its sentences one by one."""


@dataclass(frozen=True)
class TextSource:
    """A text and, where the tokenizer knows languages, the one it is written in."""

    text: str
    language: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A source that has its name and its place in the source for each position, and no states."""

    key: MemoryKey
    inputs: list[int] | Tensor | Callable[[], Tensor]
    """What the encoder reads: token ids, log-mel frames ``[M, F]`` or pixels ``[C, Y, X]``, or what
    makes them when they are needed."""
    spans: Sequence[Span]
    label: str
    details: dict[str, Any] = field(default_factory=dict)
    behind: Memory | None = None
    """A memory of a decoder-only model that this one is to be made behind."""

    def memory(self, states_SD: Tensor, mask_S: Tensor | None = None) -> Memory:
        """The memory with these states."""
        return Memory(
            states_SD=states_SD,
            mask_S=mask_S,
            key=self.key,
            spans=self.spans,
            label=self.label,
            source_tokens=tuple(self.inputs) if isinstance(self.inputs, list) else (),
            details=self.details,
        )


def placed_behind(network: Network, item: Prepared, behind: Memory) -> Prepared:
    """``item`` as what a decoder-only model reads after the memory ``behind``, and named as such.

    Raises :class:`UsageError` for a prefix that is none, :class:`InvalidSourceError` where both
    together are too long.
    """
    prefix, limit = Stand.of(behind), network.spec.decoder.position.limit
    alone = behind.holds_kv and prefix.behind is None
    require(alone, "behind", "a memory of keys and values that is behind no other", behind)
    start = prefix.positions
    if limit is not None and start + len(item.spans) > limit:
        raise InvalidSourceError(
            f"the source {item.label!r} has {len(item.spans)} tokens behind a prefix of {start}, "
            f"but this model has {limit} positions; shorten or split it."
        )
    return replace(
        item,
        key=replace(item.key, preprocessing=f"{item.key.preprocessing} behind {prefix.name}"),
        details={**item.details, "start": start, "behind": prefix.name},
        behind=behind,
    )


def prepare_texts(
    network: Network,
    tokenizer: Tokenizer | None,
    sources: Sequence[TextSource],
    *,
    plain: bool = False,
) -> list[Prepared]:
    """Texts in their canonical form (NFC), whose characters the spans count.

    ``plain`` ones have no special tokens around them.

    Raises :class:`InvalidSourceError` where a text is empty or has more tokens than the encoder
    has positions, :class:`UsageError` for a language that the tokenizer does not know.
    """
    prepared, encoder = [], network.encoder_digest  # once: it costs a look at the weights
    for source in sources:
        side, text = side_of(tokenizer, source.language), canonical_text(source.text)
        if not text.strip():
            raise InvalidSourceError(f"the source text is empty ({text!r}); nothing to encode.")
        prepared.append(
            prepare_written(
                network,
                side,
                text,
                source=text.encode(),
                preprocessing=TEXT_PREPROCESSING,
                encoder=encoder,
                plain=plain,
            )
        )
    return prepared


def side_of(tokenizer: Tokenizer | None, language: str | None) -> Tokenizer:
    """The tokenizer for sources in ``language``; :class:`UsageError` where there is none."""
    if tokenizer is None:
        raise UsageError(
            "this checkpoint has no tokenizer, so it cannot encode text; "
            "pass token ids (a list of int)."
        )
    return tokenizer if language is None else tokenizer.for_language(language)


def prepare_written(
    network: Network,
    side: Tokenizer,
    text: str,
    *,
    source: bytes,
    preprocessing: str,
    encoder: str,
    plain: bool = False,
) -> Prepared:
    """What an encoder of text reads as ``text``, named by the bytes of its ``source``.

    ``preprocessing`` says how the one became the other, ``encoder`` is the encoder's digest; spans
    count the characters of ``text``. A ``plain`` text has no special tokens around it. Raises
    :class:`InvalidSourceError` where it is too long.
    """
    encoded, label = (side.encode_plain if plain else side.encode)(text), label_of(text)
    _check_ids(network, encoded.ids, label)
    how = f"{_how(network, preprocessing)} {side.identity}"
    return Prepared(
        key=_key(network, digest_of(source, hash=network.hash), how, encoder),
        inputs=encoded.ids,
        spans=encoded.spans,
        label=label,
    )


def prepare_long_text(
    network: Network, tokenizer: Tokenizer | None, source: TextSource, most: int
) -> list[Prepared]:
    """A text of any length in chunks of at most ``most`` tokens, each a memory of its own.

    Chunks end where their sentences say (:mod:`xattn.inputs.chunks`), so that an edit changes its
    own chunk only; spans count the characters of the whole text. Raises as :func:`prepare_texts`.
    """
    text = canonical_text(source.text)
    if tokenizer is None or not text.strip():
        return prepare_texts(network, tokenizer, [source])
    side = tokenizer if source.language is None else tokenizer.for_language(source.language)
    special = len(side.encode("").ids)

    def count(piece: str) -> int:
        return len(side.encode(piece).ids) - special

    limit = network.spec.encoder.position.limit if network.spec.encoder is not None else None
    room = min(most, limit or most) - special - TOKENS_AT_SEAMS
    require(room >= 1, "max_positions", f"above {special + TOKENS_AT_SEAMS}", most)
    places = [(a, b) for a, b in chunks(text, count, room) if text[a:b].strip()]
    pieces = [TextSource(text[start:end], source.language) for start, end in places]
    return [
        replace(piece, spans=SpanTable(SpanTable.of(piece.spans).bounds_S2 + start, "characters"))
        for piece, (start, _) in zip(prepare_texts(network, tokenizer, pieces), places, strict=True)
    ]


def prepare_long_audio(network: Network, recording: Audio) -> list[Prepared]:
    """A recording of any length in windows, one after the other; spans are its own seconds.

    The first is the one that a transcription begins with; where its later ones begin depends on
    what it hears.
    """
    stem, total = _stem(network), audio.file_frames(recording.samples_T)

    @cache
    def mel() -> Tensor:
        return audio.file_log_mel(recording.samples_T, stem.mel_bins)

    return [
        prepare_window(network, recording, mel, start, min(stem.frames, total - start))
        for start in range(0, total, stem.frames)
    ]


def text_of(source: object) -> str:
    """A string as it is, a :class:`~pathlib.Path` as the text of its file.

    Raises :class:`SourceError` where the file cannot be read, :class:`UsageError` for other things.
    """
    if isinstance(source, str):
        return source
    if isinstance(source, Path):
        try:
            return source.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise SourceNotFoundError(f"{source}: no such file.") from error
        except (OSError, UnicodeDecodeError) as error:
            raise UnreadableSourceError(f"{source}: not readable as UTF-8 text: {error}") from error
    raise UsageError(
        "a source must be text, a Path to a text file, or token ids for this encoder, "
        f"but is {type(source).__name__} instead."
    )


def prepare_token_ids(network: Network, sources: Sequence[Sequence[int]]) -> list[Prepared]:
    """Sequences of encoder token ids, for callers with a tokenizer of their own."""
    prepared, encoder = [], network.encoder_digest
    for source in sources:
        ids, label = list(source), f"{len(source)} token ids"
        _check_ids(network, ids, label)
        prepared.append(
            Prepared(
                key=_key(
                    network,
                    digest_of(str(ids).encode(), hash=network.hash),
                    _how(network, "token-ids/1"),
                    encoder,
                ),
                inputs=ids,
                spans=SpanTable.even(len(ids), 1.0, "tokens"),
                label=label,
            )
        )
    return prepared


def prepare_audio(network: Network, recording: Audio) -> Prepared:
    """A recording no longer than the encoder's window (30 s for Whisper).

    Raises :class:`InvalidSourceError` where it is longer.
    """
    stem = _stem(network)
    if recording.seconds > stem.seconds:
        raise InvalidSourceError(
            f"{recording.label}: {recording.seconds:.1f} s of audio, but one memory of this model "
            f"holds {stem.seconds:g} s; use transcribe() for long recordings, or cut it."
        )
    samples_T = recording.samples_T
    how = f"{audio.PREPROCESSING} window {stem.mel_bins} {stem.frames}"

    def window() -> Tensor:
        return audio.window_log_mel(samples_T, stem.mel_bins, stem.frames)

    return _prepared_mel(network, window, recording, how, seconds=recording.seconds)


def prepare_window(
    network: Network, recording: Audio, mel: Callable[[], Tensor], start: int, frames: int
) -> Prepared:
    """A window of a longer recording, whose log-mel frames ``[M, F]`` are ``mel()``.

    It begins at frame ``start``, and ``frames`` of it hold audio; what is missing to the encoder's
    window is filled up after the transform (as openai-whisper), not before it.
    """
    stem = _stem(network)
    how = f"{audio.PREPROCESSING} recording {stem.mel_bins} {stem.frames} at {start}+{frames}"
    return _prepared_mel(
        network, lambda: audio.cut_window(mel(), start, frames, stem.frames), recording, how,
        seconds=frames / audio.FRAMES_PER_SECOND,
        start_seconds=start / audio.FRAMES_PER_SECOND,
    )  # fmt: skip


def _prepared_mel(
    network: Network,
    window: Callable[[], Tensor],
    recording: Audio,
    how: str,
    *,
    seconds: float,
    start_seconds: float = 0.0,
) -> Prepared:
    stem = _stem(network)
    positions = stem.frames // 2
    return Prepared(
        key=_key(network, recording.digest(network.hash), how),
        inputs=window,
        spans=SpanTable.even(positions, stem.seconds / positions, "seconds", start=start_seconds),
        label=recording.label,
        details={"seconds": seconds},
    )


def encode(network: Network, prepared: Sequence[Prepared]) -> list[Memory]:
    """One memory for each; texts go through the encoder in packs, without padding.

    A model without an encoder reads each text alone, and its memory is keys and values.
    """
    inputs = [item.inputs() if callable(item.inputs) else item.inputs for item in prepared]
    rows = [one for one in inputs if isinstance(one, list)]
    with torch.autocast(network.device.type, enabled=False):  # or the key's dtype would be a lie
        if network.encoder is None:
            texts = (item for item in prepared if isinstance(item.inputs, list))
            pairs = zip(rows, texts, strict=True)
            of_tokens = iter([network.encode_kv(row, item.behind) for row, item in pairs])
        else:
            of_tokens = iter(network.encode_tokens(rows) if rows else ())
        return [
            item.memory(
                next(of_tokens)
                if isinstance(one, list)
                else network.encode_mel(one.unsqueeze(0))[0]
            )
            for item, one in zip(prepared, inputs, strict=True)
        ]


def _check_ids(network: Network, ids: Sequence[int], label: str) -> None:
    spec = network.spec.encoder or network.spec.decoder
    vocab_size, limit = spec.vocab_size, spec.position.limit
    if vocab_size is None:
        raise UsageError("the encoder of this model reads audio, not text.")
    if not ids:
        raise InvalidSourceError(f"the source {label!r} has 0 tokens; nothing to encode.")
    if limit is not None and len(ids) > limit:
        raise InvalidSourceError(
            f"the source {label!r} has {len(ids)} tokens, "
            f"but this encoder has {limit} positions; shorten or split it."
        )
    strange = next((i for i in ids if not 0 <= i < vocab_size), None)
    if strange is not None:
        raise UsageError(
            f"source token ids must be from 0 to {vocab_size - 1}, but one is {strange}."
        )


def _how(network: Network, preprocessing: str) -> str:
    """``preprocessing``, marked where what follows it makes keys and values."""
    return preprocessing if network.encoder is not None else f"{KV_PREPROCESSING} {preprocessing}"


def _key(network: Network, source: str, preprocessing: str, maker: str | None = None) -> MemoryKey:
    """``source`` is the digest of its canonical bytes."""
    encoder = network.spec.encoder
    return MemoryKey(
        source=source,
        modality="text" if encoder is None else encoder.modality,
        preprocessing=preprocessing,
        encoder=network.encoder_digest if maker is None else maker,
        dtype=str(network.dtype).removeprefix("torch."),
        hash=network.hash,
    )


def _stem(network: Network) -> AudioStemSpec:
    encoder = network.spec.encoder
    if encoder is None or encoder.audio is None:
        reads = "no source at all" if encoder is None else "text"
        raise UsageError(f"the encoder of this model reads {reads}, not audio.")
    return encoder.audio


def label_of(text: str) -> str:
    """The first words, as what a person would call a text."""
    line = " ".join(text.split())
    return line if len(line) <= LABEL_CHARACTERS else line[: LABEL_CHARACTERS - 1] + "…"
