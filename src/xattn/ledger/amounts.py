"""How much of what a model is to attend to, and how many positions of a memory that becomes.

An amount is given as a number of positions, or as the thing itself, in the words of its kind::

    document  250, 250t, 180w, 20x250        tokens, words; twenty documents
    table     1000r, 1000r8c                 rows, of so many columns (4 if not said)
    audio     30s, 2m, 1h, 3x30s, 1500p      seconds, minutes, hours; positions
    image     2, 1024x768, 2x1024x768        pictures; width and height in pixels

In Python a plain number is always positions, whatever the kind: ``{"image": 2}`` is a picture of
two positions, ``{"image": "2"}`` are two pictures, as ``--image 2`` is.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from xattn.errors import UsageError, is_whole, require, shown
from xattn.spec import EncoderSpec, ImageStemSpec, Modality, ModelSpec

Kind = Literal["document", "text", "table", "audio", "image"]
KINDS: dict[Kind, Modality] = {
    "document": "text",
    "text": "text",
    "table": "text",
    "audio": "audio",
    "image": "image",
}
"""What may be attended to, and what an encoder must read for it."""

KIND_OF: dict[Modality, Kind] = {
    "text": "document",
    "table": "table",
    "audio": "audio",
    "image": "image",
}
"""What a memory of each modality is called here."""

MOST_POSITIONS, MOST_COUNT = 10**9, 10**6
TOKENS_PER_WORD = 4 / 3
"""Of English, for vocabularies of 30,000 or more."""
TOKENS_PER_CELL, TOKENS_PER_ROW, COLUMNS = 4, 3, 4
"""Of a table as ``row 1 : a | b``: a bar and a short value a cell; ``row``, a number, a colon."""
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, kw_only=True)
class Amount:
    """So many sources of so many positions each."""

    kind: Kind
    count: int
    """Sources: documents, tables, recordings, pictures."""
    positions: int
    """Of each memory."""
    encoded: int
    """Of each memory, in the encoder: more where a resampler leaves fewer."""
    given: str
    """As it was asked for."""
    pieces: int = 1
    """Memories that one source becomes: windows of a long recording."""
    estimated: bool = False
    """The text itself was not there to count its tokens."""

    @property
    def memories(self) -> int:
        """Of all sources."""
        return self.count * self.pieces

    @property
    def total(self) -> int:
        """Positions of all."""
        return self.memories * self.positions


def amounts_of(spec: ModelSpec, inputs: Mapping[str, Any]) -> list[Amount]:
    """What inputs become in memories of this model; a list of amounts of a kind is one after the
    other. Raises :class:`UsageError` as :func:`amount_of` does."""
    require(isinstance(inputs, Mapping), "inputs", "a mapping of kinds to amounts", inputs)
    return [
        amount_of(spec, kind, one)
        for kind, given in inputs.items()
        for one in (given if isinstance(given, list) else [given])
    ]


def amount_of(spec: ModelSpec, kind: str, given: Any) -> Amount:
    """What ``given`` becomes in memories of this model.

    ``given`` is a number of positions, a text as above, ``(width, height)`` of a picture,
    ``(count, …)`` of one of these, or an :class:`Amount`. Raises :class:`UsageError` for what the
    model does not read, and for what is no amount of it.
    """
    name = _kind(spec, kind)
    if isinstance(given, Amount):
        require(given.kind == name, kind, f"an amount of {kind}", given.given)
        _require_bounded(spec, given, given.given)
        return given
    count, one = _split(name, given)
    require(is_whole(count, 1) and count <= MOST_COUNT, kind, f"1 to {MOST_COUNT} sources", count)
    sized = _projected(spec, name, _sized(spec, name, one))
    amount = Amount(
        kind=name,
        count=count * sized.sources,
        positions=sized.positions,
        encoded=sized.encoded,
        given=str(given),
        pieces=sized.pieces,
        estimated=sized.estimated,
    )
    _require_bounded(spec, amount, given)
    return amount


def _require_bounded(spec: ModelSpec, amount: Amount, given: Any) -> None:
    """Raise :class:`UsageError` for more, or longer, sources than there may be."""
    kind = amount.kind
    fits = is_whole(amount.positions, 1) and amount.positions <= MOST_POSITIONS
    hint = "; pictures are counted as text, as '2'" if kind == "image" else ""
    require(fits, kind, f"an amount of 1 to {MOST_POSITIONS} positions{hint}", given)
    fits = is_whole(amount.count, 1) and amount.memories <= MOST_COUNT
    require(fits, kind, f"1 to {MOST_COUNT} sources", given)
    _require_within(spec, amount)


def kinds_of(spec: ModelSpec) -> list[Kind]:
    """What this model can be given."""
    encoder = spec.encoder
    modalities: set[Modality] = {one.modality for one in spec.lent}
    modalities |= {"text" if encoder is None else encoder.modality} if not modalities else set()
    if encoder is not None and encoder.pictures is not None:
        modalities.add("image")
    return [kind for kind, wanted in KINDS.items() if wanted in modalities]


def encoder_of(spec: ModelSpec, kind: Kind) -> EncoderSpec | None:
    """What encodes it: the model's own encoder, or one that is lent to it and known."""
    lent = spec.lent_for(KINDS[kind])
    return spec.encoder if lent is None else lent.encoder


