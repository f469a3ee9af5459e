"""Which heads tell what an answer rests on, and how much they must read for it to be supported.

Most heads of a decoder look at the start of a text, at punctuation, or at what was just said. Some
look at what the next token is copied from (retrieval heads, Wu et al. 2025, arXiv 2404.15574).
``xattn eval qa --calibrate`` finds them on questions whose answers are known; what was found for
known models is in ``calibrations.toml``.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from xattn.model import Model


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What to look at, and from where on a sentence counts as supported."""

    heads: Sequence[tuple[int, int]] | None = None
    """(layer, head) pairs; None for all."""
    threshold: float = 0.0
    """Support of a sentence's best citation, below which it is unsupported."""


def calibration_of(model: Model, reader: str) -> Calibration:
    """What was found for a model and a reader; all heads and no threshold for others."""
    found = _known().get(model.network.encoder_digest, {}).get(reader)
    if found is None:
        return Calibration()
    heads = [(layer, head) for layer, head in found["heads"]]
    return Calibration(heads=heads, threshold=found["threshold"])


@cache
def _known() -> dict[str, Any]:
    text = files("xattn.library").joinpath("calibrations.toml").read_text(encoding="utf-8")
    return {found["digest"]: found["readers"] for found in tomllib.loads(text).get("models", [])}
