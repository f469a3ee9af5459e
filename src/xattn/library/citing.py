"""What an answer rests on, read off the attention with which it was made.

For each sentence of the answer, what its tokens read of each sentence of each passage is added up;
where most was read is cited. Only some heads look at what a token comes from: a calibration names
them (:mod:`xattn.library.calibration`).

Axes: T tokens of the answer, S positions of a memory.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from xattn.generation import Generation
from xattn.inputs.chunks import sentences
from xattn.inputs.table import cell_text
from xattn.inputs.text import Tokenizer
from xattn.library.answer import Cell, Citation, Glance, Sentence, Token
from xattn.library.calibration import Calibration
from xattn.library.passage import Passage, pieces_of
from xattn.library.readers import Asked
from xattn.memory import SpanTable
from xattn.model import Model

MOST_CITED = 3
"""Citations of one sentence of an answer."""
MOST_GLANCES = 16
"""Places that are kept of those that one token looked at."""
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
    row: int | None = None
    """Of a table, the header being 0."""


@dataclass(frozen=True, kw_only=True)
class Rest:
    """A stretch that a sentence of the answer rests on."""

    stretch: Stretch
    support: float
    """Of all that the sentence read, the share that it read there."""
    grounds: float
    """The same of all that goes with it: of a cell, the row."""


@dataclass(frozen=True, kw_only=True)
class Grounds:
    """What an answer rests on."""

    tokens: tuple[Token, ...]
    sentences: tuple[Sentence, ...]
    citations: tuple[Citation, ...]


def cite(
    model: Model,
    asked: Asked,
    passages: Sequence[Passage],
    generation: Generation,
    calibration: Calibration,
) -> Grounds:
    """What each sentence of an answer rests on, the best supported first."""
    pieces = spoken_pieces(generation, model.tokenizer)
    spoken = spoken_sentences(generation.text, pieces)
    if not spoken or not passages:
        told = [_told(start, end, [], {}, calibration) for start, end, _ in spoken]
        tokens = [Token(text=piece, glances=()) for piece in pieces]
        return Grounds(tokens=tuple(tokens), sentences=tuple(told), citations=())
    shares = model.attribution(
        asked.memories, generation, heads=calibration.heads, parallel=asked.parallel
    )
    stretches = [one for j, passage in enumerate(passages) for one in stretches_of(j, passage)]
    read_TX = read_of(stretches, shares, asked)
    rests = [
        _resting(stretches, read_TX[tokens].mean(dim=0), calibration) for _, _, tokens in spoken
    ]
    cited: dict[Stretch, float] = {}
    for one in (one for rest in rests for one in rest if one.grounds >= calibration.threshold):
        cited[one.stretch] = max(one.support, cited.get(one.stretch, 0.0))
    order = sorted(cited, key=lambda stretch: -cited[stretch])
    number = {stretch: n for n, stretch in enumerate(order, 1)}
    told = [
        _told(start, end, rest, number, calibration)
        for (start, end, _), rest in zip(spoken, rests, strict=True)
    ]
    return Grounds(
        tokens=tuple(_looked(pieces, shares, asked, passages)),
        sentences=tuple(told),
        citations=tuple(
            _citation(number[one], passages[one.passage], one, cited[one]) for one in order
        ),
    )


def _resting(
    stretches: Sequence[Stretch], support_X: Tensor, calibration: Calibration
) -> list[Rest]:
    """What a sentence rests on most, the best first, and what comes close to that."""
    support_X = support_X / support_X.sum().clamp(min=torch.finfo(support_X.dtype).tiny)
    supports = support_X.tolist()
    of_row: dict[tuple[int, int | None], float] = {}
    for stretch, support in zip(stretches, supports, strict=True):
        row = (stretch.passage, stretch.row)
        of_row[row] = of_row.get(row, 0.0) + support
    rests = [
        Rest(
            stretch=stretch,
            support=support,
            grounds=support if stretch.row is None else of_row[stretch.passage, stretch.row],
        )
        for stretch, support in zip(stretches, supports, strict=True)
    ]
    best, *others = sorted(rests, key=lambda one: -one.support)[:MOST_CITED]
    close = (one for one in others if one.support >= WORTH_CITING * best.support)
    return [best, *(one for one in close if one.grounds >= calibration.threshold)]


def _told(
    start: int,
    end: int,
    rest: Sequence[Rest],
    number: Mapping[Stretch, int],
    calibration: Calibration,
) -> Sentence:
    support = rest[0].grounds if rest else 0.0
    return Sentence(
        start=start,
        end=end,
        support=support,
        is_supported=bool(rest) and support >= calibration.threshold,
        citations=tuple(number[one.stretch] for one in rest if one.stretch in number),
    )


def _looked(
    pieces: Sequence[str], shares: Sequence[Tensor], asked: Asked, passages: Sequence[Passage]
) -> Iterator[Token]:
    """Where each token of the answer looked, within the texts of passages."""
    owner, starts, ends, columns = [], [], [], []
    for j, (place, bounds_S2) in enumerate(zip(asked.places, _bounds(asked), strict=True)):
        inside = (bounds_S2[:, 0] >= 0) & (bounds_S2[:, 1] <= len(passages[j].text))
        inside &= bounds_S2[:, 1] > bounds_S2[:, 0]
        owner += [j] * int(inside.sum())
        starts += bounds_S2[inside, 0].int().tolist()
        ends += bounds_S2[inside, 1].int().tolist()
        columns.append(shares[place.memory][:, inside])
    read_TS = torch.cat(columns, dim=1)
    top = read_TS.topk(min(MOST_GLANCES, read_TS.shape[1]), dim=1)
    for t, piece in enumerate(pieces):
        found = zip(top.indices[t].tolist(), top.values[t].tolist(), strict=True)
        yield Token(
            text=piece,
            glances=tuple(
                Glance(passage=owner[s], start=starts[s], end=ends[s], share=share)
                for s, share in found
            ),
        )


def spoken_pieces(generation: Generation, tokenizer: Tokenizer) -> list[str]:
    """What each token adds to the answer's text."""
    decoder = tokenizer.incremental()
    pieces = [decoder.push(token) for token in generation.tokens]
    pieces[-1:] = [last + decoder.finish() for last in pieces[-1:]]
    return pieces


