"""A language model without a network: logits are drawn from a digest of memory and tokens.

Any row that is mixed up with another one shows, since every prefix has logits of its own.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import torch

from xattn.memory import Memory, MemoryKey, Span
from xattn.models.parallel import Parallel
from xattn.spec import (
    AttentionSpec,
    DecoderSpec,
    FeedForwardSpec,
    ModelSpec,
    NormSpec,
    Placement,
    PositionSpec,
    TokenSpec,
)


@lru_cache(maxsize=100_000)
def logits_of(vocab: int, memory: str, tokens: tuple[int, ...]) -> torch.Tensor:
    digest = hashlib.sha256(repr((memory, tokens)).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    return 2 * torch.randn(vocab, generator=generator)


class TreeState:
    def __init__(self, memories: Sequence[str]) -> None:
        self.memories = list(memories)
        self.tokens: list[tuple[int, ...]] = [()] * len(self.memories)

    def reorder(self, rows: Sequence[int]) -> None:
        self.memories = [self.memories[row] for row in rows]
        self.tokens = [self.tokens[row] for row in rows]

    def truncate(self, lengths: Sequence[int]) -> None:
        self.tokens = [seen[:n] for seen, n in zip(self.tokens, lengths, strict=True)]


class TreeNetwork:
    """As much of a network as decoding needs."""

    device = torch.device("cpu")

    def __init__(self, vocab: int, eos: tuple[int, ...] = (0,), limit: int | None = None) -> None:
        self.rows_of_steps: list[int] = []
        attention = AttentionSpec(heads=1, head_width=4, kv_heads=1, scale=0.5)
        decoder = DecoderSpec(
            width=4,
            layers=1,
            self_attention=attention,
            feed_forward=FeedForwardSpec(width=4, activation="relu"),
            norm=NormSpec(),
            norm_place="before",
            position=PositionSpec(kind="learned", limit=limit),
            vocab_size=vocab,
            placement=Placement.none(1),
        )
        self.restricted: list[list[int]] = []
        """The tokens of those steps that asked for some only."""
        self.spec = ModelSpec(family="tree", decoder=decoder, tokens=TokenSpec(eos=eos))

    def start(
        self,
        attended: Sequence[Sequence[Memory]],
        *,
        form: str = "materialized",
        most: int | None = None,
        parallel: Sequence[Parallel] | None = None,
        adapters: Sequence[str | None] | None = None,
    ) -> TreeState:
        return TreeState(["+".join(m.label for m in memories) for memories in attended])

    def step(
        self,
        tokens_RT: torch.Tensor,
        state: TreeState,
        counts_R: torch.Tensor | None = None,
        *,
        only: Sequence[int] | None = None,
    ) -> torch.Tensor:
        self.rows_of_steps.append(len(tokens_RT))
        counts = [tokens_RT.shape[1]] * len(tokens_RT) if counts_R is None else counts_R.tolist()
        state.tokens = [
            (*seen, *new[:count])
            for seen, new, count in zip(state.tokens, tokens_RT.tolist(), counts, strict=True)
        ]
        vocab = self.spec.decoder.vocab_size
        rows = zip(state.memories, state.tokens, strict=True)
        logits_RV = torch.stack([logits_of(vocab, memory, tokens) for memory, tokens in rows])
        if only is None:
            return logits_RV
        self.restricted.append(list(only))
        few_RV = torch.full_like(logits_RV, -torch.inf)
        few_RV[:, only] = logits_RV[:, only]
        return few_RV

    def step_all(self, tokens_RT: torch.Tensor, state: TreeState) -> torch.Tensor:
        columns = [self.step(column[:, None], state) for column in tokens_RT.unbind(1)]
        self.rows_of_steps[-len(columns) :] = [len(tokens_RT)]
        return torch.stack(columns, dim=1)


def memory(label: str) -> Memory:
    key = MemoryKey(
        source=label, modality="text", preprocessing="none", encoder="none", dtype="float32"
    )
    return Memory(
        states_SD=torch.zeros(1, 4), key=key, spans=[Span(0, 1, "characters")], label=label
    )
