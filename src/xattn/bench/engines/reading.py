"""The machine itself: how fast its memory can be read when nothing is done with what is read."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from xattn.bench.making import ModelFiles
from xattn.bench.tasks import Call, NotRun, Precision, Ready, Task, Tokens
from xattn.native.pages import spacious

READ_BYTES = 2**30
"""Many times what any cache holds."""


class Engine:
    """No model: a buffer, and several ways to add up its numbers."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        torch.set_num_threads(threads)

    def facts(self) -> dict[str, Any]:
        """Versions and threads."""
        return {"torch": torch.__version__, "numpy": np.__version__, "threads": self._threads}

    def load(self, files: ModelFiles, precision: Precision) -> None:
        """Nothing: memory has no weights."""

    def set_up(self, task: Task) -> Ready:
        """What can be timed; :class:`NotRun` for a kind of task that it has nothing for."""
        if task.kind != "read":
            raise NotRun("the machine reads memory only")
        # In large pages where there are some, as weights lie here.
        floats = spacious(READ_BYTES // 4, dtype=torch.float32).fill_(1)
        whole = floats.view(torch.int32).numpy()
        parts = np.array_split(whole, self._threads)
        halves = (floats[: floats.numel() // 2], floats[floats.numel() // 2 :])
        matrix = floats.view(-1, 4096)
        vector = torch.ones(4096)
        pool = ThreadPoolExecutor(self._threads)

        def timed(kernel: Any) -> Call:
            def run() -> Tokens:
                kernel()
                return []

            return Call(run=run)

        return Ready(
            calls={
                "torch sum": timed(floats.sum),
                "torch dot": timed(lambda: torch.dot(*halves)),
                "torch matrix times vector": timed(lambda: matrix @ vector),
                "numpy max in threads": timed(lambda: list(pool.map(np.max, parts))),
                "numpy bitwise or in threads": timed(
                    lambda: list(pool.map(np.bitwise_or.reduce, parts))
                ),
            },
            notes={"bytes": READ_BYTES},
        )
