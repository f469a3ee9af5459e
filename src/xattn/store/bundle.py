"""Memories on their way from one store to another, in one stream.

A bundle is a line that says what it is, then for each memory a line of JSON with its key and size,
then the bytes of its payload; a last line says how many there were. Nothing in it names a file: an
importer takes the key from the payload itself, which must be what the line says, and puts it where
that key belongs.
"""

import json
from collections.abc import Iterable, Iterator
from typing import IO, Any

from xattn.errors import CorruptEntryError, shown

MAGIC = b"xattn memories 2\n"
MOST_LINE_BYTES = 4096
MOST_PAYLOAD_BYTES = 2**36
PIECE = 2**24
"""Read at once: a line that lies about a size must not take that much memory."""


def write(stream: IO[bytes], payloads: Iterable[tuple[str, bytes]]) -> int:
    """Write (key, payload) pairs; how many."""
    stream.write(MAGIC)
    count = 0
    for digest, content in payloads:
        line = json.dumps({"key": digest, "bytes": len(content)})
        stream.write(line.encode() + b"\n")
        stream.write(content)
        count += 1
    stream.write(json.dumps({"end": count}).encode() + b"\n")
    stream.flush()
    return count


def read(stream: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    """(key, payload) pairs as the bundle claims them; nothing of it is to be believed yet.

    Raises :class:`CorruptEntryError` where it is none, or is cut off.
    """
    if stream.readline(MOST_LINE_BYTES) != MAGIC:
        raise CorruptEntryError("this is no bundle of memories (`xattn cache export` makes one).")
    count = 0
    while (line := stream.readline(MOST_LINE_BYTES)) != json.dumps({"end": count}).encode() + b"\n":
        if not line:
            raise CorruptEntryError(f"the bundle is cut off after {count} memories.")
        digest, size = _entry(line)
        content = bytearray()
        while len(content) < size and (piece := stream.read(min(PIECE, size - len(content)))):
            content += piece
        if len(content) != size:
            raise CorruptEntryError(
                f"the bundle is cut off: {digest} should have {size} bytes and has {len(content)}."
            )
        yield digest, bytes(content)
        count += 1


def _entry(line: bytes) -> tuple[str, int]:
    try:
        entry: dict[str, Any] = json.loads(line)
        digest, size = entry["key"], entry["bytes"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptEntryError(f"the bundle has a line that is none: {shown(line)}.") from error
    fits = isinstance(digest, str) and isinstance(size, int) and 0 < size <= MOST_PAYLOAD_BYTES
    if not fits:
        raise CorruptEntryError(f"the bundle has a line that is none: {shown(line)}.")
    return digest, size
