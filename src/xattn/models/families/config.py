"""Reading a Hugging Face config: what families have in common."""

import math
from collections.abc import Mapping
from typing import Any

from xattn.errors import CorruptCheckpointError, UnsupportedModelError, shown
from xattn.spec import TokenSpec

Config = Mapping[str, Any]

MOST = 10**7
"""No dimension of a model is larger."""
MOST_LAYERS = 4096


def whole(
    config: Config, name: str, default: int | None = None, *, least: int = 1, most: int = MOST
) -> int:
    """The whole number ``name``; ``default`` where the config leaves it out.

    Raises :class:`CorruptCheckpointError` where it is missing and has no default, or is no number
    from ``least`` to ``most``.
    """
    value = config.get(name) if config.get(name) is not None else default
    if value is None:
        raise CorruptCheckpointError(f"config.json: {name!r} is missing.")
    fits = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
    if not fits:
        raise _wrong(name, f"a whole number from {least} to {most}", value)
    return int(value)


def number(config: Config, name: str, default: float | None = None) -> float:
    """The number ``name``, above 0 and finite; raises as :func:`whole` does."""
    value = config.get(name) if config.get(name) is not None else default
    if value is None:
        raise CorruptCheckpointError(f"config.json: {name!r} is missing.")
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    if not fits or not 0 < value < math.inf:
        raise _wrong(name, "a number above 0", value)
    return float(value)


def flag(config: Config, name: str, default: bool) -> bool:
    """The truth value ``name``; raises as :func:`whole` does."""
    value = config.get(name) if config.get(name) is not None else default
    if not isinstance(value, bool):
        raise _wrong(name, "true or false", value)
    return value


def _wrong(name: str, bound: str, value: Any) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        f"config.json: {name!r} must be {bound}, but is {shown(value, 60)} instead."
    )


def refuse(config: Config, name: str, *supported: Any) -> None:
    """Raise :class:`UnsupportedModelError` if ``name`` is set to something not in ``supported``."""
    value = config.get(name)
    if value is not None and value not in supported:
        raise UnsupportedModelError(
            f"config.json: {name!r} must be one of {supported}, but is {shown(value)} instead; "
            "xattn does not run this variant."
        )


def token_spec(config: Config, generation: Config, *, decoder_start: int | None) -> TokenSpec:
    """Special tokens; the generation config wins over the config, as in transformers."""

    def find(name: str) -> Any:
        return generation.get(name) if generation.get(name) is not None else config.get(name)

    def one(name: str) -> int | None:
        value = find(name)
        # Some configs write -1 for none.
        return None if value is None else whole({name: value}, name, least=-1)

    eos = find("eos_token_id")
    several = list(eos) if isinstance(eos, list | tuple) else [] if eos is None else [eos]
    return TokenSpec(
        eos=tuple(whole({"eos_token_id": value}, "eos_token_id", least=0) for value in several),
        pad=one("pad_token_id"),
        bos=one("bos_token_id"),
        decoder_start=decoder_start,
    )


def decoder_start(config: Config, generation: Config) -> int:
    """First decoder token of an encoder-decoder: its own setting, else the one for beginnings."""
    for name in ("decoder_start_token_id", "bos_token_id"):
        for source in (generation, config):
            if source.get(name) is not None:
                return whole(source, name, least=0)
    raise CorruptCheckpointError(
        "config.json: neither 'decoder_start_token_id' nor 'bos_token_id' is given."
    )
