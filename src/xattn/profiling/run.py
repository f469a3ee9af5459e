"""One profile: a model is loaded and run, and everything that can be measured is.

Axes: S positions of a memory, D its width.
"""

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from xattn.errors import UsageError, is_whole, require
from xattn.ledger import Ledger, plan
from xattn.ledger.amounts import KIND_OF
from xattn.ledger.live import of_weights
from xattn.ledger.workspace import loading_bytes
from xattn.memory import Memory, SpanTable
from xattn.model import Model, load
from xattn.models.clock import PARTS
from xattn.models.encode import Prepared
from xattn.native.process import peak_bytes, resident_bytes
from xattn.profiling.watch import Watched, watched
from xattn.spec import FORMS, Form, ModelSpec
from xattn.store import MemoryStore

ROUNDS, STEPS_TIMED = 5, 7
LENGTHS = (256, 1024, 4096, 16384)
REQUESTS = (1, 2, 4, 8)


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What is to be measured."""

    prompt: Any = None
    beams: int = 1
    new_tokens: int = 64
    form: Form = "materialized"
    rounds: int = ROUNDS
    lengths: tuple[int, ...] = LENGTHS
    """Positions of memories for which a step is timed."""
    requests: tuple[int, ...] = REQUESTS
    """Numbers of requests for which a store is compared with none."""

    def __post_init__(self) -> None:
        require(self.form in FORMS, "form", f"one of {', '.join(FORMS)}", self.form)
        for name in ("beams", "new_tokens", "rounds"):
            value = getattr(self, name)
            require(is_whole(value, 1), name, "a whole number, at least 1", value)
        for name in ("lengths", "requests"):
            values = getattr(self, name)
            fits = all(is_whole(value, 1) for value in values)
            require(fits, name, "whole numbers, at least 1", values)


@dataclass(frozen=True, kw_only=True)
class Size:
    """Bytes of one row of the ledger, foretold and found."""

    input: str
    what: str
    predicted: int
    measured: int

    @property
    def difference(self) -> float:
        """Of the measured bytes, as a share."""
        return self.predicted / self.measured - 1 if self.measured else 0.0


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """How long a step takes over a memory of some length."""

    kind: str
    positions: int
    seconds: float
    bytes: int
    """Of what cross-attention reads from."""


@dataclass(frozen=True, kw_only=True)
class StoreTimes:
    """What a store on disk saves, and from which request on."""

    encode_seconds: float
    """Of all inputs."""
    put_seconds: float
    """Writing their memories, once."""
    get_seconds: float
    """Reading them back."""
    predicted_requests: float
    """Requests for the same inputs from which a store is quicker; infinite where it never is."""
    measured: tuple[tuple[int, float, float], ...]
    """Requests, seconds without a store, seconds with one."""

    @property
    def measured_requests(self) -> int | None:
        """The first number in the sweep for which a store was quicker; None if none was."""
        quicker = (count for count, without, with_one in self.measured if with_one < without)
        return next(quicker, None)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Everything that was measured, beside what was foretold."""

    model: str
    parameters_dtype: str
    inputs: tuple[tuple[str, str, int], ...]
    """Kind, label, positions."""
    wishes: Wishes
    threads: int
    kernels: bool
    phases: Mapping[str, float]
    """Seconds, in the order in which they come; steps are one token of each beam."""
    tokens: int
    text: str
    sizes: tuple[Size, ...]
    base_bytes: int | None
    """In RAM before the model was loaded: Python, torch, and this package."""
    predicted_peak_bytes: int | None
    peak_bytes: int
    lengths: tuple[StepTime, ...]
    store: StoreTimes | None
    ledger: Ledger
    spec: ModelSpec

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        found = asdict(self)
        del found["spec"]
        found["ledger"] = self.ledger.to_rows()
        if self.store is not None and math.isinf(self.store.predicted_requests):
            found["store"]["predicted_requests"] = None
        return found


