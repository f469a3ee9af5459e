"""Families of checkpoints: each a function from config to spec, and a table of tensor names.

A family's module is imported when a checkpoint asks for it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module

from xattn.errors import UnsupportedModelError, shown
from xattn.models.families.config import Config
from xattn.models.weights import WeightTable
from xattn.spec import ModelSpec

FAMILIES = {
    "t5": "t5",
    "mt5": "t5",
    "bart": "bart",
    "mbart": "bart",
    "marian": "bart",
    "m2m_100": "bart",
    "whisper": "whisper",
    "llama": "llama",
    "qwen2": "llama",
    "qwen3": "llama",
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one ``model_type`` of Hugging Face configs is read."""

    name: str
    spec: Callable[[Config, Config], ModelSpec]
    """(config, generation config) -> spec; raises :class:`UnsupportedModelError`."""
    table: WeightTable


def family_of(config: Config) -> Family:
    """The family that a Hugging Face config names in ``model_type``.

    Raises :class:`UnsupportedModelError`, which lists the names it knows.
    """
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        near = get_close_matches(str(name), FAMILIES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UnsupportedModelError(
            f"config.json: `model_type` must be one of {', '.join(sorted(FAMILIES))}, "
            f"but is {shown(name)} instead.{hint}"
        )
    family: Family = import_module(f"{__name__}.{FAMILIES[name]}").family(name, config)
    return family
