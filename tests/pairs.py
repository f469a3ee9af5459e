"""The same tiny weights in transformers and in xattn, and memories made by hand."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny
import torch

from xattn.memory import Memory, MemoryKey, Span
from xattn.models.network import Network


@dataclass(frozen=True)
class Pair:
    """The same weights in transformers and in xattn."""

    name: str
    theirs: Any
    ours: Network
    directory: Path

    @property
    def decoder_only(self) -> bool:
        return tiny.TINY[self.name].decoder_only

    def inputs(self, sources: int, length: int, *, seed: int = 3) -> tuple[torch.Tensor, dict]:
        values, named = tiny.hf_memory_inputs(self.name, sources, length, seed=seed)
        return values, named(values)

    def memories(self, values: torch.Tensor) -> list[Memory]:
        encode = (
            self.ours.encode_tokens if tiny.TINY[self.name].text_input else self.ours.encode_mel
        )
        inputs = values.tolist() if tiny.TINY[self.name].text_input else values
        return [
            memory_of(states, f"{self.name} {values[i].tolist()}")
            for i, states in enumerate(encode(inputs))
        ]


def memory_of(states_SD: torch.Tensor, source: str) -> Memory:
    key = MemoryKey(
        source=source, modality="text", preprocessing="test", encoder="test", dtype="float32"
    )
    return Memory(
        states_SD=states_SD,
        key=key,
        spans=[Span(i, i + 1, "tokens") for i in range(len(states_SD))],
    )


def random_tokens(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, tiny.VOCAB, (rows, length), generator=generator)
