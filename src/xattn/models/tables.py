"""Tables as sources of text encoders and of decoder-only models: each position is of a cell.

Axes: S positions.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from xattn.errors import InvalidSourceError, require
from xattn.inputs.table import LINEARISATION, Table
from xattn.inputs.text import Tokenizer, canonical_text
from xattn.memory import Span, SpanTable
from xattn.models.encode import TOKENS_AT_SEAMS, Prepared, prepare_written, side_of
from xattn.models.network import Network


def prepare_tables(
    network: Network,
    tokenizer: Tokenizer | None,
    tables: Sequence[Table],
    language: str | None = None,
    *,
    plain: bool = False,
) -> list[Prepared]:
    """Tables as text (:meth:`~xattn.inputs.table.Table.pieces`), named by their typed cells.

    Spans are in ``"cells"``, counted row by row from 0, the header first: a position of cell n has
    ``[n, n + 1)``. Separators belong to the cell that they precede; a token of several cells spans
    them all; one that the tokenizer adds has an empty span where it stands. ``plain`` ones have
    no special tokens around them.

    Raises :class:`InvalidSourceError` where a table has more tokens than the encoder has positions,
    :class:`UsageError` without a tokenizer, or for a language that it does not know.
    """
    side, encoder = side_of(tokenizer, language), network.encoder_digest
    return [_prepare(network, side, table, encoder, plain=plain) for table in tables]


def prepare_long_table(
    network: Network,
    tokenizer: Tokenizer | None,
    table: Table,
    most: int,
    language: str | None = None,
) -> list[Prepared]:
    """A table of any length in chunks of at most ``most`` tokens, each a memory of its own.

    Each has the header and whole rows, numbered from 1, so that a changed row changes its own chunk
    (:meth:`~xattn.inputs.table.Table.chunks`); spans count the cells of the whole table. Raises as
    :func:`prepare_tables`, and :class:`InvalidSourceError` where a row does not fit.
    """
    side, encoder = side_of(tokenizer, language), network.encoder_digest
    limit = network.spec.encoder.position.limit if network.spec.encoder is not None else None
    least = len(side.encode("").ids) + TOKENS_AT_SEAMS
    require(most > least, "max_positions", f"above {least}", most)
    room = min(most, limit or most)

    def tokens(piece: Table, first: int = 1) -> int:
        return len(side.encode("".join(_pieces(piece, first))).ids)

    def count(piece: Table) -> int:
        return tokens(piece, first=room)  # no row of a chunk has a longer number

    prepared, start = [], 0
    for piece in table.chunks(count, room - TOKENS_AT_SEAMS):
        if len(piece.rows) <= 1 and (found := tokens(piece)) > room:
            what = (
                f"row {start} of the table, with the header,"
                if piece.rows
                else "the table's header"
            )
            raise InvalidSourceError(
                f"{what} has {found} tokens, but a chunk holds {room}; raise `max_positions`, or "
                "shorten it."
            )
        item = _prepare(network, side, piece, encoder)
        prepared.append(replace(item, spans=_moved(item.spans, len(table.header), start)))
        start += len(piece.rows)
    return prepared


def _prepare(
    network: Network, side: Tokenizer, table: Table, encoder: str, *, plain: bool = False
) -> Prepared:
    pieces = list(_pieces(table))
    written = prepare_written(
        network,
        side,
        "".join(pieces),
        source=table.canonical_bytes,
        preprocessing=LINEARISATION,
        encoder=encoder,
        plain=plain,
    )
    return replace(written, spans=_cells(written.spans, pieces))


def _pieces(table: Table, first: int = 1) -> Iterator[str]:
    return map(canonical_text, table.pieces(first))


def _cells(spans: Sequence[Span], pieces: Sequence[str]) -> SpanTable:
    """Spans of characters as spans of the cells whose pieces they are in."""
    starts = [0]
    for piece in pieces:
        starts.append(starts[-1] + len(piece))

    def cells(start: float, end: float) -> tuple[int, int]:
        first = bisect_right(starts, start) - 1
        return (first, first) if start == end else (first, bisect_right(starts, end - 1))

    bounds = [cells(start, end) for start, end in SpanTable.of(spans).bounds_S2.tolist()]
    return SpanTable(torch.tensor(bounds), "cells")


def _moved(spans: Sequence[Span], columns: int, rows: int) -> SpanTable:
    """Cells of a chunk as cells of the table of which ``rows`` rows come before the chunk."""
    bounds_S2 = SpanTable.of(spans).bounds_S2
    behind_header = bounds_S2 >= torch.tensor([columns, columns + 1])
    return SpanTable(bounds_S2 + behind_header * rows * columns, "cells")
