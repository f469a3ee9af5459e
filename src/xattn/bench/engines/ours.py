"""xattn, through its public surface.

Axes: N memories, W queries that share one, S positions, H heads, K head width, D model width.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import xattn
from xattn.bench.making import ModelFiles
from xattn.bench.reads import bytes_per_step
from xattn.bench.tasks import Call, NotRun, Precision, Ready, Task, Tokens, without_end
from xattn.costs import absorption_bytes
from xattn.memory import Memory, MemoryKey, SpanTable, digest_of
from xattn.spec import is_absorbed

TOGETHER = 32
"""Tokens of an answer that are scored in one step."""
MOST_SPOKEN = 224
"""New tokens of a window of speech, as the other engines are told."""


class Engine:
    """One loaded model at a time."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model: Any = None
        self._precision: Precision = "fp32"
        self._files = ModelFiles(name="", xattn="")

    def facts(self) -> dict[str, Any]:
        """Versions and threads."""
        return {
            "xattn": xattn.__version__,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "kernels": torch.backends.cpu.get_cpu_capability(),
        }

    def load(self, files: ModelFiles, precision: Precision) -> None:
        """Take these weights; :class:`NotRun` where it cannot."""
        self._model = None
        self._files, self._precision = files, precision
        quantize = None if precision == "fp32" else precision
        self._model = xattn.load(files.xattn, offline=True, quantize=quantize)

    def set_up(self, task: Task) -> Ready:
        """What can be timed; :class:`NotRun` for a kind of task that it has nothing for."""
        kinds: dict[str, Callable[[Task], Ready]] = {
            "text": self._text,
            "speech": self._speech,
            "prefixes": self._requests,
            "requests": self._requests,
            "language": self._language,
            "cross": self._cross,
        }
        if task.kind not in kinds:
            raise NotRun(f"xattn has nothing to run for {task.kind!r}")
        return kinds[task.kind](task)

    @torch.inference_mode()
    def likelihood(self, task: Task, answers: Tokens) -> list[float]:
        """How likely each answer is: mean log-probability a token."""
        if not task.sources:
            raise NotRun("answers to recordings are not scored")
        network = self._model.network
        memories = self._model.encode_batch([list(source) for source in task.sources])
        found = []
        for (source, prefix), answer in zip(task.requests(), answers, strict=True):
            state = network.start([[memories[source]]])
            fed = torch.tensor([[*self._files.start, *prefix, *answer[:-1]]])
            # In pieces that the kernels take, as in decoding.
            logits = [network.step_all(piece, state) for piece in fed.split(TOGETHER, dim=1)]
            logprobs_TV = torch.cat(logits, dim=1)[0, -len(answer) :].log_softmax(dim=-1)
            found.append(logprobs_TV.gather(1, torch.tensor(answer)[:, None]).mean().item())
        return found

    # One source

    def _text(self, task: Task) -> Ready:
        model, [source] = self._model, task.sources
        settings, one = self._settings(task), self._settings(replace(task, new_tokens=1))

        def run(attended: Any, settings: dict[str, Any] = settings) -> Tokens:
            return [without_end(model.generate(attended, **settings).tokens, self._files.eos)]

        kept = Kept(model, lambda: [model.encode(list(source))])
        return Ready(
            calls={
                "warm": Call(run=lambda: run(kept.memories[0]), before=kept.pin),
                "anew": Call(run=lambda: run(kept.memories[0]), before=kept.unpin),
                "cold": Call(run=lambda: run(list(source)), before=kept.unpin),
                "first": Call(run=lambda: run(list(source), one), before=kept.unpin),
            },
            notes=bytes_per_step(model, len(source), task, self._precision),
        )

    def _settings(self, task: Task) -> dict[str, Any]:
        length = task.new_tokens
        return dict(num_beams=task.beams, max_new_tokens=length, min_new_tokens=length)

    def _speech(self, task: Task) -> Ready:
        model = self._model
        # CTranslate2 has no other beam search than this one.
        search = {} if task.beams == 1 else {"num_beams": task.beams, "patience": 1.0}
        settings = dict(max_new_tokens=MOST_SPOKEN) | search
        prepared = [
            replace(model.prepare(np.load(name)), inputs=torch.from_numpy(np.load(mel_of(name))))
            for name in task.recordings
        ]

        def encoded() -> list[Memory]:
            return [memory for one in prepared for memory in model.encode_prepared([one])]

        def run(memories: Sequence[Memory]) -> Tokens:
            answers = [model.generate(memory, **settings) for memory in memories]
            return [without_end(answer.tokens, self._files.eos) for answer in answers]

        kept = Kept(model, encoded)
        return Ready(
            calls={
                "warm": Call(run=lambda: run(kept.memories), before=kept.pin),
                "anew": Call(run=lambda: run(kept.memories), before=kept.unpin),
                "cold": Call(run=lambda: run(encoded()), before=kept.unpin),
            }
        )

    # Many requests

    def _requests(self, task: Task) -> Ready:
        model, settings = self._model, self._settings(task)
        sources = [list(source) for source in task.sources]

        def run(memories: Sequence[Memory]) -> Tokens:
            attended = [memories[source] for source in task.reads]
            answers = model.generate_batch(attended, [*map(list, task.prefixes)], **settings)
            return [without_end(answer.tokens, self._files.eos) for answer in answers]

        kept = Kept(model, lambda: model.encode_batch(sources))
        calls = {
            "warm": Call(run=lambda: run(kept.memories), before=kept.pin),
            "cold": Call(run=lambda: run(model.encode_batch(sources)), before=kept.unpin),
        }
        notes = {"cold": f"encode_batch, then one generate_batch of {len(task.prefixes)}"}
        if task.kind == "requests":
            submit = partial(self._submitted, task, settings)
            calls["cold, Engine"] = Call(run=submit, before=kept.unpin)
        return Ready(calls=calls, notes=notes)

    def _submitted(self, task: Task, settings: dict[str, Any]) -> Tokens:
        """The same through the engine, each request on its own."""
        memories = self._model.encode_batch([list(source) for source in task.sources])
        with xattn.Engine(self._model) as engine:
            tickets = [
                engine.submit(memories[source], prompt=list(prefix), **settings)
                for source, prefix in zip(task.reads, task.prefixes, strict=True)
            ]
            answers = [ticket.result() for ticket in tickets]
        return [without_end(answer.tokens, self._files.eos) for answer in answers]

    # Language models

    def _language(self, task: Task) -> Ready:
        model, [prompt] = self._model, task.sources

        def run(length: int) -> Tokens:
            answer = model.generate(
                prompt=list(prompt), max_new_tokens=length, min_new_tokens=length
            )
            return [list(answer.tokens)]

        return Ready(
            calls={
                "cold": Call(run=lambda: run(task.new_tokens)),
                "first": Call(run=lambda: run(1)),
            }
        )

    # Parts

    @torch.inference_mode()
    def _cross(self, task: Task) -> Ready:
        """One step of the decoder over a memory that nobody had to encode."""
        network, width = self._model.network, self._model.spec.decoder.memory_width
        generator = torch.Generator().manual_seed(3)
        states_SD = torch.randn(task.positions, width, generator=generator)
        projection = network.project(_memory_of(states_SD), form=task.form)
        state = network.start([[projection]] * task.beams, form=task.form)
        tokens_R1 = torch.tensor([[*self._files.start]] * task.beams)

        @torch.inference_mode()
        def run() -> Tokens:
            network.step(tokens_R1, state)
            state.truncate([0] * task.beams)
            return []

        held, spec = state.cross_bytes, self._model.spec.decoder
        read = held
        if is_absorbed(task.form):  # every layer reads the states, and multiplies its projections
            read = held * spec.placement.count + absorption_bytes(spec)
        notes = {"held_bytes": held, "read_bytes": read}
        return Ready(calls={"step": Call(run=run)}, notes=notes)


