"""What ``xattn doctor --model`` says of forms: what each costs, which is chosen, and why."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from xattn.cli.console import print_line, print_table
from xattn.cli.loading import load_model
from xattn.errors import UsageError, require
from xattn.spec import FORMS, Form, is_narrow

if TYPE_CHECKING:
    from xattn.decoding.forms import Choice
    from xattn.models.network import Network
    from xattn.models.rates import Measured

MOST_POSITIONS = 2**24
"""Positions of a memory that no machine of today would read in each step."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A call of ``generate`` on one memory, at several lengths of it."""

    positions: Sequence[int]
    num_beams: int
    max_new_tokens: int
    measure: bool = False
    """Measure the machine's rates again."""

    def __post_init__(self) -> None:
        fits = len(self.positions) > 0 and all(1 <= S <= MOST_POSITIONS for S in self.positions)
        given = ",".join(map(str, self.positions))
        require(fits, "--positions", f"lengths from 1 to {MOST_POSITIONS}", given)


def explanation(name: str, loading: dict[str, Any], question: Question) -> dict[str, Any]:
    """For each length of a memory: bytes, operations and predicted seconds of every form."""
    network = load_model(name, **loading).network
    if network.spec.decoder.cross_attention is None:
        raise UsageError(
            f"{name} is a decoder-only model, which goes on from a memory and chooses no form; "
            "name a model with cross-attention, or leave out --model."
        )
    from xattn.decoding.forms import obstacle_to_choice
    from xattn.models.rates import measure_again, rates_of

    find = measure_again if question.measure else rates_of
    measured = find(network) if obstacle_to_choice(network) is None else None
    return {
        "model": name,
        "num_beams": question.num_beams,
        "max_new_tokens": question.max_new_tokens,
        "kernels": _kernels(network),
        "rates": None if measured is None else {**asdict(measured.rates), "from": measured.source},
        "lengths": [_length(network, S, question, measured) for S in question.positions],
    }


def _kernels(network: "Network") -> str:
    """Whether the decoder runs through the kernels, and why not."""
    from xattn.models.compiled import obstacle
    from xattn.native.compiler import NativeError
    from xattn.native.library import required

    reason = obstacle(network.decoder)
    if reason is None:
        try:
            required()
        except NativeError as error:
            reason = str(error)
    return "used" if reason is None else f"not used: {reason}"


def _length(
    network: "Network", positions: int, question: Question, measured: "Measured | None"
) -> dict[str, Any]:
    from xattn.costs import Reading, cost
    from xattn.decoding.forms import EXACT, decide

    reading = Reading(positions=positions, rows=question.num_beams, prompt_tokens=1)
    steps = question.max_new_tokens

    def rates() -> Any:
        assert measured is not None
        return measured.rates

    choice = decide(network, [reading], steps, rates)
    seconds: dict[Form, dict[str, float]] = {}
    if measured is not None:
        for form in EXACT:
            one = cost(network.spec.decoder, [reading], form, measured.rates, steps=steps)
            seconds[form] = {
                "step_seconds": one.step_seconds,
                "projection_seconds": one.projection_seconds,
                "seconds": one.seconds,
            }
    return {
        "positions": positions,
        "chosen": choice.form,
        "why": choice.why,
        "forms": [_form(network, form, reading, choice) | seconds.get(form, {}) for form in FORMS],
    }


def _form(network: "Network", form: Form, reading: Any, choice: "Choice") -> dict[str, Any]:
    """What holds whatever the machine."""
    from xattn.costs import flops, projection_flops

    decoder = network.spec.decoder
    dtype = str(network.dtype).removeprefix("torch.")
    held = decoder.cross_bytes(reading.positions, form=form, dtype=dtype)
    if form == choice.form:
        note = "chosen"
    else:
        note = "by name only: loses precision" if is_narrow(form) else ""
    return {
        "form": form,
        "held_bytes": held,
        "step_flops": flops(decoder, reading.positions, reading.rows, form),
        "projection_flops": projection_flops(decoder, reading.positions, form),
        "note": note,
    }


HEADER = ("form", "MiB", "MFLOP/step", "ms/step", "ms to project", "ms in all", "")


def print_explanation(forms: dict[str, Any]) -> None:
    """A table for each length."""
    beams, steps = forms["num_beams"], forms["max_new_tokens"]
    print_line("")
    print_line(
        f"How cross-attention of {forms['model']} reads a memory: {beams} beams, {steps} steps"
    )
    print_line(f"kernels  {forms['kernels']}")
    rates = forms["rates"]
    if rates is not None:
        print_line(
            f"rates    {rates['near_bytes_per_second'] / 1e9:.1f} GB/s of a cache, "
            f"{rates['far_bytes_per_second'] / 1e9:.1f} GB/s of memory, "
            f"{rates['step_flops_per_second'] / 1e9:.0f} GFLOP/s in a step, "
            f"{rates['projection_flops_per_second'] / 1e9:.0f} GFLOP/s projecting; {rates['from']}"
        )
    for length in forms["lengths"]:
        print_line("")
        print_line(f"{length['positions']} positions")
        print_table(HEADER, [_cells(form) for form in length["forms"]])
        print_line(f"auto takes {length['chosen']}. {length['why']}")


def _cells(form: dict[str, Any]) -> tuple[str, ...]:
    return (
        form["form"],
        f"{form['held_bytes'] / 2**20:.2f}",
        f"{form['step_flops'] / 1e6:.1f}",
        *(
            f"{form[name] * 1e3:.2f}" if name in form else "-"
            for name in ("step_seconds", "projection_seconds", "seconds")
        ),
        form["note"],
    )
