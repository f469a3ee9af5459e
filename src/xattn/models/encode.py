"""From sources to memories: canonical bytes, encoder inputs, one encoder pass, spans and key.

Axes: N sources, S positions, D model width, M mel bins, F log-mel frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from xattn.errors import (
    InvalidSourceError,
    SourceNotFoundError,
    UnreadableSourceError,
    UsageError,
)
from xattn.inputs import audio
from xattn.inputs.audio import Audio
from xattn.inputs.text import Tokenizer, canonical_text
from xattn.memory import Memory, MemoryKey, Span, digest_of
from xattn.models.network import Network
from xattn.spec import AudioStemSpec

LABEL_CHARACTERS = 40
TEXT_PREPROCESSING = "text/1"


@dataclass(frozen=True)
class TextSource:
    """A text and, where the tokenizer knows languages, the one it is written in."""

    text: str
    language: str | None = None


def encode_texts(
    network: Network, tokenizer: Tokenizer | None, sources: Sequence[TextSource]
) -> list[Memory]:
    """One memory per text, in one padded encoder pass.

    Texts are encoded in their canonical form (NFC), and the spans count its characters.

    Raises :class:`InvalidSourceError` where a text is empty or has more tokens than the encoder
    has positions, :class:`UsageError` for a language that the tokenizer does not know.
    """
    if tokenizer is None:
        raise UsageError(
            "this checkpoint has no tokenizer, so it cannot encode text; "
            "pass token ids (a list of int)."
        )
    ids: list[list[int]] = []
    spans: list[list[Span]] = []
    keys: list[MemoryKey] = []
    labels: list[str] = []
    for source in sources:
        text = canonical_text(source.text)
        if not text.strip():
            raise InvalidSourceError(f"the source text is empty ({text!r}); nothing to encode.")
        side = tokenizer if source.language is None else tokenizer.for_language(source.language)
        encoded = side.encode(text)
        ids.append(encoded.ids)
        spans.append(encoded.spans)
        keys.append(
            _key(network, digest_of(text.encode()), f"{TEXT_PREPROCESSING} {side.identity}")
        )
        labels.append(_label(text))
    return _encode_ids(network, ids, keys, spans, labels)


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


def encode_token_ids(network: Network, sources: Sequence[Sequence[int]]) -> list[Memory]:
    """One memory per sequence of encoder token ids, for callers with a tokenizer of their own."""
    keys = [_key(network, digest_of(str(list(ids)).encode()), "token-ids/1") for ids in sources]
    spans = [[Span(i, i + 1, "tokens") for i in range(len(ids))] for ids in sources]
    labels = [f"{len(ids)} token ids" for ids in sources]
    return _encode_ids(network, [list(ids) for ids in sources], keys, spans, labels)


def encode_audio(network: Network, recording: Audio) -> Memory:
    """One memory of a recording no longer than the encoder's window (30 s for Whisper).

    Raises :class:`InvalidSourceError` where it is longer.
    """
    stem = _stem(network)
    if recording.seconds > stem.seconds:
        raise InvalidSourceError(
            f"{recording.label}: {recording.seconds:.1f} s of audio, but one memory of this model "
            f"holds {stem.seconds:g} s; use transcribe() for long recordings, or cut it."
        )
    mel_MF = audio.window_log_mel(recording.samples_T, stem.mel_bins, stem.frames)
    preprocessing = f"{audio.PREPROCESSING} window {stem.mel_bins} {stem.frames}"
    key = _key(network, recording.digest, preprocessing)
    return encode_mel_window(network, mel_MF, key, label=recording.label, seconds=recording.seconds)


def encode_mel_window(
    network: Network,
    mel_MF: Tensor,
    key: MemoryKey,
    *,
    label: str,
    seconds: float,
    start_seconds: float = 0.0,
) -> Memory:
    """The memory of one window of log-mel frames.

    It begins at ``start_seconds`` of the recording, and ``seconds`` of it hold audio.
    """
    stem = _stem(network)
    states_SD = network.encode_mel(mel_MF.unsqueeze(0))[0]
    step = stem.seconds / len(states_SD)
    spans = [
        Span(start_seconds + i * step, start_seconds + (i + 1) * step, "seconds")
        for i in range(len(states_SD))
    ]
    return Memory(
        states_SD=states_SD, key=key, spans=spans, label=label, details={"seconds": seconds}
    )


def _encode_ids(
    network: Network,
    ids: list[list[int]],
    keys: list[MemoryKey],
    spans: list[list[Span]],
    labels: list[str],
) -> list[Memory]:
    spec = network.spec.encoder
    if spec is None or spec.vocab_size is None:
        reads = "no source at all" if spec is None else f"{spec.modality}, not text"
        raise UsageError(f"the encoder of this model reads {reads}.")
    limit = spec.position.limit
    for row, label in zip(ids, labels, strict=True):
        if not row:
            raise InvalidSourceError(f"the source {label!r} has 0 tokens; nothing to encode.")
        if limit is not None and len(row) > limit:
            raise InvalidSourceError(
                f"the source {label!r} has {len(row)} tokens, "
                f"but this encoder has {limit} positions; shorten or split it."
            )
        strange = next((i for i in row if not 0 <= i < spec.vocab_size), None)
        if strange is not None:
            raise UsageError(
                f"source token ids must be from 0 to {spec.vocab_size - 1}, but one is {strange}."
            )
    states = network.encode_tokens(ids)
    return [
        Memory(states_SD=states_SD, key=key, spans=span, label=label)
        for states_SD, key, span, label in zip(states, keys, spans, labels, strict=True)
    ]


def _key(network: Network, source: str, preprocessing: str) -> MemoryKey:
    assert network.spec.encoder is not None
    return MemoryKey(
        source=source,
        modality=network.spec.encoder.modality,
        preprocessing=preprocessing,
        encoder=network.encoder_digest,
        dtype=str(network.dtype).removeprefix("torch."),
    )


def mel_window_key(network: Network, mel_MF: Tensor) -> MemoryKey:
    """The key of a window cut from a longer recording's log-mel frames."""
    stem = _stem(network)
    content = digest_of(mel_MF.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return _key(network, content, f"{audio.PREPROCESSING} frames {stem.mel_bins} {stem.frames}")


def _stem(network: Network) -> AudioStemSpec:
    encoder = network.spec.encoder
    if encoder is None or encoder.audio is None:
        reads = "no source at all" if encoder is None else "text"
        raise UsageError(f"the encoder of this model reads {reads}, not audio.")
    return encoder.audio


def _label(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LABEL_CHARACTERS else line[: LABEL_CHARACTERS - 1] + "…"
