"""Which heads tell what an answer rests on, and how much they must read for it to be supported.

Most heads of a decoder look at the start of a text, at punctuation, or at what was just said. Some
look at what the next token is copied from (retrieval heads, Wu et al. 2025, arXiv 2404.15574).
``xattn eval qa --calibrate`` finds them on questions whose answers are known; what was found for
known models is in ``calibrations.toml``.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from xattn.errors import UsageError
from xattn.model import Model


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What to look at, and from where on a sentence counts as supported."""

    heads: Sequence[tuple[int, int]] | None = None
    """(layer, head) pairs; None for all."""
    threshold: float = 0.0
    """Support of a sentence's best citation, below which it is unsupported."""


Calibrations = Mapping[tuple[str, str], Calibration]
"""By the digest of a model, and the name of a reader."""


def calibration_of(model: Model, reader: str, found: Calibrations | None = None) -> Calibration:
    """What was ``found`` for a model and a reader, or comes with xattn; all heads and no threshold
    for others."""
    known = known_calibrations() if found is None else found
    return known.get((model.network.encoder_digest, reader), Calibration())


@cache
def known_calibrations() -> Calibrations:
    """Those that come with xattn."""
    text = files("xattn.library").joinpath("calibrations.toml").read_text(encoding="utf-8")
    return _read(tomllib.loads(text))


def read_calibrations(path: Path) -> Calibrations:
    """Those in a file that ``xattn eval qa --calibrate`` printed. Raises :class:`UsageError`."""
    try:
        found = _read(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path} is no calibration: {error}; it must have what `xattn eval qa --calibrate` "
            "prints."
        ) from error
    if not found:
        raise UsageError(f"{path} has no [[models]]; `xattn eval qa --calibrate` prints some.")
    return found


def toml_of(digest: str, readers: Mapping[str, Calibration]) -> str:
    """What :func:`read_calibrations` reads."""
    lines = ["[[models]]", f'digest = "{digest}"']
    for name, one in readers.items():
        heads = [list(pair) for pair in one.heads or ()]
        lines += [
            f"[models.readers.{name}]",
            f"heads = {heads}",
            f"threshold = {float(one.threshold):.3f}",
        ]
    return "\n".join(lines) + "\n"


def _read(document: dict[str, Any]) -> dict[tuple[str, str], Calibration]:
    return {
        (model["digest"], reader): Calibration(
            heads=[(int(layer), int(head)) for layer, head in found["heads"]],
            threshold=float(found["threshold"]),
        )
        for model in document.get("models", [])
        for reader, found in model["readers"].items()
    }
