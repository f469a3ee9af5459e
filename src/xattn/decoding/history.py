"""Tokens of the rows being decoded, as one tensor.

Axes: R rows, P prompt columns, T all columns.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class History:
    """Prompt and new tokens of each row, the prompts padded on the left with ``filler``.

    New tokens of all rows stand in the same columns, since rows begin together.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], filler: int, device: torch.device) -> None:
        self.prompt_columns = max(map(len, prompts))
        rows = [[filler] * (self.prompt_columns - len(p)) + list(p) for p in prompts]
        self.tokens_RT = torch.tensor(rows, device=device)

    @property
    def new_RT(self) -> Tensor:
        """New tokens only."""
        return self.tokens_RT[:, self.prompt_columns :]

    def select(self, rows: list[int]) -> None:
        """Row j becomes a continuation of old row ``rows[j]``."""
        if rows != list(range(self.tokens_RT.shape[0])):
            self.tokens_RT = self.tokens_RT[rows]

    def append(self, tokens_R: Tensor) -> None:
        """One new token for each row."""
        self.tokens_RT = torch.cat((self.tokens_RT, tokens_R[:, None]), dim=1)
