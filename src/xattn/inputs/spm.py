"""SentencePiece model files, read without the sentencepiece package.

A ``.model`` file is a protocol buffer (sentencepiece_model.proto): pieces with scores and types,
and the table of the normaliser.
"""

import base64
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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
    if charsmap and not (isinstance(charsmap, bytes) and _holds_together(charsmap)):
        raise ValueError("its normaliser's table points outside itself")
    return SentencePieceFile(
        pieces=tuple(pieces),
        algorithm=int(settings[_TRAINER].get(3, UNIGRAM)),
        charsmap=charsmap if isinstance(charsmap, bytes) else b"",
    )


def require_sound_charsmap(encoded: bytes, path: Path) -> None:
    """Raise :class:`CorruptCheckpointError` unless the table, in base64, can be walked."""
    try:
        sound = _holds_together(base64.b64decode(encoded, validate=True))
    except ValueError:
        sound = False
    if not sound:
        raise CorruptCheckpointError(
            f"{path}: the table of its normaliser is damaged; fetch the checkpoint again."
        )


def _holds_together(charsmap: bytes) -> bool:
    """Whether every link of the normaliser's table leads to a place in it.

    The table is the size of a double-array trie in bytes, its units of 32 bits (darts-clone), and
    the texts, each ended by a zero byte, that its leaves point to. The library that walks it does
    not check.
    """
    size = int.from_bytes(charsmap[:4], "little")
    if size == 0 or size % 1024 or 4 + size > len(charsmap):
        return False
    units = np.frombuffer(charsmap, "<u4", count=size // 4, offset=4)
    texts = np.frombuffer(charsmap, np.uint8, offset=4 + size)
    inner = units >> 31 == 0
    offsets = (units >> 10) << ((units & 512) >> 6)
    places = np.arange(len(units), dtype=np.uint32) ^ offsets
    if (places[inner] >= len(units)).any():
        return False
    with_leaf = inner & (units & 256 != 0)
    targets = units[places[with_leaf]] & 0x7FFFFFFF
    if (targets >= len(texts)).any() or (len(texts) and texts[-1] != 0):
        return False
    texts.tobytes().decode()  # raises the ValueError that its reader turns into one of ours
    # A text begins with the first byte of a character.
    return not ((texts[targets] & 0xC0) == 0x80).any()


def _piece(data: bytes) -> Piece:
    found = dict(fields(data))
    text, score, kind = found.get(1, b""), found.get(2), found.get(3, 1)
    if not isinstance(text, bytes) or not isinstance(kind, int):
        raise ValueError("a piece has fields of the wrong type")
    number = struct.unpack("<f", score)[0] if isinstance(score, bytes) else 0.0
    return Piece(text=text.decode(), score=number, kind=kind)
