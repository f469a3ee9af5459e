"""A passage as a database holds it, and back.

Where a passage stands in its document changes whenever something before it does, and so is no part
of its row: the catalogue knows it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from xattn.library.cells import table_json, table_of
from xattn.library.filters import Field, kind_of
from xattn.library.passage import Passage, Scalar, lead_of


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a passage stands in its document."""

    source: str
    start: int
    end: int
    page: int | None
    copy: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is searched, and what a passage is made of again."""

    id: str
    source: str
    title: str
    words: str
    """Title and headings, a line, then the text: what is embedded, and searched for words."""
    rest: str
    """JSON: how long the line before the text is, headings, table, metadata."""
    generation: int
    """Of the catalogue, that it was written in."""
    fields: Mapping[str, Scalar] = field(default_factory=dict)
    """Columns that passages are filtered by."""

    @classmethod
    def of(cls, passage: Passage, generation: int, fields: Mapping[str, Field]) -> "Row":
        """``passage`` as a row; ``fields`` are the library's, by name."""
        lead = lead_of(passage)
        rest = {
            "lead": len(lead),
            "heading": passage.heading,
            "table": None if passage.table is None else table_json(passage.table),
            "metadata": dict(passage.metadata),
        }
        return cls(
            id=passage.id,
            source=passage.source,
            title=passage.title,
            words=lead + passage.text,
            rest=json.dumps(rest, ensure_ascii=False),
            generation=generation,
            fields={
                fields[name].column: float(value) if kind_of(value) == "number" else value
                for name, value in passage.metadata.items()
            },
        )

    def passage(self, place: Place) -> Passage:
        """The passage again, at its ``place``."""
        rest = json.loads(self.rest)
        return Passage(
            source=self.source,
            title=self.title,
            heading=tuple(rest["heading"]),
            text=self.words[rest["lead"] :],
            start=place.start,
            end=place.end,
            page=place.page,
            table=None if rest["table"] is None else table_of(rest["table"]),
            metadata=rest["metadata"],
            copy=place.copy,
        )
