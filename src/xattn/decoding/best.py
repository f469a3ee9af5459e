"""The best entries of every row of logits: all that a search reads of the vocabulary.

The compiled kernel looks at each number once. Of equal entries it puts the lowest id first; torch,
which does the work where there is no kernel, does so for the very best one only.

Axes: R rows, V vocabulary, K best of each row.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from xattn.native import Library, library

MOST = 64
"""Entries of a row that are worth looking for one by one; more are sorted by torch."""

Ids = np.ndarray[Any, np.dtype[np.int64]]
Numbers = np.ndarray[Any, np.dtype[np.float32]]


class Best(NamedTuple):
    """Best first, ``[R, K]`` each."""

    ids_RK: Ids
    logits_RK: Numbers
    logprobs_RK: Numbers


def best_of_logits(logits_RV: Tensor, k: int) -> Best:
    """The ``k`` best of each row (at most V), with the row's log-probabilities of them.

    These are NaN where a row holds NaN or infinity, or nothing but minus infinity.
    """
    k = min(k, logits_RV.shape[1])
    functions = _kernels(logits_RV, k)
    if functions is None:
        logprobs = logits_RV.log_softmax(-1)
        best = _sorted(logprobs, k)
        ids = torch.from_numpy(best.ids_RK).to(logits_RV.device)
        return best._replace(logits_RK=logits_RV.gather(1, ids).float().cpu().numpy())
    best = _room(logits_RV, k)
    _call(functions, logits_RV, best, best.logprobs_RK.ctypes.data)
    return best


def best_of_logprobs(logprobs_RV: Tensor, k: int) -> Best:
    """The same of rows that are log-probabilities, which are left as they are. NaN is the best."""
    k = min(k, logprobs_RV.shape[1])
    functions = _kernels(logprobs_RV, k)
    if functions is None:
        return _sorted(logprobs_RV, k)
    best = _room(logprobs_RV, k)
    _call(functions, logprobs_RV, best, None)
    return best._replace(logprobs_RK=best.logits_RK)


def _kernels(logits_RV: Tensor, k: int) -> Library | None:
    """The compiled kernels, where they can read this tensor."""
    fits = logits_RV.is_cpu and logits_RV.dtype is torch.float32 and logits_RV.stride(1) == 1
    return library() if fits and 0 < k <= MOST else None


def _room(logits_RV: Tensor, k: int) -> Best:
    shape = (logits_RV.shape[0], k)
    return Best(np.empty(shape, np.int64), np.empty(shape, np.float32), np.empty(shape, np.float32))


def _call(functions: Library, logits_RV: Tensor, best: Best, logprobs: int | None) -> None:
    R, V = logits_RV.shape
    values, ids = best.logits_RK.ctypes.data, best.ids_RK.ctypes.data
    stride, k, threads = logits_RV.stride(0), best.ids_RK.shape[1], torch.get_num_threads()
    functions.likeliest(logits_RV.data_ptr(), stride, R, V, k, values, ids, logprobs, threads)


def _sorted(logprobs_RV: Tensor, k: int) -> Best:
    """The same by torch alone, with one transfer: ids are exact in float64."""
    if k == 1:
        values_RK, ids_RK = logprobs_RV.max(-1, keepdim=True)
    else:
        values_RK, ids_RK = logprobs_RV.topk(k)
    ids, values = torch.stack((ids_RK.double(), values_RK.double())).cpu().numpy()
    logprobs = values.astype(np.float32)
    return Best(ids.astype(np.int64), logprobs, logprobs)
