"""SentencePiece model files, read without the sentencepiece package.

A ``.model`` file is a protocol buffer (sentencepiece_model.proto): pieces with scores and types,
and the table of the normaliser.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xattn.errors import CorruptCheckpointError

MARK = "\u2581"
"""SentencePiece's sign for a space."""
_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
UNIGRAM, BPE = 1, 2
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One entry of the vocabulary."""

    text: str
    score: float = 0.0
    kind: int = NORMAL
    """``NORMAL``, ``UNKNOWN``, ``CONTROL`` or ``USER_DEFINED``; 5 is unused and 6 a byte."""


@dataclass(frozen=True, kw_only=True)
class SentencePieceFile:
    """What a ``.model`` file holds, as far as it matters here."""

    pieces: tuple[Piece, ...]
    algorithm: int
    """``UNIGRAM`` or ``BPE``; 3 is whole words and 4 single characters."""
    charsmap: bytes
    """The normaliser's compiled table; empty for the identity."""


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) pairs of a protocol buffer: varints as int, the rest as bytes.

    Raises ValueError where the data ends in the middle of a field.
    """
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, place = _varint(data, place)
            yield number, value
            continue
        if wire == 2:
            length, place = _varint(data, place)
        else:
            length = {1: 8, 5: 4}.get(wire, -1)
        if length < 0 or place + length > len(data):
            raise ValueError(f"field {number} at byte {place} is cut off or has no known type")
        yield number, data[place : place + length]
        place += length


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if place >= len(data) or shift > 63:
            raise ValueError(f"a number at byte {place} is cut off")
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def read_sentencepiece(path: Path) -> SentencePieceFile:
    """Read a ``.model`` file. Raises :class:`CorruptCheckpointError` if it is cut off."""
    try:
        return _parse(path.read_bytes())
    except (ValueError, struct.error) as error:
        raise CorruptCheckpointError(
            f"{path} is not a SentencePiece model, or is cut off ({error}); fetch it again."
        ) from error


def _parse(data: bytes) -> SentencePieceFile:
    pieces = []
    settings: dict[int, dict[int, int | bytes]] = {}
    for number, value in fields(data):
        if number == _PIECE and isinstance(value, bytes):
            pieces.append(_piece(value))
        elif number in (_TRAINER, _NORMALIZER) and isinstance(value, bytes):
            settings[number] = dict(fields(value))
    # Both follow the pieces, so a file without them was cut off between two fields.
    if not pieces or len(settings) < 2:
        raise ValueError("it lacks its pieces or its settings")
    charsmap = settings[_NORMALIZER].get(2, b"")
    return SentencePieceFile(
        pieces=tuple(pieces),
        algorithm=int(settings[_TRAINER].get(3, UNIGRAM)),
        charsmap=charsmap if isinstance(charsmap, bytes) else b"",
    )


def _piece(data: bytes) -> Piece:
    found = dict(fields(data))
    text, score, kind = found.get(1, b""), found.get(2), found.get(3, 1)
    if not isinstance(text, bytes) or not isinstance(kind, int):
        raise ValueError("a piece has fields of the wrong type")
    number = struct.unpack("<f", score)[0] if isinstance(score, bytes) else 0.0
    return Piece(text=text.decode(), score=number, kind=kind)
