"""One memory as one file: safetensors, with a header that says what it is and proves it.

The file's metadata holds

``xattn``    JSON: format version, key, codec and its error, label, details, what encoding cost
``format``   the format's version once more: a damaged one is not taken for a newer one
``digest``   over that JSON and every tensor, by the hash of the key
``mac``      the digest under the store's secret, where it has one

so that a payload says all there is to know about itself, and an index can be made again from the
payloads alone. Nothing in it is ever unpickled.
"""

import errno
import hashlib
import hmac
import json
import math
import os
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from safetensors.torch import save
from torch import Tensor

from xattn.counts import CODECS, KV_BLOCK, CodecName
from xattn.errors import CorruptEntryError, StoreError, StoreFormatError, is_number, is_whole
from xattn.memory import Memory, MemoryKey, SpanTable, bytes_of, digest_of
from xattn.store import files
from xattn.store.codecs import FLOATS, CodecError, decode, encode, error_of, through

FORMAT = 1
DTYPES = {**FLOATS}
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I8": torch.int8,
    "U8": torch.uint8,
}
"""What safetensors calls the types of number that payloads have."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a payload says of itself."""

    key: MemoryKey
    codec: CodecName
    positions: int
    width: int
    label: str
    details: dict[str, Any]
    span_unit: str
    encode_seconds: float
    """What making the memory took: what a hit saves."""
    created: float
    """Unix time."""
    expires: float | None
    """Unix time after which it is no longer given back."""
    error: CodecError

    def dumps(self) -> str:
        """As JSON, the format's version with it."""
        return json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)

    @classmethod
    def loads(cls, text: str, outer: str) -> "Header":
        """From JSON. Raises :class:`StoreFormatError` for another version of the format.

        ``outer`` is the version that the file gives outside of it.
        """
        try:
            values = json.loads(text)
            version = values.pop("format")
            if str(version) != outer:
                raise CorruptEntryError("it gives two versions of its format.")
            if version != FORMAT:
                raise StoreFormatError(
                    f"the payload has format {version}, and this xattn reads {FORMAT}."
                )
            header = cls(
                **{
                    **values,
                    "key": MemoryKey(**values["key"]),
                    "error": CodecError(**values["error"]),
                }
            )
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise CorruptEntryError(f"the header cannot be read ({error!r}).") from error
        if not header.is_sound:
            raise CorruptEntryError(f"the header describes no memory: {text[:200]}")
        return header

    @property
    def is_sound(self) -> bool:
        """Whether every field is of its kind: before that, nothing of it is to be believed."""
        key = asdict(self.key)
        key.pop("schema_version")
        texts = (self.codec, self.label, self.span_unit, *key.values())
        return (
            all(map(_is_utf8, texts))
            and self.codec in CODECS
            and self.codec == self.key.codec
            and self.key.dtype in DTYPES
            and is_whole(self.width, 1)
            and is_whole(self.positions, 0)
            and type(self.details) is dict
            and all(map(is_number, (self.encode_seconds, self.created)))
            and (self.expires is None or is_number(self.expires))
            and all(map(is_number, astuple(self.error)))
        )


def pack(
    memory: Memory,
    codec: CodecName,
    *,
    encode_seconds: float,
    created: float,
    expires: float | None = None,
    secret: bytes | None = None,
    lost: CodecError | None = None,
) -> bytes:
    """The bytes of a payload. Raises :class:`StoreError` for states that the codec cannot hold.

    ``lost`` is what they lost before, where they were decoded from another payload.
    """
    _require_keepable(memory)
    spans = SpanTable.of(memory.spans)
    tensors = encode(memory.states_SD, codec, _block(memory))
    tensors["spans"] = spans.bounds_S2.contiguous()
    if memory.mask_S is not None:
        tensors["mask"] = memory.mask_S.cpu().to(torch.uint8)
    decoded = decode(tensors, codec, memory.width, DTYPES[memory.key.dtype]).float()
    if not bool(decoded.isfinite().all()):
        raise StoreError(
            f"{memory!r} cannot be kept as {codec}: it has numbers that are none, or too large."
        )
    header = Header(
        key=memory.key,
        codec=codec,
        positions=len(memory),
        width=memory.width,
        label=memory.label.encode("utf-8", "replace").decode(),
        details=memory.details,
        span_unit=spans.unit,
        encode_seconds=float(encode_seconds),
        created=created,
        expires=None if expires is None else float(expires),
        error=lost or error_of(memory.states_SD.detach().cpu(), decoded),
    )
    if not header.is_sound:
        raise StoreError(f"{memory!r} cannot be kept: no payload can say what it is ({header}).")
    text = header.dumps()
    digest = _digest(text, tensors, memory.key)
    metadata = {"xattn": text, "format": str(FORMAT), "digest": digest}
    if secret is not None:
        metadata["mac"] = _mac(secret, digest, memory.key)
    return save(tensors, metadata)


def _require_keepable(memory: Memory) -> None:
    """Raise :class:`StoreError` for a memory that no payload can hold."""
    if memory.key.dtype not in DTYPES:
        raise StoreError(
            f"{memory!r} cannot be kept: its dtype must be one of {', '.join(DTYPES)}, but is "
            f"{memory.key.dtype!r}."
        )
    try:
        json.dumps(deepcopy(memory.details))  # as it is copied for each who asks
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(
            f"{memory!r} cannot be kept: its details are no JSON ({error})."
        ) from error


def as_kept(memory: Memory, codec: CodecName) -> Memory:
    """``memory`` as it comes back from a store with this codec."""
    return replace(memory, states_SD=through(memory.states_SD, codec, _block(memory)))


