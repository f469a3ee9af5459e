"""Courses: how decoding goes on, apart from who runs the decoder.

A course is handed the logits of its rows and answers with the tokens to feed next, and with the
rows they continue. It never runs a decoder and holds no cache, so that one forward pass can serve
the courses of many requests.

Axes: R rows, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from xattn.decoding.request import Hypothesis


class Move(NamedTuple):
    """What the decoder is fed next."""

    rows: list[int]
    """For each next row, the current row it continues."""
    tokens_R: Tensor
    """The token to feed for each next row."""


class Course(Protocol):
    """The decisions of one search over one or more requests."""

    def advance(self, logits_RV: Tensor) -> Move | None:
        """Choose one token for every row; None when all requests are over.

        The first logits are those after the prompts, one row for each request; later ones have a
        row for each token of the last move. They may be overwritten.
        """
        ...

    def allowed(self) -> Sequence[int] | None:
        """The only tokens whose logits the next :meth:`advance` reads; None where it reads all."""
        ...

    def hypotheses(self) -> list[list[Hypothesis]]:
        """What was found for each request, once :meth:`advance` has returned None."""
        ...

    def partial(self) -> tuple[int, ...]:
        """New tokens of the first request's first sequence so far.

        With beams, those of the best running one, which another may still overtake.
        """
        ...
