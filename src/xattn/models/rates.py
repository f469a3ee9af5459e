"""How fast this machine is at what the forms of cross-attention differ in: measured once, and kept.

What is measured is a decoder of one layer, through the kernels or through torch, as the model's own
decoder runs. The rates are kept beside the kernels, in a file for each processor, number of
threads, version of the kernels and of torch. They are never measured before someone asks.

Axes: S positions, H heads, K head width, D width of a memory.
"""

import hashlib
import json
import math
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xattn.attention import Absorbed, Materialized, Segment
from xattn.costs import (
    FAR_BYTES,
    NEAR_BYTES,
    Rates,
    absorption_bytes,
    flops,
    projection_flops,
)
from xattn.memory import Memory, MemoryKey, SpanTable, digest_of
from xattn.models.compiled import obstacle
from xattn.models.network import Network
from xattn.models.state import Projection
from xattn.native import library
from xattn.native.library import directory
from xattn.native.pages import spacious
from xattn.native.processor import processor
from xattn.spec import (
    AttentionSpec,
    DecoderSpec,
    FeedForwardSpec,
    Form,
    ModelSpec,
    NormSpec,
    Placement,
    PositionSpec,
    TokenSpec,
)

HEADS, HEAD_WIDTH, WIDTH = 8, 64, 512
"""Of the decoder that is measured: T5-small's."""
ABSORBED_ROWS, ABSORBED_POSITIONS, PROJECTED_POSITIONS = 4, 4096, 1024
TRIES, PATIENCE_SECONDS = 3, 0.06
"""The best counts, of so many tries at least, and of as many as there is time for."""
QUIET_SHARE = 0.6
"""Of its threads' time a measurement has at least this much, or it was disturbed."""
METHOD = 2
"""Changes with what is measured, and how memories lie."""
LEAST, MOST = 1e6, 1e16
"""Rates beyond these are no machine's."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Rates, and where they come from."""

    rates: Rates
    source: str
    """For people: measured now or earlier, and in which file they are kept."""


_lock = threading.Lock()
_known: dict[str, Measured] = {}


def rates_of(network: Network) -> Measured:
    """The rates of this machine for decoders that run as this one does; measured at first need."""
    about = _about(network)
    path = _path(about)
    with _lock:
        if str(path) not in _known:
            _known[str(path)] = _kept(path, about) or _measured(path, about)
        return _known[str(path)]


def measure_again(network: Network) -> Measured:
    """Rates measured now, in the place of those that were kept."""
    about = _about(network)
    path = _path(about)
    with _lock:
        _known[str(path)] = _measured(path, about)
        return _known[str(path)]


def known_rates(*, kernels: bool) -> Measured | None:
    """The rates that were measured earlier, without measuring any."""
    about = about_machine(kernels=kernels)
    return _kept(_path(about), about)


def uses_kernels(network: Network) -> bool:
    """Whether its decoder runs through the kernels."""
    return network.use_kernels and obstacle(network.decoder) is None and library() is not None


