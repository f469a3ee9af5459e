"""A Memory: what an encoder made of one source, named by its content.

Axes: S positions, D model width.
"""

import hashlib
import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, overload

import torch
from blake3 import blake3
from torch import Tensor

from xattn.errors import require
from xattn.spec import Modality

SCHEMA_VERSION = 3
Hash = Literal["blake3", "sha256"]
HASHES: dict[Hash, Callable[[], Any]] = {"blake3": blake3, "sha256": hashlib.sha256}
"""BLAKE3 is several times faster; SHA-256 is for where a standard asks for it."""


@dataclass(frozen=True, slots=True)
class Span:
    """Where in the source one position of a memory comes from: ``[start, end)`` in ``unit``.

    ``unit`` is ``"characters"`` for text, ``"seconds"`` for audio.
    """

    start: float
    end: float
    unit: str


KV_PREPROCESSING = "kv/1"
"""Beginning of the preprocessing of memories that are keys and values."""


class SpanTable(Sequence[Span]):
    """Spans of one unit as one tensor ``[S, 2]`` of starts and ends, float64."""

    def __init__(self, bounds_S2: Tensor, unit: str) -> None:
        fits = bounds_S2.dim() == 2 and bounds_S2.shape[1] == 2
        require(fits, "bounds_S2", "of shape [S, 2]", tuple(bounds_S2.shape))
        self.bounds_S2, self.unit = bounds_S2.double(), unit

    @classmethod
    def of(cls, spans: Sequence[Span]) -> "SpanTable":
        """``spans`` as a table; :class:`UsageError` where they have several units."""
        if isinstance(spans, SpanTable):
            return spans
        units = {span.unit for span in spans} or {"positions"}
        require(len(units) == 1, "spans", "of one unit", sorted(units))
        bounds = torch.tensor([(s.start, s.end) for s in spans], dtype=torch.float64)
        return cls(bounds.reshape(-1, 2), units.pop())

    @classmethod
    def even(cls, count: int, step: float, unit: str, *, start: float = 0.0) -> "SpanTable":
        """``count`` spans of equal length, one after the other."""
        ends = start + step * torch.arange(1, count + 1, dtype=torch.float64)
        starts = start + step * torch.arange(count, dtype=torch.float64)
        return cls(torch.stack((starts, ends), dim=1), unit)

    def __len__(self) -> int:
        return self.bounds_S2.shape[0]

    @overload
    def __getitem__(self, place: int) -> Span: ...
    @overload
    def __getitem__(self, place: slice) -> "SpanTable": ...
    def __getitem__(self, place: int | slice) -> "Span | SpanTable":
        if isinstance(place, slice):
            return SpanTable(self.bounds_S2[place], self.unit)
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        start, end = self.bounds_S2[place].tolist()
        return Span(start, end, self.unit)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, SpanTable):
            return self.unit == other.unit and torch.equal(self.bounds_S2, other.bounds_S2)
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"SpanTable({len(self)} spans of {self.unit})"


@dataclass(frozen=True, kw_only=True)
class MemoryKey:
    """Digest over everything that can change the bytes of a memory.

    Fields are hashed with their lengths, so that no two different lists of fields collide.
    """

    source: str
    """Digest of the canonical source bytes."""
    modality: Modality
    preprocessing: str
    """Name, version and settings of what turned the source into encoder inputs."""
    encoder: str
    """Digest of the encoder's weights, or revision plus adapter."""
    dtype: str
    schema_version: int = SCHEMA_VERSION
    codec: str = "float32"
    """How the states were written down on their way, which may have changed them."""
    tenant: str = ""
    """Salt of the tenant whose store holds the memory."""
    hash: Hash = "blake3"
    """What digests are taken with, this one too."""

    def __post_init__(self) -> None:
        require(self.hash in HASHES, "hash", f"one of {', '.join(HASHES)}", self.hash)

    @property
    def digest(self) -> str:
        """64 hexadecimal characters."""
        content = json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()
        return digest_of(content, hash=self.hash)

    def __str__(self) -> str:
        return self.digest


Part = bytes | memoryview


def digest_of(*parts: Part, hash: Hash = "blake3") -> str:
    """Digest over length-prefixed ``parts``: 64 hexadecimal characters."""
    state = HASHES[hash]()
    for part in parts:
        state.update(struct.pack("<Q", len(part)))
        state.update(part)
    return str(state.hexdigest())


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor on the CPU, without a copy where it is contiguous."""
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    return memoryview(flat.numpy())  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True, eq=False)
class Memory:
    """One encoded source. Immutable; shared by every beam and request that attends to it."""

    states_SD: Tensor
    key: MemoryKey
    spans: Sequence[Span] = field(repr=False)
    """One span per position."""
    mask_S: Tensor | None = field(default=None, repr=False)
    """True where a position may be read; None when all may."""
    label: str = ""
    """What a person would call the source: a file name, the first words."""
    source_tokens: tuple[int, ...] = field(default=(), repr=False)
    """Token ids of a text, where it was encoded in this process; at rest a memory has none."""
    details: dict[str, Any] = field(default_factory=dict, repr=False)
    """What the input side wants to remember (seconds of audio, source language)."""

    def __post_init__(self) -> None:
        require(
            self.states_SD.dim() == 2, "states_SD", "of shape [S, D]", tuple(self.states_SD.shape)
        )
        require(
            len(self.spans) == len(self),
            "spans",
            f"one per position ({len(self)})",
            len(self.spans),
        )
        if self.mask_S is not None:
            ok = self.mask_S.shape == (len(self),) and self.mask_S.dtype == torch.bool
            require(ok, "mask_S", f"bool of shape [{len(self)}]", self.mask_S)
        # Once, and for all who read it where it lies.
        object.__setattr__(self, "states_SD", self.states_SD.contiguous())

    def __len__(self) -> int:
        """Positions."""
        return self.states_SD.shape[0]

    @property
    def holds_kv(self) -> bool:
        """Whether its states are a decoder-only model's own keys and values, layer after layer."""
        return self.key.preprocessing.startswith(KV_PREPROCESSING)

    @property
    def modality(self) -> Modality:
        """What the source was."""
        return self.key.modality

    @property
    def width(self) -> int:
        """Model width of the states."""
        return self.states_SD.shape[1]

    @property
    def size_bytes(self) -> int:
        """Bytes held by the states and the mask."""
        mask = 0 if self.mask_S is None else self.mask_S.nbytes
        return self.states_SD.nbytes + mask

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.states_SD.shape))
        what = f"{self.modality}, {shape} {self.key.dtype}, {self.key.digest[:12]}"
        return f"Memory({self.label!r}, {what})"
