"""What an answer rests on, read off the attention with which it was made.

For each sentence of the answer, what its tokens read of each sentence of each passage is added up;
where most was read is cited. Only some heads look at what a token comes from: a calibration names
them (:mod:`xattn.library.calibration`).

Axes: T tokens of the answer, S positions of a memory.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from xattn.generation import Generation
from xattn.inputs.chunks import sentences
from xattn.inputs.table import cell_text
from xattn.inputs.text import Tokenizer
from xattn.library.answer import Cell, Citation, Sentence
from xattn.library.calibration import Calibration
from xattn.library.passage import Passage
from xattn.library.readers import Asked
from xattn.memory import SpanTable
from xattn.model import Model

MOST_CITED = 3
"""Citations of one sentence of an answer."""
WORTH_CITING = 0.5
"""What a further citation must have of the support of the best."""


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A sentence of a passage, or a cell of its table: ``[start, end)`` of the passage's text."""

    passage: int
    start: int
    end: int
    cell: int | None = None
    """Of a table, counted row by row from 0, the header first."""


def cite(
    model: Model,
    asked: Asked,
    passages: Sequence[Passage],
    generation: Generation,
    calibration: Calibration,
) -> tuple[list[Sentence], list[Citation]]:
    """The sentences of an answer, and what they rest on, the best supported first."""
    spoken = spoken_sentences(generation, model.tokenizer)
    if not spoken or not passages:
        return [_unsupported(start, end) for start, end, _ in spoken], []
    shares = model.attribution(
        asked.memories, generation, heads=calibration.heads, parallel=asked.parallel
    )
    stretches = [one for j, passage in enumerate(passages) for one in stretches_of(j, passage)]
    read_TX = read_of(stretches, shares, asked)
    found: dict[Stretch, float] = {}
    rests: list[list[tuple[Stretch, float]]] = []
    for _, _, tokens in spoken:
        support_X = read_TX[tokens].mean(dim=0).tolist()
        best = sorted(zip(stretches, support_X, strict=True), key=lambda pair: -pair[1])
        kept = [
            (stretch, support)
            for stretch, support in best[:MOST_CITED]
            if support >= max(WORTH_CITING * best[0][1], calibration.threshold)
        ]
        rests.append(kept or best[:1])
        for stretch, support in kept:
            found[stretch] = max(support, found.get(stretch, 0.0))
    order = sorted(found, key=lambda stretch: -found[stretch])
    number = {stretch: n for n, stretch in enumerate(order, 1)}
    cited = [_citation(number[one], passages[one.passage], one, found[one]) for one in order]
    told = [
        Sentence(
            start=start,
            end=end,
            support=kept[0][1],
            is_supported=kept[0][0] in number and kept[0][1] >= calibration.threshold,
            citations=tuple(number[stretch] for stretch, _ in kept if stretch in number),
        )
        for (start, end, _), kept in zip(spoken, rests, strict=True)
    ]
    return told, cited


def spoken_sentences(
    generation: Generation, tokenizer: Tokenizer
) -> list[tuple[int, int, list[int]]]:
    """``[start, end)`` of each sentence of the answer, and the tokens that it is made of."""
    ends, text, decoder = [], "", tokenizer.incremental()
    for token in generation.tokens:
        text += decoder.push(token)
        ends.append(len(text))
    spoken = []
    for start, end in sentences(generation.text):
        first, last = bisect_left(ends, start + 1), bisect_left(ends, end)
        tokens = list(range(first, min(last + 1, len(ends))))
        if tokens and generation.text[start:end].strip():
            spoken.append((start, end, tokens))
    return spoken


def stretches_of(index: int, passage: Passage) -> list[Stretch]:
    """What of a passage may be cited: its sentences, or the cells of its table."""
    if passage.table is None:
        bounds = sentences(passage.text)
        return [Stretch(passage=index, start=start, end=end) for start, end in bounds]
    ends = list(accumulate(map(len, passage.table.pieces(passage.start))))
    return [
        Stretch(passage=index, start=ends[cell - 1], end=ends[cell], cell=cell)
        for cell in range(len(passage.table.header), len(ends))
    ]


def read_of(stretches: Sequence[Stretch], shares: Sequence[Tensor], asked: Asked) -> Tensor:
    """What each token read of each stretch, ``[T, X]``, from shares ``[T, S]`` of each memory."""
    columns = []
    for one in stretches:
        place = asked.places[one.passage]
        bounds_S2 = SpanTable.of(asked.memories[place.memory].spans).bounds_S2 - place.start
        starts, ends = bounds_S2[:, 0], bounds_S2[:, 1]
        inside = (starts >= one.start) & (starts < one.end) & (ends > starts)
        columns.append(shares[place.memory][:, inside].sum(dim=1))
    return torch.stack(columns, dim=1)


def _citation(number: int, passage: Passage, stretch: Stretch, support: float) -> Citation:
    quote = passage.text[stretch.start : stretch.end]
    if passage.table is None or stretch.cell is None:
        left = stretch.start + len(quote) - len(quote.lstrip())
        right = stretch.start + len(quote.rstrip())
        start, end, cell = passage.start + left, passage.start + right, None
    else:
        row, column = divmod(stretch.cell, len(passage.table.header))
        start = passage.start + row - 1
        end, cell = start + 1, Cell(row=start, column=passage.table.header[column])
        quote = cell_text(passage.table.rows[row - 1][column])
    return Citation(
        number=number,
        passage=passage,
        start=start,
        end=end,
        quote=quote.strip(),
        support=support,
        cell=cell,
    )


def _unsupported(start: int, end: int) -> Sentence:
    return Sentence(start=start, end=end, support=0.0, is_supported=False, citations=())
