"""Finding the heads that tell what an answer rests on, on questions whose answers are known.

A head is good where, of right answers, what it reads most is the sentence with the answer in it.

Axes: X stretches of the passages, L layers that read memories, H heads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from xattn.errors import UsageError
from xattn.library.asking import SETTINGS
from xattn.library.calibration import Calibration
from xattn.library.citing import places_of, stretches_of
from xattn.library.passage import Passage
from xattn.library.readers import Reader, Search
from xattn.library.squad import Question, contains

HEADS = 8
"""Heads that are chosen."""
Masses = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An answer, and what each head read of each stretch for it."""

    right: bool
    golden_X: NDArray[np.bool_]
    """Which stretches have an answer in them."""
    read_XLH: Masses


def calibrate(
    reader: Reader,
    search: Search,
    questions: Sequence[Question],
    *,
    k: int,
    heads: int = HEADS,
    progress: Callable[[int], None] = lambda done: None,
) -> Calibration:
    """Heads and a threshold from these questions, which no result should then be reported on.

    Raises :class:`UsageError` where too few are answered rightly.
    """
    samples = []
    for done, question in enumerate(questions):
        sample = _sample(reader, question, search(question.text, k))
        samples += [] if sample is None else [sample]
        progress(done + 1)
    telling = [one for one in samples if one.right and one.golden_X.any()]
    if len(telling) < heads:
        raise UsageError(
            f"`questions` must have at least {heads} that are answered rightly from the passages, "
            f"but have {len(telling)} of {len(questions)}; give more, or a better model."
        )
    chosen = _best_heads(telling, heads)
    support = [_support(one, chosen) for one in samples]
    reads = list(dict.fromkeys(layer for layer, _ in reader.model.network.reading_heads))
    return Calibration(
        heads=[(reads[place], head) for place, head in chosen],
        threshold=_threshold(support, [one.right for one in samples]),
    )


def _sample(reader: Reader, question: Question, passages: Sequence[Passage]) -> Sample | None:
    """One question asked, and read off with all heads; None for an empty answer."""
    model, asked = reader.model, reader.ask(question.text, passages)
    found = model.generate(asked.memories, asked.prompt, parallel=asked.parallel, **SETTINGS)
    if not found.text.strip():
        return None
    stretches = [one for j, passage in enumerate(passages) for one in stretches_of(j, passage)]
    where = places_of(stretches, asked)
    texts = [passages[one.passage].text[one.start : one.end] for one in stretches]
    by_layer = []
    for shares in model.shares_by_layer(
        asked.memories, found, heads=model.network.reading_heads, parallel=asked.parallel
    ):
        new = [share_TAS.mean(dim=0) for share_TAS in shares]
        by_layer.append(torch.stack([new[m][:, inside].sum(dim=1) for m, inside in where]))
    return Sample(
        right=contains(found.text, question.answers),
        golden_X=np.array([contains(text, question.answers) for text in texts]),
        read_XLH=torch.stack(by_layer, dim=1).float().numpy(),
    )


def _best_heads(samples: Sequence[Sample], count: int) -> list[tuple[int, int]]:
    """Those whose most read stretch is golden most often, and whose share of it is largest.

    Layers are counted among those that read.
    """
    hits = np.mean([one.golden_X[one.read_XLH.argmax(axis=0)] for one in samples], axis=0)
    shares = np.mean([_shares(one)[one.golden_X].sum(axis=0) for one in samples], axis=0)
    order = np.argsort(-(hits + shares), axis=None)[:count]
    layers, heads = np.unravel_index(order, hits.shape)
    return sorted((int(layer), int(head)) for layer, head in zip(layers, heads, strict=True))


def _shares(sample: Sample) -> Masses:
    total = sample.read_XLH.sum(axis=0, keepdims=True)
    return sample.read_XLH / np.maximum(total, np.finfo(np.float32).tiny)


def _support(sample: Sample, heads: Sequence[tuple[int, int]]) -> float:
    """What the answer as a whole has of its best stretch, as citations count it."""
    read_X = np.mean([sample.read_XLH[:, layer, head] for layer, head in heads], axis=0)
    return float(read_X.max() / max(read_X.sum(), np.finfo(np.float32).tiny))


def _threshold(support: Sequence[float], right: Sequence[bool]) -> float:
    """Where right and wrong answers are told apart best: mean of both rates (Youden 1950)."""
    found, good = np.array(support), np.array(right)
    if good.all() or not good.any():
        return 0.0

    def told_apart(threshold: float) -> float:
        return float((found[good] >= threshold).mean() + (found[~good] < threshold).mean())

    return max(sorted(set(support)), key=told_apart)
