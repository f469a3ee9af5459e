"""One profile: a model is loaded and run, and everything that can be measured is.

Axes: S positions of a memory, D its width.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch

from xattn.errors import UsageError, is_whole, require
from xattn.ledger import Ledger, plan
from xattn.ledger.account import READ
from xattn.ledger.amounts import KIND_OF
from xattn.ledger.live import of_weights
from xattn.ledger.workspace import loading_bytes
from xattn.memory import Memory, SpanTable
from xattn.model import Model, load
from xattn.models.clock import PARTS
from xattn.models.encode import Prepared
from xattn.native.process import peak_bytes, resident_bytes
from xattn.profiling.allocation import Allocations, Held, Tagged
from xattn.profiling.stores import StoreTimes, compare
from xattn.profiling.watch import Around, Watched, watched
from xattn.spec import FORMS, Form, ModelSpec

ROUNDS, STEPS_TIMED = 5, 7
LENGTHS = (256, 1024, 4096, 16384)
REQUESTS = (1, 2, 4, 8)
MOST_LENGTH, MOST_REQUESTS = 2**22, 10_000


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
        for name, most in (("lengths", MOST_LENGTH), ("requests", MOST_REQUESTS)):
            values = getattr(self, name)
            fits = all(is_whole(value, 1) and value <= most for value in values)
            require(fits, name, f"whole numbers from 1 to {most}", values)


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
class TensorBytes:
    """What torch allocated in a pass of its own, the model's loading with it."""

    tags: tuple[Tagged, ...]
    """By phase."""
    peak_bytes: int
    """After loading, at most."""
    at_peak: tuple[Held, ...]
    """The largest holders then."""
    workspace_bytes: int
    """What encoding or decoding needed for a while, beyond what is held."""
    predicted_workspace_bytes: int
    """At most, says the ledger."""


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
    tensors: TensorBytes
    lengths: tuple[StepTime, ...]
    store: StoreTimes | None
    ledger: Ledger
    spec: ModelSpec

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        found = asdict(self)
        del found["spec"]
        found["ledger"] = self.ledger.to_rows()
        if self.store is not None:
            found["store"]["measured_requests"] = self.store.measured_requests
            if math.isinf(self.store.predicted_requests):
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
    found = _measured(name, sources, wishes, given, say)
    # Only now, so that two copies of the weights are never there at once.
    say("counting tensors")
    return Profile(**found, tensors=_tensors(name, sources, wishes, given, found["ledger"]))


def _measured(
    name: str,
    sources: Sequence[Any],
    wishes: Wishes,
    given: Mapping[str, Any],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Fields of a profile: all but what tensors take."""
    _warm_up()
    base, begun = resident_bytes(), time.perf_counter()
    say(f"loading {name}")
    model = load(name, **given)
    phases = {"load": time.perf_counter() - begun}
    if model.spec.decoder.cross_attention is not None and not sources:
        raise UsageError("`inputs` must be given: this model attends to something.")
    say("encoding and decoding")
    run = _Run(model, sources, wishes)
    phases |= run.timed()
    peak = peak_bytes()
    found = _median([phases, *(run.timed() for _ in range(wishes.rounds - 1))])
    ledger = run.planned(given.get("quantize"))
    predicted = None
    if base is not None:
        extra = loading_bytes(model.spec, quantize=given.get("quantize"))
        predicted = base + max(ledger.of("weights") + extra, ledger.total_bytes)
    say("timing steps over other lengths")
    lengths = tuple(run.over_lengths())
    store = None
    if run.memories and wishes.requests:
        say("comparing a store with none")
        encoding = found["canonicalise"] + found["encode"]
        store = compare(model, run.prepared, wishes.requests, encode_seconds=encoding)
    return dict(
        model=name,
        parameters_dtype=given.get("quantize") or dtype_of(model),
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


def _tensors(
    name: str, sources: Sequence[Any], wishes: Wishes, given: Mapping[str, Any], ledger: Ledger
) -> TensorBytes:
    """Load and run it again, with every allocation noted: that takes time, so nothing is timed."""
    with Allocations() as seen:
        with seen.tagged("load"):
            model = load(name, **given)
            seen.note((*model.network.parameters(), *model.network.buffers()))
        seen.begin_again()
        run = _Run(model, sources, wishes)
        run.once(seen.tagged)
    # What decoding gave back holds the cache, too.
    decoding = seen.working["search"] - run.watched.cache_bytes
    return TensorBytes(
        tags=seen.tags(),
        peak_bytes=seen.peak_bytes,
        at_peak=seen.largest(),
        workspace_bytes=max(seen.working["encode"], decoding),
        predicted_workspace_bytes=ledger.of("workspace"),
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

    def once(self, around: Around) -> None:
        """Canonicalise, encode, project and decode, each within ``around`` its name."""
        model = self._model
        with around("canonicalise"):
            prepared = self.prepared()
        with around("encode"):
            self.memories = model.encode_prepared(prepared)
        with around("project"):
            self._pin()
        with watched(model.network, around) as seen, around("search"):
            answer = self._answer()
        for memory in self.memories:
            model.unpin_projection(memory, form=self._wishes.form)
        self.watched, self.tokens, self.text = seen, len(answer.tokens), answer.text
        self.prompt_tokens = max(1, len(answer.prompt))

    def timed(self) -> dict[str, float]:
        """Seconds of each phase, and of a step's parts."""
        watch = Stopwatch()
        self.once(watch.phase)
        found, seen = watch.seconds, self.watched
        decoding = found.pop("search")
        found.pop("step", None)
        prompt, *steps = seen.step_seconds
        found["prefill"] = prompt
        count = max(1, len(steps))
        for part in PARTS:
            found[f"step: {part}"] = sum(parts[part] for parts in seen.parts[1:]) / count
        counted = sum(found[f"step: {part}"] for part in PARTS)
        found["step: between"] = max(0.0, sum(steps) / count - counted)
        found["step: search"] = max(0.0, decoding - prompt - sum(steps)) / count
        return found

    def prepared(self) -> list[Prepared]:
        """Sources in their canonical form, as model inputs."""
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
        lengths = Counter((KIND_OF[m.modality], len(m)) for m in self.memories)
        positions: dict[str, list[tuple[int, int]]] = {}
        for (kind, length), count in lengths.items():
            positions.setdefault(kind, []).append((count, length))
        dtype = dtype_of(self._model)
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
        for what in READ:
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
        most = most_positions(self._model.spec, self._wishes.new_tokens)
        return [
            self._step_over(kind, memory, length)
            for kind, memory in first.items()
            for length in self._wishes.lengths
            if most is None or length <= most
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


class Stopwatch:
    """Seconds of phases, by their names."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What happens in this block is of this phase, and of those around it."""
        begun = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun


def dtype_of(model: Model) -> str:
    """Number format of a model's weights, as plans name it."""
    return str(model.network.dtype).removeprefix("torch.")


def most_positions(spec: ModelSpec, new_tokens: int) -> int | None:
    """Positions that a memory of a decoder-only model may have, so that an answer finds room."""
    limit = spec.decoder.position.limit
    if spec.decoder.cross_attention is not None or limit is None:
        return None
    return max(0, limit - new_tokens - 1)


def _warm_up() -> None:
    """What torch takes at its first product is not the model's."""
    torch.randn(256, 256) @ torch.randn(256, 256)


def _median(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each phase over the rounds that had it."""
    return {name: median(r[name] for r in rounds if name in r) for name in rounds[0]}
