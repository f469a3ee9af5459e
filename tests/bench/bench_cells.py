"""Cells small enough for tests, and records as a run writes them."""

from typing import Any

from xattn.bench.cells import PEERS, Cell
from xattn.bench.tasks import Task


def tiny_cell(model: str = "t5-tiny", **changes: Any) -> Cell:
    """One source of the tiny T5, eight new tokens."""
    given: dict[str, Any] = {"engines": PEERS, "memory": ""} | changes
    task = given.pop("task", {})
    return Cell(
        workload="W2",
        axes={"model": model, "source": 9, "beams": f"beam{task.get('beams', 1)}", "as": "fp32"},
        model=model,
        task=Task(
            kind=task.pop("kind", "text"),
            sources=((5, 9, 31, 44, 17, 80, 62, 3, 11),),
            new_tokens=8,
            **task,
        ),
        **given,
    )


def recorded(workload: str, engines: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A cell of a record, whose outputs were equal."""
    return {
        "name": f"{workload}/cell",
        "workload": workload,
        "axes": {"model": "t5-small"},
        "precision": "fp32",
        "equality": {"holds": True, "agreement": 1.0, "rule": "same tokens", "faults": ()},
        "engines": engines,
    } | changes


def timed(steps: int = 1, **measures: float) -> dict[str, Any]:
    """An engine's figures: three rounds of each measure, all alike."""
    return {
        "measures": {
            name.replace("_", ", "): {
                "seconds": [value] * 3,
                "steps": steps,
                "median": value,
                "p10": value,
                "p90": value,
            }
            for name, value in measures.items()
        },
        "notes": {},
    }