def _block(memory: Memory) -> int | None:
    """Numbers of a position that share a scale: all, or a few where they are of many layers."""
    return KV_BLOCK if memory.holds_kv else None


class Payload:
    """A payload that was opened: its header, and its tensors as views of the mapped file.

    Raises :class:`CorruptEntryError` for a file that is none, :class:`StoreFormatError` for one of
    another version, and OSError as the system does. None of it says that the content is what was
    written: that is :meth:`verify`.
    """

    def __init__(self, content: files.Pages | bytearray) -> None:
        self.content = content
        self._tensors, self._metadata = read_safetensors(content)
        self.header = Header.loads(
            self._metadata.get("xattn", "null"), self._metadata.get("format", "")
        )

    @classmethod
    def open(cls, path: Path) -> tuple["Payload", os.stat_result]:
        """The payload in a file, and what the system says of that very file."""
        try:
            content, status = files.map_private(path)
        except ValueError as error:
            raise CorruptEntryError("the file is empty.") from error
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise CorruptEntryError("it is a link, which a store never makes.") from error
            raise
        return cls(content), status

    def verify(self, digest: str | None = None, secret: bytes | None = None) -> None:
        """Raise :class:`CorruptEntryError` unless this is the whole, unchanged payload.

        ``digest`` is that of the key it was found under. With a ``secret``, it must have been
        written by someone who knows it.
        """
        key = self.header.key
        if digest is not None and key.digest != digest:
            raise CorruptEntryError("it is another memory than its name says.")
        tensors = self._tensors
        found = _digest(self._metadata["xattn"], tensors, key)
        if not _same(found, self._metadata.get("digest", "")):
            raise CorruptEntryError("its digest is not that of its content.")
        if secret is not None:
            mac = _mac(secret, found, key)
            if not _same(mac, self._metadata.get("mac", "")):
                raise CorruptEntryError("it was not written with this store's secret.")

    def memory(self) -> Memory:
        """The memory, in the dtype that its key names."""
        header, tensors = self.header, self._tensors
        try:
            states_SD = decode(tensors, header.codec, header.width, DTYPES[header.key.dtype])
            if len(states_SD) != header.positions:
                raise CorruptEntryError(
                    f"its header says {header.positions} positions, and it has {len(states_SD)}."
                )
            spans = SpanTable(tensors["spans"], header.span_unit)
            mask_S = tensors["mask"].bool() if "mask" in tensors else None
            return Memory(
                states_SD=states_SD,
                mask_S=mask_S,
                key=header.key,
                spans=spans,
                label=header.label,
                details=header.details,
            )
        except (
            KeyError,
            ValueError,
            TypeError,
            IndexError,
            ArithmeticError,
            RuntimeError,
        ) as error:
            raise CorruptEntryError(f"its tensors do not make a memory ({error!r}).") from error


def read_safetensors(content: files.Pages | bytearray) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, without a copy.

    The format is a length (u64), a JSON object of that length, and the data
    (https://huggingface.co/docs/safetensors). The package opens a file twice, and so may read two
    different ones where another process replaces it. Raises :class:`CorruptEntryError`.
    """
    length = int.from_bytes(content[:8], "little")
    start = 8 + length
    if len(content) < start:
        raise CorruptEntryError(f"it is cut off: the header ends at byte {start}.")
    try:
        entries = json.loads(bytes(content[8:start]))
        metadata = entries.pop("__metadata__", {})
        tensors = {name: _view(content, start, **entry) for name, entry in entries.items()}
        end = start + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CorruptEntryError(f"its header cannot be read ({error!r}).") from error
    texts = isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    texts = texts and all(_is_utf8(text) for text in metadata.values())
    if end != len(content) or not texts:
        raise CorruptEntryError(f"its tensors end at byte {end}, the file at {len(content)}.")
    return tensors, metadata


def _view(
    content: files.Pages | bytearray,
    start: int,
    *,
    dtype: str,
    shape: list[int],
    data_offsets: list[int],
) -> Tensor:
    kind, (first, last) = _DTYPES[dtype], data_offsets
    count = math.prod(shape)
    fits = all(is_whole(n, 0) for n in (*shape, first, last)) and first % kind.itemsize == 0
    if not fits or last - first != count * kind.itemsize or start + last > len(content):
        raise ValueError(f"a tensor of shape {shape} does not lie at {data_offsets}")
    if count == 0:
        return torch.empty(shape, dtype=kind)
    return torch.frombuffer(content, dtype=kind, count=count, offset=start + first).view(shape)


def _digest(header: str, tensors: Mapping[str, Tensor], key: MemoryKey) -> str:
    parts: list[bytes | memoryview] = [header.encode()]
    for name in sorted(tensors):
        tensor = tensors[name]
        parts += [f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), bytes_of(tensor)]
    return digest_of(*parts, hash=key.hash)


def _same(first: str, second: str) -> bool:
    """Compared in a time that says nothing of where they differ."""
    return hmac.compare_digest(first.encode(), second.encode())


def _is_utf8(text: object) -> bool:
    """Whether it is text without half characters, which no file holds."""
    try:
        return isinstance(text, str) and text.encode() is not None
    except UnicodeEncodeError:
        return False


def _mac(secret: bytes, digest: str, key: MemoryKey) -> str:
    if key.hash == "sha256":
        return hmac.new(secret, digest.encode(), hashlib.sha256).hexdigest()
    keyed = blake3(secret, derive_key_context="xattn 2026 store payload mac").digest()
    return str(blake3(digest.encode(), key=keyed).hexdigest())