def _kind(spec: ModelSpec, kind: str) -> Kind:
    taken = kinds_of(spec)
    for name in taken:
        if kind == name:
            return name
    raise UsageError(
        f"this model ({spec.family}) takes {' or '.join(taken)}, but is to read {kind!r}."
    )


def _split(kind: Kind, given: Any) -> tuple[int, Any]:
    """How many, and one of them."""
    if isinstance(given, tuple) and len(given) == 2 and not (kind == "image" and _is_size(given)):
        return given
    if not isinstance(given, str):
        return 1, given
    parts = given.lower().replace("×", "x").split("x")
    sizes = 2 if kind == "image" and len(parts) > 1 else 1
    if len(parts) == sizes:
        return 1, given
    head, rest = parts[0].strip(), "x".join(parts[1:])
    require(len(parts) == sizes + 1 and head.isdecimal(), kind, "COUNTxAMOUNT, as 20x250", given)
    return int(head[:20]), rest


def _is_size(given: tuple[Any, ...]) -> bool:
    return len(given) == 2 and all(is_whole(side, 1) for side in given)


class Sized(NamedTuple):
    """What one amount, without its count, becomes."""

    encoded: int
    """Positions in the encoder, of each memory."""
    positions: int
    sources: int = 1
    pieces: int = 1
    estimated: bool = False


def _projected(spec: ModelSpec, kind: Kind, sized: Sized) -> Sized:
    """With the positions that a projector leaves of those of an encoder."""
    projector = spec.projector_for(KINDS[kind])
    if projector is None:
        return sized
    return sized._replace(positions=projector.positions(sized.positions))


def _sized(spec: ModelSpec, kind: Kind, one: Any) -> Sized:
    encoder = encoder_of(spec, kind)
    if is_whole(one):
        return Sized(one, one)
    if encoder is None and kind in ("image", "audio"):
        counted = re.fullmatch(r"(\d{1,12})\s*p", str(one).strip().lower())
        bound = "a number of positions (197p): the encoder is not xattn's, and says no more"
        require(counted is not None, kind, bound, one)
        assert counted is not None
        return Sized(int(counted[1]), int(counted[1]))
    if kind == "image":
        assert encoder is not None
        return _picture(encoder, one)
    text = str(one).strip().lower()
    readers: dict[Kind, Callable[[EncoderSpec | None, str], Sized | None]] = {
        "document": _words,
        "text": _words,
        "table": _rows,
        "audio": _heard,
    }
    found = readers[kind](encoder, text)
    require(found is not None, kind, _FORMS[kind], one)
    assert found is not None
    return found


_FORMS: dict[Kind, str] = {
    "document": "a number of tokens (250) or words (180w)",
    "text": "a number of tokens (250) or words (180w)",
    "table": "a number of tokens (250) or rows (1000r, 1000r8c)",
    "audio": "a time (30s, 2m, 1h) or a number of positions (1500p)",
    "image": "a number of pictures ('2'), a size in pixels (1024x768), or positions (6404p)",
}


def _words(encoder: EncoderSpec | None, text: str) -> Sized | None:
    found = re.fullmatch(r"(\d{1,12})\s*(t|tokens?|p|w|words?)?", text)
    if found is None:
        return None
    count, unit = int(found[1]), found[2] or "t"
    if unit[0] != "w":
        return Sized(count, count)
    tokens = math.ceil(count * TOKENS_PER_WORD)
    return Sized(tokens, tokens, estimated=True)


