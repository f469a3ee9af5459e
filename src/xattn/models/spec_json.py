"""Specs as JSON and back: what a field may be is what its type says."""

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from xattn.errors import CorruptCheckpointError, UsageError, shown

Spec = TypeVar("Spec")


def as_json(spec: Any) -> Any:
    """A spec as JSON would hold it, without the fields that are as they usually are."""
    if is_dataclass(spec) and not isinstance(spec, type):
        values = {one.name: getattr(spec, one.name) for one in fields(spec)}
        usual = {one.name: one.default for one in fields(spec)}
        return {name: as_json(v) for name, v in values.items() if v != usual[name]}
    return [as_json(one) for one in spec] if isinstance(spec, tuple | list) else spec


def from_json(kind: type[Spec], value: Any, where: str) -> Spec:
    """The spec of class ``kind`` that JSON holds; ``where`` is what messages call the place.

    Raises :class:`CorruptCheckpointError` for a field that is missing, unknown or of another type.
    """
    if not isinstance(value, Mapping):
        raise _wrong(where, "an object", value)
    hints, known = get_type_hints(kind), {one.name: one for one in fields(kind)}  # type: ignore[arg-type]
    for name in value:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise CorruptCheckpointError(f"{where}: there is no field {name!r}.{hint}")
    for name, one in known.items():
        if name not in value and one.default is MISSING and one.default_factory is MISSING:
            raise CorruptCheckpointError(f"{where}: {name!r} is missing.")
    given = {name: _typed(hints[name], one, f"{where}: {name}") for name, one in value.items()}
    try:
        return kind(**given)
    except UsageError as error:
        raise CorruptCheckpointError(f"{where}: {error}") from error


def _typed(hint: Any, value: Any, where: str) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        [hint] = [one for one in inner if one is not type(None)]
        return _typed(hint, value, where)
    if origin is Literal:
        if value not in inner:
            raise _wrong(where, f"one of {', '.join(map(str, inner))}", value)
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise _wrong(where, "a list", value)
        return tuple(_typed(inner[0], one, where) for one in value)
    if is_dataclass(hint):
        return from_json(hint, value, where)  # type: ignore[arg-type]
    allowed = (int, float) if hint is float else hint
    if not isinstance(value, allowed) or (isinstance(value, bool) and hint is not bool):
        raise _wrong(where, f"of type {hint.__name__}", value)
    return hint(value)


def _wrong(where: str, bound: str, value: Any) -> CorruptCheckpointError:
    return CorruptCheckpointError(f"{where} must be {bound}, but is {shown(value, 60)} instead.")