def profile(
    name: str,
    sources: Sequence[Any],
    wishes: Wishes,
    *,
    loading: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Profile:
    """Load ``name``, run it on ``sources``, and measure.

    ``sources`` are what :meth:`Model.encode <xattn.Model.encode>` takes; all of them are attended
    to at once. ``loading`` are keywords of :func:`xattn.load`, ``say`` is told what is being done.
    Peaks are those of a fresh process: call this in one.
    """
    given = dict(loading or {})
    _warm_up()
    base, begun = resident_bytes(), time.perf_counter()
    say(f"loading {name}")
    model = load(name, **given)
    phases = {"load": time.perf_counter() - begun}
    if model.spec.decoder.cross_attention is not None and not sources:
        raise UsageError("`inputs` must be given: this model attends to something.")
    say("encoding and decoding")
    run = _Run(model, sources, wishes)
    phases |= run.once()
    peak = peak_bytes()
    found = _median([phases, *(run.once() for _ in range(wishes.rounds - 1))])
    ledger = run.planned(given.get("quantize"))
    predicted = None
    if base is not None:
        extra = loading_bytes(model.spec, quantize=given.get("quantize"))
        weights = ledger.of("weights")
        predicted = base + max(weights + extra, ledger.total_bytes)
    say("timing steps over other lengths")
    lengths = tuple(run.over_lengths())
    say("comparing a store with none")
    store = run.with_store() if run.memories and wishes.requests else None
    return Profile(
        model=name,
        parameters_dtype=given.get("quantize") or str(model.network.dtype).removeprefix("torch."),
        inputs=tuple((KIND_OF[m.modality], m.label, len(m)) for m in run.memories),
        wishes=wishes,
        threads=torch.get_num_threads(),
        kernels=run.kernels,
        phases=found,
        tokens=run.tokens,
        text=run.text,
        sizes=tuple(run.sizes(ledger)),
        base_bytes=base,
        predicted_peak_bytes=predicted,
        peak_bytes=peak,
        lengths=lengths,
        store=store,
        ledger=ledger,
        spec=model.spec,
    )


class _Run:
    """A model, what it is given, and what came of it."""

    def __init__(self, model: Model, sources: Sequence[Any], wishes: Wishes) -> None:
        self._model, self._sources, self._wishes = model, list(sources), wishes
        self.memories: list[Memory] = []
        self.watched = Watched()
        self.tokens, self.text, self.prompt_tokens = 0, "", 1

    @property
    def kernels(self) -> bool:
        """Whether steps ran through the compiled kernels."""
        return any(state.native is not None for state in self.watched.states)

    def once(self) -> dict[str, float]:
        """Canonicalise, encode, project and decode; seconds of each, and of a step's parts."""
        model, wishes = self._model, self._wishes
        found: dict[str, float] = {}
        prepared = _timed(found, "canonicalise", self._prepared)
        self.memories = _timed(found, "encode", lambda: model.encode_prepared(prepared))
        _timed(found, "project", self._pin)
        with watched(model.network) as seen:
            answer = _timed(found, "decode", self._answer)
        for memory in self.memories:
            model.unpin_projection(memory, form=wishes.form)
        self.watched, self.tokens, self.text = seen, len(answer.tokens), answer.text
        self.prompt_tokens = max(1, len(answer.prompt))
        decoding = found.pop("decode")
        prompt, *steps = seen.step_seconds
        found["prefill"] = prompt
        count = max(1, len(steps))
        for part in PARTS:
            found[f"step: {part}"] = sum(parts[part] for parts in seen.parts[1:]) / count
        counted = sum(found[f"step: {part}"] for part in PARTS)
        found["step: between"] = max(0.0, sum(steps) / count - counted)
        found["step: search"] = max(0.0, decoding - prompt - sum(steps)) / count
        return found

    def _prepared(self) -> list[Prepared]:
        return self._model.prepare_batch(self._sources) if self._sources else []

    def _pin(self) -> None:
        for memory in self.memories:
            self._model.pin_projection(memory, form=self._wishes.form)

    def _answer(self) -> Any:
        wishes = self._wishes
        return self._model.generate(
            self.memories or None,
            wishes.prompt,
            form=wishes.form,
            num_beams=wishes.beams,
            max_new_tokens=wishes.new_tokens,
        )

    def planned(self, quantize: str | None) -> Ledger:
        """What the ledger says of this."""
        positions: dict[str, int] = {}
        for memory in self.memories:
            kind = KIND_OF[memory.modality]
            positions[kind] = positions.get(kind, 0) + len(memory)
        dtype = str(self._model.network.dtype).removeprefix("torch.")
        return plan(
            self._model.spec,
            positions,
            beams=self._wishes.beams,
            form=self._wishes.form,
            dtype=dtype,
            weights_dtype=quantize or dtype,
            prompt_tokens=self.prompt_tokens,
            new_tokens=max(1, self.tokens),
        )

    def sizes(self, ledger: Ledger) -> list[Size]:
        """The ledger's rows beside the tensors that are there."""
        states: dict[str, int] = {}
        for memory in self.memories:
            kind = KIND_OF[memory.modality]
            states[kind] = states.get(kind, 0) + memory.states_SD.nbytes
        found = [
            Size(input=kind, what="states", predicted=ledger.of("states", kind), measured=measured)
            for kind, measured in states.items()
        ]
        for what in ("keys and values", "int8 states"):
            if predicted := ledger.of(what):
                measured = self.watched.cross_bytes
                found.append(
                    Size(input="inputs", what=what, predicted=predicted, measured=measured)
                )
        cache, weights = self.watched.cache_bytes, of_weights(self._model.network).bytes
        found.append(
            Size(
                input="answer",
                what="self-attention cache",
                predicted=ledger.of("self-attention cache"),
                measured=cache,
            )
        )
        predicted = ledger.of("weights")
        found.append(Size(input="model", what="weights", predicted=predicted, measured=weights))
        return found

    def over_lengths(self) -> list[StepTime]:
        """A step of the decoder over memories of other lengths, of each kind that is there."""
        first: dict[str, Memory] = {}
        for memory in self.memories:
            first.setdefault(KIND_OF[memory.modality], memory)
        return [
            self._step_over(kind, memory, length)
            for kind, memory in first.items()
            for length in self._wishes.lengths
        ]

    @torch.inference_mode()
    def _step_over(self, kind: str, memory: Memory, length: int) -> StepTime:
        """Its own positions again and again: what a step reads, and not what it says."""
        network, wishes = self._model.network, self._wishes
        places = torch.arange(length) % len(memory)
        longer = replace(
            memory,
            states_SD=memory.states_SD[places],
            spans=SpanTable.even(length, 1.0, "positions"),
            mask_S=None,
        )
        projection = network.project(longer, form=wishes.form)
        state = network.start([[projection]] * wishes.beams, form=wishes.form)
        tokens_R1 = torch.zeros(wishes.beams, 1, dtype=torch.long)
        seconds = []
        for _ in range(STEPS_TIMED):
            begun = time.perf_counter()
            network.step(tokens_R1, state)
            seconds.append(time.perf_counter() - begun)
            state.truncate([0] * wishes.beams)
        return StepTime(
            kind=kind, positions=length, seconds=median(seconds[1:]), bytes=state.cross_bytes
        )

    def with_store(self) -> StoreTimes:
        """Requests for the same inputs, each process starting with nothing in RAM."""
        found: dict[str, float] = {}
        with tempfile.TemporaryDirectory() as directory:
            prepared = self._prepared()
            memories = _timed(
                found, "encode", lambda: self._model.encode_prepared(self._prepared())
            )
            with MemoryStore(Path(directory) / "one", ram_bytes=0) as store:
                _timed(found, "put", lambda: [store.put(memory) for memory in memories])
                _timed(found, "get", lambda: [store.get(item.key) for item in prepared])
            measured = tuple(
                self._compared(count, Path(directory)) for count in self._wishes.requests
            )
        saved = found["encode"] - found["get"]
        return StoreTimes(
            encode_seconds=found["encode"],
            put_seconds=found["put"],
            get_seconds=found["get"],
            predicted_requests=1 + found["put"] / saved if saved > 0 else math.inf,
            measured=measured,
        )

    def _compared(self, count: int, directory: Path) -> tuple[int, float, float]:
        """Medians of three tries each, in turns."""
        tries = [
            (self._without(count), self._with(count, directory / f"{count}-{n}")) for n in range(3)
        ]
        return count, median(a for a, _ in tries), median(b for _, b in tries)

    def _encoded(self) -> list[Memory]:
        return self._model.encode_prepared(self._prepared())

    def _without(self, count: int) -> float:
        begun = time.perf_counter()
        for _ in range(count):
            self._encoded()
        return time.perf_counter() - begun

    def _with(self, count: int, directory: Path) -> float:
        with MemoryStore(directory, ram_bytes=0) as store:
            begun = time.perf_counter()
            for _ in range(count):
                store.get_or_encode_prepared(self._model, self._prepared())
            return time.perf_counter() - begun


def _warm_up() -> None:
    """What torch takes at its first product is not the model's."""
    torch.randn(256, 256) @ torch.randn(256, 256)


def _timed(found: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
    begun = time.perf_counter()
    result = work()
    found[name] = time.perf_counter() - begun
    return result


def _median(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each phase over the rounds that had it."""
    return {name: median(r[name] for r in rounds if name in r) for name in rounds[0]}
