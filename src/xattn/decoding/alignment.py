"""When each token was spoken: dynamic time warping over the cross-attention of a few heads.

Some decoder heads look, for each token, at the moment it is spoken (the alignment heads, listed in
the checkpoint). Their weights are smoothed, averaged, and the cheapest monotonic path through them
says at which position each token begins.

Axes: A alignment heads, N tokens, S positions of 20 ms.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xattn.errors import UsageError
from xattn.models.network import Network
from xattn.models.state import Projection

MEDIAN_WIDTH = 7
POSITIONS_PER_SECOND = 50

DIAGONAL, UP, LEFT = 0, 1, 2


def median_filter(x: Tensor, width: int = MEDIAN_WIDTH) -> Tensor:
    """Sliding median over the last axis, mirrored at its ends; axes too short to mirror stay."""
    reach = width // 2
    if x.shape[-1] <= reach:
        return x
    flat = x.reshape(1, -1, x.shape[-1])
    padded = torch.nn.functional.pad(flat, (reach, reach), mode="reflect")
    return padded.unfold(-1, width, 1).median(-1).values.reshape(x.shape)


def alignment_matrix(weights_ANS: Tensor, positions: int) -> Tensor:
    """How well each token fits each position, ``[N, positions]``, from softmax weights.

    The weights are made to sum to 1 over the ``positions`` that hold audio, standardised over the
    tokens (so that a position everyone looks at says nothing), median-filtered, and averaged.
    """
    cut = weights_ANS[..., :positions].double()
    cut = cut / cut.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    deviation, mean = torch.std_mean(cut, dim=-2, keepdim=True, correction=0)
    standard = torch.where(deviation > 0, (cut - mean) / deviation, 0.0)
    return median_filter(standard).mean(0)


def warp(cost_NS: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Cheapest path from the first to the last cell that never goes back, as rows and columns.

    Ties prefer a step along the columns, and a diagonal step must be strictly cheapest. Cells of
    one anti-diagonal do not depend on each other, and are computed together.
    """
    N, S = cost_NS.shape
    steps = np.full((N + 1, S + 1), LEFT, dtype=np.int8)
    steps[1:, 0] = UP
    infinite = np.full(N + 1, np.inf, dtype=np.float32)
    before, last = infinite.copy(), infinite.copy()
    before[0] = 0.0
    for diagonal in range(2, N + S + 1):
        row = np.arange(max(1, diagonal - S), min(N, diagonal - 1) + 1)
        across, up, left = before[row - 1], last[row - 1], last[row]
        step = np.where(up < left, UP, LEFT)
        step[across < np.minimum(up, left)] = DIAGONAL
        cheapest = np.choose(step, (across, up, left))
        steps[row, diagonal - row] = step
        before, last = last, infinite.copy()
        last[row] = cost_NS[row - 1, diagonal - row - 1] + cheapest
    return _trace(steps)


def _trace(steps: NDArray[np.int8]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    i, j = steps.shape[0] - 1, steps.shape[1] - 1
    path = []
    while i > 0 or j > 0:
        path.append((i - 1, j - 1))
        step = steps[i, j]
        i -= step != LEFT
        j -= step != UP
    rows, columns = np.array(path[::-1], dtype=np.intp).T
    return rows, columns


def token_times(
    network: Network,
    projection: Projection,
    start: Sequence[int],
    text: Sequence[int],
    *,
    no_timestamps: int,
    end: int,
    positions: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Seconds at which each of ``text`` begins and the last one ends, and their probabilities.

    The times have one entry more than ``text``. One teacher-forced pass gives the probabilities
    (among text tokens) and one the weights of the alignment heads; the encoder is not run. Raises
    :class:`UsageError` for a checkpoint that names no alignment heads.
    """
    heads = network.spec.alignment_heads
    if not heads:
        raise UsageError(
            "word_timestamps=True needs the checkpoint's alignment heads, and it lists none; take "
            "them from the model's generation_config.json, or leave word timestamps out."
        )
    tokens_RT = torch.tensor([[*start, no_timestamps, *text, end]])
    with torch.inference_mode():
        logits_TV = network.score(tokens_RT, network.start([[projection]]))[0]
        scored_TV = logits_TV[len(start) : len(start) + len(text), :end]
        logprobs_T = scored_TV.log_softmax(-1).gather(
            1, torch.tensor(text)[:, None].to(scored_TV.device)
        )
        weights_ANS = network.cross_weights(tokens_RT, network.start([[projection]]), heads)[0]
    matrix_NS = alignment_matrix(weights_ANS, positions)[len(start) : -1]
    rows, columns = warp(-matrix_NS.cpu().numpy())
    begins = np.flatnonzero(np.diff(rows, prepend=-1))
    return columns[begins] / POSITIONS_PER_SECOND, logprobs_T[:, 0].exp().double().cpu().numpy()