def spoken_sentences(text: str, pieces: Sequence[str]) -> list[tuple[int, int, list[int]]]:
    """``[start, end)`` of each sentence of the answer, and the tokens that it is made of.

    The space behind a sentence is none of it: it begins the next one's first token.
    """
    ends = list(accumulate(map(len, pieces)))
    spoken = []
    for start, behind in sentences(text):
        end = start + len(text[start:behind].rstrip())
        first, last = bisect_right(ends, start), bisect_left(ends, end)
        tokens = list(range(first, min(last + 1, len(ends))))
        if tokens and text[start:end].strip():
            spoken.append((start, end, tokens))
    return spoken


def stretches_of(index: int, passage: Passage) -> list[Stretch]:
    """What of a passage may be cited: its sentences, or the cells of its table."""
    if passage.table is None:
        bounds = sentences(passage.text)
        return [Stretch(passage=index, start=start, end=end) for start, end in bounds]
    ends = list(accumulate(map(len, pieces_of(passage.table))))
    return [
        Stretch(
            passage=index,
            start=ends[cell - 1],
            end=ends[cell],
            cell=cell,
            row=cell // len(passage.table.header),
        )
        for cell in range(len(passage.table.header), len(ends))
    ]


def read_of(stretches: Sequence[Stretch], shares: Sequence[Tensor], asked: Asked) -> Tensor:
    """What each token read of each stretch, ``[T, X]``, from shares ``[T, S]`` of each memory."""
    where = places_of(stretches, asked)
    return torch.stack([shares[memory][:, inside].sum(dim=1) for memory, inside in where], dim=1)


def places_of(stretches: Sequence[Stretch], asked: Asked) -> list[tuple[int, Tensor]]:
    """For each stretch, the memory that it is in and which positions are of it, ``[S]``."""
    bounds = _bounds(asked)
    found = []
    for one in stretches:
        starts, ends = bounds[one.passage].unbind(dim=1)
        inside = (starts >= one.start) & (starts < one.end) & (ends > starts)
        found.append((asked.places[one.passage].memory, inside))
    return found


def _bounds(asked: Asked) -> list[Tensor]:
    """Of each passage, where in its text the positions of its memory are: ``[S, 2]``."""
    memories, places = asked.memories, asked.places
    return [SpanTable.of(memories[p.memory].spans).bounds_S2 - p.start for p in places]


def _citation(number: int, passage: Passage, stretch: Stretch, support: float) -> Citation:
    quote = passage.text[stretch.start : stretch.end]
    if passage.table is None or stretch.cell is None or stretch.row is None:
        left = stretch.start + len(quote) - len(quote.lstrip())
        right = stretch.start + len(quote.rstrip())
        start, end, cell = passage.start + left, passage.start + right, None
    else:
        row, column = stretch.row, stretch.cell % len(passage.table.header)
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
