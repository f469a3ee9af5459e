"""Memories and models for tests of the store, made without an encoder."""

import hashlib
import struct
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch

from xattn.memory import Memory, MemoryKey, SpanTable, digest_of
from xattn.models.encode import Prepared


def key_of(of: str, **changes: Any) -> MemoryKey:
    values = dict(
        source=digest_of(of.encode()),
        modality="text",
        preprocessing="text/1 plain",
        encoder="e" * 64,
        dtype="float32",
    )
    return MemoryKey(**{**values, **changes})


def states_of(source: str, positions: int = 6, width: int = 8) -> torch.Tensor:
    """What this source is always encoded to, bit for bit."""
    seed = int.from_bytes(hashlib.sha256(source.encode()).digest()[:7], "little")
    return torch.randn(positions, width, generator=torch.Generator().manual_seed(seed))


def memory_of(source: str, positions: int = 6, width: int = 8, **changes: Any) -> Memory:
    return Memory(
        states_SD=states_of(source, positions, width),
        key=key_of(source, **changes),
        spans=SpanTable.even(positions, 1.0, "characters"),
        label=source,
        details={"seconds": 1.5},
    )


def assert_same(found: Memory | None, want: Memory) -> None:
    assert found is not None
    assert torch.equal(found.states_SD, want.states_SD)
    assert found.spans == want.spans
    assert (found.label, found.details) == (want.label, want.details)


class Encoder:
    """Encodes a source in no time, or in ``seconds``, and counts."""

    def __init__(self, *, seconds: float = 0.0, positions: int = 6) -> None:
        self.seconds, self.positions = seconds, positions
        self.encoded: list[str] = []
        self._lock = threading.Lock()

    def prepare(self, source: str) -> Prepared:
        return Prepared(
            key=key_of(source),
            inputs=list(source.encode()),
            spans=SpanTable.even(self.positions, 1.0, "characters"),
            label=source,
        )

    def encode_prepared(self, prepared: Sequence[Prepared]) -> list[Memory]:
        time.sleep(self.seconds)
        with self._lock:
            self.encoded += [item.label for item in prepared]
        return [item.memory(states_of(item.label, self.positions)) for item in prepared]


def flip(content: bytes, bit: int) -> bytes:
    """``content`` with one bit changed."""
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << (bit % 8)
    return bytes(changed)


def header_size(content: bytes) -> int:
    """Bytes of a safetensors file before its data."""
    return 8 + struct.unpack("<Q", content[:8])[0]