class Kept:
    """Memories that are made when first needed, with projections that are held or not."""

    def __init__(self, model: Any, make: Callable[[], list[Memory]]) -> None:
        self._model, self._make = model, make
        self.memories: list[Memory] = []
        self._pinned = False

    def pin(self) -> None:
        """Hold what the decoder makes of them."""
        if not self.memories:
            self.memories = self._make()
        if not self._pinned:
            for memory in self.memories:
                self._model.pin_projection(memory)
        self._pinned = True

    def unpin(self) -> None:
        """Hold memories alone: equal sources make equal keys, and would be answered from a pin."""
        if not self.memories:
            self.memories = self._make()
        if self._pinned:
            for memory in self.memories:
                self._model.unpin_projection(memory)
        self._pinned = False


def mel_of(name: str) -> Path:
    """The file with the log-mel of the samples in ``name``."""
    return Path(name).with_suffix(".mel.npy")


def _memory_of(states_SD: torch.Tensor) -> Memory:
    digest = digest_of(b"random states")
    return Memory(
        states_SD=states_SD,
        key=MemoryKey(
            source=digest,
            modality="text",
            preprocessing="none",
            encoder=digest,
            dtype="float32",
        ),
        spans=SpanTable.even(len(states_SD), 1.0, "tokens"),
        label="random states",
    )
