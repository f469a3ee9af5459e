"""Which passages a search may find: ``{"source": "…", "year": 2020}``.

A value is one that the field must have, a list of which it must have one, or a range
``{"min": 2010, "max": 2020}`` with either end or both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from xattn.errors import UsageError, is_number, require
from xattn.library.passage import Scalar

Kind = Literal["text", "number", "truth"]
Where = Mapping[str, Any]
RANGE = ("min", "max")
MOST_VALUES = 1000
"""In a list of values that a field may have."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """Something that passages can be filtered by."""

    name: str
    kind: Kind
    column: str
    """Its name in the database."""


BUILT_IN = (
    Field(name="source", kind="text", column="source"),
    Field(name="title", kind="text", column="title"),
)
"""What every passage has; metadata cannot have these names."""
RESERVED = {field.name for field in BUILT_IN}


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What one field of a passage must be: one of some values, or between two bounds."""

    column: str
    any_of: tuple[Scalar, ...] = ()
    """Empty where the bounds say it."""
    least: Scalar | None = None
    most: Scalar | None = None


def kind_of(value: object) -> Kind | None:
    """What kind of field holds ``value``; None for what none does, such as a list or infinity."""
    if isinstance(value, bool):
        return "truth"
    if isinstance(value, str):
        return "text"
    return "number" if is_number(value) else None


def conditions_of(where: Where | None, fields: Sequence[Field]) -> list[Condition]:
    """``where`` as conditions that must all hold.

    Raises :class:`UsageError` for a field that is none of ``fields``, and names these, and for a
    value of another kind than the field's.
    """
    require(where is None or isinstance(where, Mapping), "where", "a mapping, or None", where)
    known = {field.name: field for field in fields}
    for name in where or {}:
        if name not in known:
            raise UsageError(
                f"`where` has no field {name!r} to filter by; the library's passages have "
                f"{', '.join(sorted(known))}."
            )
    return [_condition(known[name], value) for name, value in (where or {}).items()]


def _condition(field: Field, value: Any) -> Condition:
    if isinstance(value, Mapping):
        known = 0 < len(value) and set(value) <= set(RANGE)
        require(known, f"where[{field.name!r}]", "a range of min, max or both", dict(value))
        require(
            field.kind != "truth", f"where[{field.name!r}]", "true or false, not a range", value
        )
        least, most = (_fitting(field, value.get(end)) for end in RANGE)
        return Condition(column=field.column, least=least, most=most)
    values = list(value) if isinstance(value, list | tuple | set | frozenset) else [value]
    fits = 0 < len(values) <= MOST_VALUES
    require(fits, f"where[{field.name!r}]", f"1 to {MOST_VALUES} values", f"{len(values)} values")
    fitting = [_fitting(field, one) for one in values]
    require(None not in fitting, f"where[{field.name!r}]", f"of kind {field.kind}", value)
    return Condition(column=field.column, any_of=tuple(one for one in fitting if one is not None))


def _fitting(field: Field, value: Any) -> Scalar | None:
    if value is None:
        return None
    kind = kind_of(value)
    require(kind == field.kind, f"where[{field.name!r}]", f"of kind {field.kind}", value)
    return float(value) if kind == "number" else value
