"""The account: rows of bytes and operations, and what they come to."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from xattn.counts import CodecName
from xattn.ledger.amounts import Amount
from xattn.readable import readable_bytes, readable_count
from xattn.spec import Form

What = Literal[
    "states",
    "int8 states",
    "projected states",
    "keys and values",
    "self-attention cache",
    "weights",
    "wide projections",
    "workspace",
    "at rest",
]


READ: tuple[What, ...] = ("int8 states", "projected states", "keys and values")
"""What is made of states to be read in their place."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one input, the answers, or the model itself takes."""

    input: str
    """``document``, ``image`` …; ``answer`` for what is generated; ``model``."""
    what: What
    bytes: int
    positions: int = 0
    """In memories, or tokens of all answers."""
    encode_flops: int = 0
    """Operations before the first token, once."""
    encode_bytes: int = 0
    """Bytes of weights that encoding and the prompts read at least once."""
    step_flops: int = 0
    """Operations of one step, which gives every request a token."""
    step_bytes: int = 0
    """Bytes that a step reads."""
    estimated: bool = False
    """It rests on a guess at the number of positions."""

    @property
    def resident(self) -> bool:
        """Whether it takes memory while the model runs; what is at rest is on disk."""
        return self.what != "at rest"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How requests are served."""

    batch: int
    """Requests at a time."""
    beams: int
    form: Form
    dtype: str
    """Of states, keys and values."""
    weights_dtype: str
    store_codec: CodecName | None
    shared: bool
    """All requests read the same memories; else each has its own."""
    prompt_tokens: int
    new_tokens: int
    engine: bool = False
    """An engine serves them, which reads one prompt at a time, in pieces."""

    @property
    def quantize(self) -> str | None:
        """How weights are narrow, as :func:`xattn.load` calls it; None where they are not."""
        return self.weights_dtype if self.weights_dtype in ("int8", "int4") else None

    @property
    def rows(self) -> int:
        """Sequences that are decoded at a time."""
        return self.batch * self.beams

    @property
    def copies(self) -> int:
        """How often each input is there."""
        return 1 if self.shared else self.batch

    @property
    def fed(self) -> int:
        """Tokens whose keys and values are kept in each row: all but the last."""
        return self.prompt_tokens + self.new_tokens - 1

    @property
    def seen(self) -> int:
        """Tokens before the middle one of an answer."""
        return self.prompt_tokens + (self.new_tokens - 1) // 2


@dataclass(frozen=True, kw_only=True)
class Account:
    """Rows, and what they come to."""

    model: str
    rows: tuple[Row, ...]

    @property
    def total_bytes(self) -> int:
        """All that is held at once."""
        return self.sum("bytes")

    @property
    def memory_bytes(self) -> int:
        """What is held of the inputs: states, keys and values."""
        return self.sum("bytes", "states", *READ)

    def sum(self, column: str, *what: What) -> int:
        """Of a column, over the rows of these kinds (all that are resident, if none is given)."""
        rows = (row for row in self.rows if row.resident and (not what or row.what in what))
        return sum(getattr(row, column) for row in rows)

    def share(self, row: Row) -> float:
        """Of :attr:`total_bytes`; 0 for what is at rest."""
        return row.bytes / self.total_bytes if row.resident and self.total_bytes else 0.0

    def of(self, what: What, input: str | None = None) -> int:
        """Bytes of one kind, of one input or of all."""
        return sum(
            row.bytes for row in self.rows if row.what == what and input in (None, row.input)
        )

    def to_rows(self) -> list[dict[str, Any]]:
        """One dictionary for each row, shares with it."""
        return [asdict(row) | {"share": self.share(row)} for row in self.rows]

    def to_markdown(self) -> str:
        """A table that people read."""
        lines = [_line(HEADER), _line(["---", *["---:"] * (len(HEADER) - 1)])]
        lines += [_line(cells) for cells in self.cells()]
        return "\n".join(lines) + "\n"

    def cells(self) -> list[list[str]]:
        """The rows as texts, under :data:`HEADER`, and their total."""
        found = [
            [
                f"{row.input}: {row.what}",
                f"{'≈ ' if row.estimated else ''}{row.positions:,}" if row.positions else "",
                readable_bytes(row.bytes),
                f"{self.share(row):.1%}" if row.resident else "on disk",
                readable_count(row.encode_flops),
                readable_count(row.step_flops),
                readable_bytes(row.step_bytes) if row.step_bytes else "",
            ]
            for row in self.rows
        ]
        total = [
            *("total", "", readable_bytes(self.total_bytes), "100.0%"),
            readable_count(self.sum("encode_flops")),
            readable_count(self.sum("step_flops")),
            readable_bytes(self.sum("step_bytes")),
        ]
        return [*found, total]

    def plot(self, path: str | Path) -> Path:
        """Draw the bytes as a PNG, SVG or PDF, by the suffix; needs the extra ``plot``."""
        from xattn.ledger.charts import draw_ledger

        return draw_ledger(self, Path(path))


@dataclass(frozen=True, kw_only=True)
class Ledger(Account):
    """What a configuration costs."""

    amounts: tuple[Amount, ...]
    setting: Setting

    @property
    def encode_flops(self) -> int:
        """Operations before the first token."""
        return self.sum("encode_flops")

    @property
    def flops_per_token(self) -> float:
        """Operations for one generated token, all its beams together."""
        return self.sum("step_flops") / self.setting.batch

    @property
    def bytes_per_token(self) -> float:
        """Bytes read for one generated token: requests that decode together share weights."""
        return self.sum("step_bytes") / self.setting.batch


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """One way, and what it comes to."""

    name: str
    input_bytes: int
    """What is held of the inputs."""
    total_bytes: int
    encode_flops: int
    """Before the first token of each batch."""
    bytes_per_token: float
    """Read for one token."""
    chosen: bool = False
    """It is the configuration that was asked for."""


HEADER = ("what", "positions", "bytes", "share", "FLOPs to encode", "FLOPs a step", "read a step")


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