def about_machine(*, kernels: bool) -> dict[str, Any]:
    """All that the rates depend on."""
    functions = library() if kernels else None
    return {
        "method": METHOD,
        "processor": processor(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "kernels": None if functions is None else functions.path.stem,
    }


def _about(network: Network) -> dict[str, Any]:
    return about_machine(kernels=uses_kernels(network))


def _path(about: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return directory() / f"rates-{digest[:16]}.json"


# At rest


def _kept(path: Path, about: dict[str, Any]) -> Measured | None:
    """What the file says; None where there is none, or none that can be believed."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        values = document["rates"]
        if document["about"] != about or values.keys() != {f.name for f in fields(Rates)}:
            return None
        rates = Rates(**{name: float(value) for name, value in values.items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # it is measured again, and written anew
    if not all(LEAST <= rate <= MOST for rate in asdict(rates).values()):
        return None
    return Measured(rates=rates, source=f"measured earlier, kept in {path}")


def _measured(path: Path, about: dict[str, Any]) -> Measured:
    wall, worked = time.perf_counter(), time.process_time()
    rates = measure(kernels=about["kernels"] is not None)
    share = (time.process_time() - worked) / (time.perf_counter() - wall)
    if share < QUIET_SHARE * min(about["threads"], about["cores"] or 1):
        others = "measured now; not kept, for others were at work on this machine"
        return Measured(rates=rates, source=others)
    document = json.dumps({"about": about, "rates": asdict(rates)}, indent=2) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write_whole(path, document)
    except OSError as error:
        reason = error.strerror or error
        return Measured(rates=rates, source=f"measured now; not kept, {path.parent}: {reason}")
    return Measured(rates=rates, source=f"measured now, kept in {path}")


def _write_whole(path: Path, text: str) -> None:
    """Under its name it is never seen in part."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except OSError:
        os.unlink(name)
        raise


# Measuring


def measure(*, kernels: bool) -> Rates:
    """The rates of this machine, now: the best of several tries at each, for others work too."""
    with torch.inference_mode():
        network = _one_layer(use_kernels=kernels)
        decoder = network.spec.decoder
        # Laid as projections are. Keys that are values, too, would be read once.
        shape = (1, HEADS, FAR_BYTES // (2 * 4 * HEADS * HEAD_WIDTH), HEAD_WIDTH)
        keys, values = (spacious(*shape, dtype=torch.float32).fill_(0.01) for _ in range(2))
        far = Materialized(k_NGSK=keys, v_NGSK=values)
        near_positions = NEAR_BYTES // (2 * 4 * HEADS * HEAD_WIDTH)
        near = Materialized(
            k_NGSK=far.k_NGSK[:, :, :near_positions], v_NGSK=far.v_NGSK[:, :, :near_positions]
        )
        without = _step_seconds(network, None, 1)
        far_seconds = _beyond(_step_seconds(network, far, 1), without)
        near_seconds = _beyond(_step_seconds(network, near, 1), without)
        del keys, values, far, near
        S, W = ABSORBED_POSITIONS, ABSORBED_ROWS
        [absorbed] = network.decoder.project(_numbers(1, S, WIDTH), None, "absorbed")
        assert absorbed is not None
        step_seconds = _beyond(_step_seconds(network, absorbed, W), _step_seconds(network, None, W))
        memory = _memory(PROJECTED_POSITIONS)
        projection_seconds = _best(lambda: network.project(memory))
    # No cache is slower than memory, nor a large product than small ones: where it seems so, others
    # were at work.
    far_rate = FAR_BYTES / far_seconds
    near_rate = max(NEAR_BYTES / near_seconds, far_rate)
    # What is left of a step after reading; half of it at least, however slow a cache seemed.
    read_seconds = (absorbed.numbers.nbytes + absorption_bytes(decoder)) / near_rate
    step_rate = flops(decoder, S, W, "absorbed") / _beyond(step_seconds, read_seconds)
    projected = projection_flops(decoder, PROJECTED_POSITIONS, "materialized")
    return Rates(
        near_bytes_per_second=near_rate,
        far_bytes_per_second=far_rate,
        step_flops_per_second=step_rate,
        projection_flops_per_second=max(projected / projection_seconds, step_rate),
    )


def _step_seconds(network: Network, segment: Segment | None, rows: int) -> float:
    """A step of so many rows, all of which read the segment."""
    attended: list[Projection] = []
    if segment is not None:
        absorbed = isinstance(segment, Absorbed)
        memory = _memory(segment.numbers.shape[1 if absorbed else 2])
        form: Form = "absorbed" if absorbed else "materialized"
        attended.append(Projection(memories=(memory,), segments=(segment,), form=form))
    state = network.start([attended] * rows)
    tokens_R1 = torch.zeros(rows, 1, dtype=torch.long)

    def step() -> None:
        state.truncate([0] * rows)
        network.step(tokens_R1, state)

    return _best(step)


def _beyond(whole: float, rest: float) -> float:
    """The whole less the rest: no less than half of it, however unlucky the rest was."""
    return max(whole - rest, whole / 2)


def _best(run: Callable[[], object]) -> float:
    """Seconds of the quickest of some runs, the first left out."""
    run()
    best, tried, end = math.inf, 0, time.perf_counter() + PATIENCE_SECONDS
    while (start := time.perf_counter()) < end or tried < TRIES:
        run()
        best, tried = min(best, time.perf_counter() - start), tried + 1
    return best


def _one_layer(*, use_kernels: bool) -> Network:
    attention = AttentionSpec(
        heads=HEADS, head_width=HEAD_WIDTH, kv_heads=HEADS, scale=HEAD_WIDTH**-0.5
    )
    decoder = DecoderSpec(
        width=64,
        layers=1,
        self_attention=AttentionSpec(heads=1, head_width=8, kv_heads=1, scale=1.0),
        feed_forward=FeedForwardSpec(width=16, activation="relu"),
        norm=NormSpec(),
        norm_place="before",
        position=PositionSpec(kind="none"),
        vocab_size=16,
        placement=Placement.every(1),
        cross_attention=attention,
        memory_width=WIDTH,
    )
    spec = ModelSpec(family="measured", decoder=decoder, tokens=TokenSpec(eos=()))
    with torch.random.fork_rng(devices=[]):  # whoever seeded torch draws what they would have
        network = Network(spec)
    network.use_kernels = use_kernels
    return network.requires_grad_(False).eval()


def _memory(positions: int) -> Memory:
    """Of equal states."""
    digest = digest_of(b"rates")
    key = MemoryKey(
        source=digest, modality="text", preprocessing="none", encoder=digest, dtype="float32"
    )
    spans = SpanTable.even(positions, 1.0, "positions")
    return Memory(states_SD=_numbers(1, WIDTH).expand(positions, WIDTH), key=key, spans=spans)


def _numbers(*shape: int) -> Tensor:
    """Written, and so really there."""
    return torch.full(shape, 0.01)
