"""llama.cpp on the GGUF file as it is: its weights stay quantised, so its tokens may differ."""

from typing import Any

import llama_cpp

from xattn.bench.making import ModelFiles
from xattn.bench.tasks import Call, NotRun, Precision, Ready, Task, Tokens


class Engine:
    """One loaded model at a time."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._model: Any = None

    def facts(self) -> dict[str, Any]:
        """Versions and threads."""
        return {"llama-cpp-python": llama_cpp.__version__, "threads": self._threads}

    def load(self, files: ModelFiles, precision: Precision) -> None:
        """Take these weights; :class:`NotRun` where it cannot."""
        if not files.transformers.endswith(".gguf"):
            raise NotRun(f"{files.name} is no GGUF file")
        self._model = llama_cpp.Llama(
            files.transformers,
            n_ctx=2048,
            n_threads=self._threads,
            n_threads_batch=self._threads,
            verbose=False,
        )

    def set_up(self, task: Task) -> Ready:
        """What can be timed; :class:`NotRun` for a kind of task that it has nothing for."""
        if task.kind != "language":
            raise NotRun(f"llama.cpp has nothing to run for {task.kind!r} here")
        [prompt] = task.sources

        def run(length: int) -> Tokens:
            self._model.reset()
            tokens = self._model.generate(list(prompt), temp=0.0, repeat_penalty=1.0, reset=True)
            return [[token for token, _ in zip(tokens, range(length), strict=False)]]

        return Ready(
            calls={
                "cold": Call(run=lambda: run(task.new_tokens), before=self._forget),
                "first": Call(run=lambda: run(1), before=self._forget),
            },
            notes={"weights": "as the file has them: Q4_1"},
        )

    def _forget(self) -> None:
        """Or the prompt of the call before would be found in the cache."""
        self._model.reset()
        self._model._ctx.kv_cache_clear()