def _rows(encoder: EncoderSpec | None, text: str) -> Sized | None:
    found = re.fullmatch(r"(\d{1,12})\s*r(?:ows?)?\s*(?:(\d{1,6})\s*c(?:ols?|olumns?)?)?", text)
    if found is None:
        return _words(encoder, text)
    rows, columns = int(found[1]), int(found[2] or COLUMNS)
    tokens = (rows + 1) * (TOKENS_PER_ROW + columns * TOKENS_PER_CELL)
    return Sized(tokens, tokens, estimated=True)


def _heard(encoder: EncoderSpec | None, text: str) -> Sized | None:
    assert encoder is not None
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)\s*([smhp])", text)
    if found is None:
        return None
    if found[2] == "p":
        return Sized(int(found[1]), int(found[1])) if found[1].isdecimal() else None
    seconds = float(found[1]) * _SECONDS[found[2]]
    require(seconds > 0, "audio", "longer than 0 s", text)
    if encoder.audio is not None:
        windows = math.ceil(seconds / encoder.audio.seconds)
        return Sized(encoder.audio.positions, encoder.audio.positions, pieces=windows)
    assert encoder.wave is not None
    positions = encoder.wave.positions(seconds)
    require(positions > 0, "audio", "long enough for one position", text)
    return Sized(positions, positions)


def _picture(encoder: EncoderSpec, one: Any) -> Sized:
    stem = (encoder.pictures or encoder).image
    assert stem is not None
    several, tiles = 1, stem.tiles
    if isinstance(one, tuple):
        require(_is_size(one), "image", "(width, height) in pixels, of at least 1", one)
        tiles = tiles_of(stem, *one)
    else:
        found = re.fullmatch(r"(\d{1,9})(?:\s*(p)|x(\d{1,9}))?", str(one).strip().lower())
        if found is None:
            raise UsageError(f"`image` must be {_FORMS['image']}, but is {shown(one)} instead.")
        if found[2]:
            return Sized(int(found[1]), int(found[1]))
        if found[3]:
            tiles = tiles_of(stem, int(found[1]), int(found[3]))
        else:
            several = int(found[1])
            require(several >= 1, "image", f"1 to {MOST_COUNT} pictures", one)
    return Sized(tiles * stem.encoded, tiles * stem.positions, sources=several)


def tiles_of(stem: ImageStemSpec, width: int, height: int) -> int:
    """Tiles that a picture of so many pixels is cut into.

    As Mllama cuts them: of all grids of at most ``stem.tiles`` tiles the one into which the picture
    is enlarged least, or, where it must shrink, shrinks least; of equals the one with fewer.
    """
    for name, side in (("width", width), ("height", height)):
        require(is_whole(side, 1), f"image {name}", "at least 1 pixel", side)
    grids = [
        (columns, rows)
        for columns in range(1, stem.tiles + 1)
        for rows in range(1, stem.tiles // columns + 1)
    ]
    scales = {
        grid: min(grid[0] * stem.size / width, grid[1] * stem.size / height) for grid in grids
    }
    enlarging = [scale for scale in scales.values() if scale >= 1]
    best = min(enlarging) if enlarging else max(scales.values())
    return min(columns * rows for (columns, rows), scale in scales.items() if scale == best)


def _require_within(spec: ModelSpec, amount: Amount) -> None:
    limit = _limit(spec, amount.kind)
    most = amount.encoded if spec.lent else amount.positions
    if limit is not None and most > limit:
        count, unit = math.ceil(most / limit), _UNITS.get(amount.kind, "")
        raise UsageError(
            f"`{amount.kind}` must be sources of at most {limit} positions for this model, but one "
            f"has {most}; give several, as {count}x{limit}{unit}."
        )


_UNITS = {"audio": "p", "image": "p"}
"""What a number of positions is written with, where a plain one means something else."""


def _limit(spec: ModelSpec, kind: Kind) -> int | None:
    """Positions that one source's memory may have: of a window, of a picture of all tiles, of a
    table of positions; None where any length works."""
    encoder, lent = encoder_of(spec, kind), spec.lent_for(KINDS[kind])
    if lent is not None and encoder is None and not lent.itself:
        return None
    if encoder is not None and encoder.audio is not None:
        return encoder.audio.positions
    if encoder is not None and kind == "image":
        stem = (encoder.pictures or encoder).image
        assert stem is not None
        return stem.tiles * stem.positions
    return (encoder or spec.decoder).position.limit
