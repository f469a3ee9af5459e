"""Some positions of memories made again, with what stands before them in sight.

Memories that a decoder-only model made apart did not see each other. The few positions that a
prompt reads most decide what it understands: these go through the model once more, into the row's
own cache, and are masked where they were (after CacheBlend, Yao et al. 2025, arXiv 2405.16444).

Axes: T tokens that are made again, in the order of their positions; S positions of a memory.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from xattn.errors import UsageError
from xattn.models.decoder import Decoder
from xattn.models.state import DecodeState, Projection, Read

Again = list[tuple[int, int]]
"""(memory, position) of each token that was made again, as the row's cache has them."""


def blend(decoder: Decoder, state: DecodeState, read: Sequence[Tensor], share: float) -> Again:
    """Make the most read positions of a single row again; which. ``state`` holds them then.

    ``read`` is how much is read of each position of each memory, ``[S]``; ``share`` of those behind
    the first memory that saw no other are made again. ``state`` has seen no token.
    """
    [reading] = state.readings
    moved = [j for j, one in enumerate(reading) if one.turn > 0]
    chosen = _most_read([read[j] for j in moved], share)
    if not any(len(places) for places in chosen):
        return []
    kept, tokens, positions, owners = list(reading), [], [], []
    for j, places in zip(moved, chosen, strict=True):
        memory = reading[j].memory
        if len(memory.source_tokens) != len(memory):
            raise UsageError(
                f"{memory!r} does not know its tokens, which are to be read again: take it from "
                "its source (model.remembered, or a library), or leave `recompute` at 0."
            )
        kept[j] = _without(reading[j], places)
        tokens += [memory.source_tokens[place] for place in places]
        positions += [reading[j].start + place for place in places]
        owners += [(j, place) for place in places]
    order = sorted(range(len(tokens)), key=positions.__getitem__)
    tokens_1T = torch.tensor([[tokens[i] for i in order]], device=read[0].device)
    positions_1T = torch.tensor([[positions[i] for i in order]], device=read[0].device)
    state.replace_reading(0, tuple(kept))
    state.hidden = [_later(one, positions_1T[0]) for one in kept]
    decoder.hidden(tokens_1T, state, positions_RT=positions_1T)
    state.hidden = None
    state.offsets[0] -= len(tokens)  # so that what follows stands where it would have
    return [owners[i] for i in order]


def _most_read(read: Sequence[Tensor], share: float) -> list[list[int]]:
    """The most read positions of each memory, such that they are ``share`` of all."""
    sizes = [len(one) for one in read]
    if not sizes:
        return []
    every = torch.cat(list(read))
    best = every.topk(round(share * len(every))).indices.sort().values
    starts = torch.tensor([0, *sizes]).cumsum(0)
    return [
        (best[(best >= start) & (best < end)] - start).tolist()
        for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
    ]


def _without(one: Read, places: Sequence[int]) -> Read:
    """The same memory, some positions of which are not read. No key or value is copied."""
    projection = one.projection.narrow(one.member, 1)
    [memory] = projection.memories
    mask_S = torch.ones(len(memory), dtype=torch.bool) if memory.mask_S is None else memory.mask_S
    mask_S = mask_S.clone()
    mask_S[list(places)] = False
    mask_1S, segments = mask_S.to(projection.device).unsqueeze(0), projection.segments
    masked = Projection(
        memories=(replace(memory, mask_S=mask_S),),
        segments=tuple(None if s is None else replace(s, mask_NS=mask_1S) for s in segments),
        form=projection.form,
    )
    return one._replace(projection=masked, member=0)


def _later(one: Read, positions_T: Tensor) -> Tensor:
    """What hides from each token the positions of a memory behind it, ``[1, 1, T, S]``."""
    places_S = torch.arange(one.start, one.start + len(one.memory), device=positions_T.device)
    later_TS = places_S[None, :] > positions_T[:, None]
    return torch.zeros(later_TS.shape, device=later_TS.device).masked_fill_(
        later_TS, float("-inf")
    )[None, None]
