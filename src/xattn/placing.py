"""Which layers cross-attend, as people write it: ``"every:4"``, ``"first:8"``, ``[3, 8, 13]``.

=====================  ===========================================================================
``every:N``            the last of each N layers (Flamingo, Alayrac et al. 2022)
``every:N+S``          layers S, S + N, S + 2N, … (Llama 3.2 Vision: ``every:5+3``)
``alternate``          layers 0, 2, 4, …
``first:N`` ``last:N`` so many at one end; half of all without ``:N``
``middle:N``           so many in the middle; half of all without ``:N``
``sandwich:N``         so many at either end; a quarter of all, at least 1, without ``:N``
``single``             the one in the middle
``all`` ``none``
``3,8,13``             these layers, from 0
``mask:0101``          a digit for each layer
=====================  ===========================================================================

In Python also a list of layers or of booleans.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches

from xattn.errors import UsageError, is_whole, require, shown

Where = str | Sequence[int] | Sequence[bool]

FORMS = (
    "every:N, every:N+S, alternate, first:N, last:N, middle:N, sandwich:N, single, all, none, "
    "mask:0101…, or layers such as 3,8,13"
)
_WORD = re.compile(r"(?P<word>[a-z]+)(?::(?P<count>\d+)(?:\+(?P<start>\d+))?)?")


def layers_of(where: Where, layers: int) -> tuple[bool, ...]:
    """For each of ``layers`` layers whether it cross-attends.

    Raises :class:`UsageError` for what is no placement, or names a layer that is not there.
    """
    require(is_whole(layers, 1), "layers", "at least 1", layers)
    if not isinstance(where, str):
        return _listed(where, layers)
    text = where.replace(" ", "").lower()
    if text.startswith("mask:"):
        digits = text.removeprefix("mask:")
        if len(digits) != layers or set(digits) - {"0", "1"}:
            raise UsageError(
                f"`placement` must have one digit, 0 or 1, for each of the {layers} layers behind "
                f"'mask:', but is {shown(where)} instead."
            )
        return tuple(digit == "1" for digit in digits)
    if re.fullmatch(r"\d+(,\d+)*", text):
        return _chosen(map(int, text.split(",")), layers, where)
    return _named(text, layers, where)


def written(mask: Sequence[bool]) -> str:
    """The layers of a placement, as :func:`layers_of` reads them again."""
    chosen = [layer for layer, crosses in enumerate(mask) if crosses]
    if not chosen:
        return "none"
    return "all" if len(chosen) == len(mask) else ",".join(map(str, chosen))


def drawn(mask: Sequence[bool]) -> str:
    """A placement as a line, a sign for each layer: ``··█··█``."""
    return "".join("█" if crosses else "·" for crosses in mask)


def _listed(where: Iterable[object], layers: int) -> tuple[bool, ...]:
    bound = f"a list of layers from 0 to {layers - 1}, or of {layers} booleans"
    require(isinstance(where, Iterable), "placement", bound, where)
    entries = list(where)
    if entries and all(isinstance(one, bool) for one in entries):
        require(len(entries) == layers, "placement", bound, entries)
        return tuple(map(bool, entries))
    require(all(is_whole(one, 0) for one in entries), "placement", bound, entries)
    return _chosen((int(str(one)) for one in entries), layers, entries)


def _chosen(wanted: Iterable[int], layers: int, where: object) -> tuple[bool, ...]:
    chosen = set(wanted)
    beyond = sorted(layer for layer in chosen if layer >= layers)
    if beyond:
        raise UsageError(
            f"`placement` must name layers from 0 to {layers - 1} (there are {layers}), but "
            f"{shown(where)} names layer {beyond[0]}."
        )
    return tuple(layer in chosen for layer in range(layers))


def _named(text: str, layers: int, where: str) -> tuple[bool, ...]:
    found = _WORD.fullmatch(text)
    word = found["word"] if found else re.split(r"[^a-z]", text)[0]
    if not found or word not in _NAMED:
        near = get_close_matches(word, _NAMED, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(
            f"`placement` must be one of {FORMS}, but is {shown(where)} instead.{hint}"
        )
    count = None if found["count"] is None else int(found["count"])
    start = None if found["start"] is None else int(found["start"])
    choose, takes_count = _NAMED[word]
    if (count is not None and not takes_count) or (start is not None and word != "every"):
        raise UsageError(f"`placement` must be {word!r} alone, but is {shown(where)} instead.")
    if (count is None and word == "every") or not 1 <= (1 if count is None else count) <= layers:
        raise UsageError(
            f"`placement` must have a number from 1 to {layers} (there are {layers} layers) behind "
            f"'{word}:', but is {shown(where)} instead."
        )
    if word != "every":
        return _chosen(choose(layers, count), layers, where)
    assert count is not None
    first = count - 1 if start is None else start
    require(first < layers, "placement", f"every:N+S with S from 0 to {layers - 1}", where)
    return _chosen(range(first, layers, count), layers, where)


def _middle(layers: int, count: int | None) -> range:
    taken = _half(layers) if count is None else count
    start = (layers - taken) // 2
    return range(start, start + taken)


def _sandwich(layers: int, count: int | None) -> list[int]:
    taken = max(1, layers // 4) if count is None else count
    return [layer for layer in range(layers) if layer < taken or layer >= layers - taken]


def _half(layers: int) -> int:
    return -(-layers // 2)


_NAMED: dict[str, tuple[Callable[[int, int | None], Iterable[int]], bool]] = {
    "every": (lambda layers, _: range(layers), True),
    "alternate": (lambda layers, _: range(0, layers, 2), False),
    "first": (lambda layers, n: range(_half(layers) if n is None else n), True),
    "last": (lambda layers, n: range(layers - (_half(layers) if n is None else n), layers), True),
    "middle": (_middle, True),
    "sandwich": (_sandwich, True),
    "single": (lambda layers, _: _middle(layers, 1), False),
    "all": (lambda layers, _: range(layers), False),
    "none": (lambda layers, _: (), False),
}
"""What each word chooses, and whether a number may stand behind it."""
