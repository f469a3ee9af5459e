"""A Memory: what an encoder made of one source, named by its content.

Axes: S positions, D model width.
"""

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from xattn.errors import require
from xattn.spec import Modality

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Span:
    """Where in the source one position of a memory comes from: ``[start, end)`` in ``unit``.

    ``unit`` is ``"characters"`` for text, ``"seconds"`` for audio.
    """

    start: float
    end: float
    unit: str


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
    tenant: str = ""

    @property
    def digest(self) -> str:
        """64 hexadecimal characters."""
        return digest_of(json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode())

    def __str__(self) -> str:
        return self.digest


def digest_of(*parts: bytes) -> str:
    """SHA-256 over length-prefixed ``parts``, in hexadecimal."""
    state = hashlib.sha256()
    for part in parts:
        state.update(struct.pack("<Q", len(part)))
        state.update(part)
    return state.hexdigest()


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

    def __len__(self) -> int:
        """Positions."""
        return self.states_SD.shape[0]

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
