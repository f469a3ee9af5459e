"""Adapters of peft by row: requests that are decoded together may each have another.

Which adapter a row is computed with is told to the layers for as long as a pass lasts, and kept on
no module.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn

from xattn.errors import UsageError, require

BARE = "__base__"
"""What peft calls the layer without an adapter."""
_OF_ROWS: ContextVar[tuple[str, ...] | None] = ContextVar("adapters of rows", default=None)


@contextmanager
def rows_with(names: Sequence[str] | None) -> Iterator[None]:
    """While it lasts, row r of what goes through a layer has the adapter ``names[r]``."""
    token = _OF_ROWS.set(None if names is None else tuple(names))
    try:
        yield
    finally:
        _OF_ROWS.reset(token)


def of_rows() -> tuple[str, ...] | None:
    """The adapters of rows in this pass; None where all have what the model is set to."""
    return _OF_ROWS.get()


def is_adapted(layer: nn.Module) -> bool:
    """Whether a layer has adapters of peft's."""
    return hasattr(layer, "lora_A")


def adapters_of(module: nn.Module) -> list[str]:
    """The names of all adapters that peft put into a module."""
    return list(getattr(module, "peft_config", {}))


def used_adapters(module: nn.Module) -> list[str]:
    """Those that it is set to, which are added together."""
    layer: Any = next(filter(is_adapted, module.modules()), None)
    return [] if layer is None or layer.disable_adapters else list(layer.active_adapters)


def settings_of_adapters(layer: nn.Module) -> list[object]:
    """What peft's adapters make of a layer, besides their weights: which are used, and how much."""
    if not is_adapted(layer):
        return []
    peft: Any = layer
    used = [] if peft.disable_adapters else [n for n in peft.active_adapters if n in peft.lora_A]
    return [*((name, float(peft.scaling[name])) for name in used), list(peft.merged_adapters)]


def require_made_without(makers: Iterable[nn.Module], names: Iterable[str | None]) -> None:
    """Raise :class:`UsageError` where a request names an adapter that changes what encodes.

    What is encoded has a key, and is for all who read it.
    """
    wanted = {name for name in names if name is not None}
    for maker in makers if wanted else ():
        layers: list[Any] = list(filter(is_adapted, maker.modules()))
        for name in sorted(wanted):
            if used_adapters(maker) != [name] and any(name in layer.lora_A for layer in layers):
                raise UsageError(
                    f"`adapter` {name!r} changes what encodes sources, so that no request can name "
                    f"it with a source: set it for all with use_adapters(model, {name!r}), or "
                    "encode the source without it, and give the memory."
                )


def names_for(module: nn.Module, wanted: Sequence[str | None]) -> list[str] | None:
    """What each row is computed with: what it names, or else what the module is set to.

    None where rows need not be told apart: there is no adapter, or none is named and several are
    used. Raises :class:`UsageError` for a name that is none, and where some rows name one and
    others are to have several.
    """
    known = adapters_of(module)
    for name in wanted:
        fits = name is None or name in known
        require(fits, "adapter", f"one of {', '.join(known) or 'none, for there is none'}", name)
    if not known:
        return None
    usual = used_adapters(module)
    if len(usual) > 1 and None in wanted:
        together = not any(wanted)
        require(together, "adapter", f"given for each request while {usual} are used", None)
        return None
    return [name if name is not None else (*usual, BARE)[0] for name in wanted]
