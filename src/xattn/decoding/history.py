"""Tokens of the rows being decoded, as one table.

Axes: R rows, P prompt columns, T all columns.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

SPARE = 32
"""New columns that a table has room for at least."""


class History:
    """Prompt and new tokens of each row, the prompts padded on the left with ``filler``.

    New tokens of all rows stand in the same columns, since rows begin together. The table grows by
    doubling.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], filler: int, device: torch.device) -> None:
        self.prompt_columns = self._columns = max(map(len, prompts))
        self._device = device
        shape = (len(prompts), self._columns + SPARE)
        self._table_RT = np.full(shape, filler, dtype=np.int64)
        for row, prompt in enumerate(prompts):
            self._table_RT[row, self._columns - len(prompt) : self._columns] = prompt

    @property
    def tokens_RT(self) -> Tensor:
        """All tokens, to be read before the next step."""
        return torch.from_numpy(self._table_RT[:, : self._columns]).to(self._device)

    @property
    def new_RT(self) -> Tensor:
        """New tokens only, to be read before the next step."""
        return self.tokens_RT[:, self.prompt_columns :]

    def new_tokens(self, rows: slice = slice(None)) -> list[list[int]]:
        """New tokens of these rows."""
        return self._table_RT[rows, self.prompt_columns : self._columns].tolist()

    def select(self, rows: list[int]) -> None:
        """Row j becomes a continuation of old row ``rows[j]``."""
        if len(rows) != len(self._table_RT):
            self._table_RT = self._table_RT[rows]
        elif rows != list(range(len(rows))):
            self._table_RT[:, : self._columns] = self._table_RT[rows, : self._columns]

    def append(self, tokens: Sequence[int]) -> None:
        """One new token for each row."""
        if self._columns == self._table_RT.shape[1]:
            room = np.empty((len(self._table_RT), self._columns + SPARE), dtype=np.int64)
            self._table_RT = np.concatenate((self._table_RT, room), axis=1)
        self._table_RT[:, self._columns] = tokens
        self._columns += 1
