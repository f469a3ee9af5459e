"""What a run says of itself: a CSV file, and a picture of its loss."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from xattn.errors import MissingExtraError, SaveError
from xattn.tuning.state import Progress

TABLE, PICTURE = "log.csv", "loss.png"
COLUMNS = ("step", "epoch", "tokens", "seconds", "loss", "learning_rate", "validation_loss")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One update."""

    step: int
    epoch: int
    tokens: int
    seconds: float
    loss: float
    learning_rate: float
    validation_loss: float | None
    seen: Mapping[str, float] = field(default_factory=dict)
    """What else an objective tells."""


class Journal:
    """The rows of one run, written as they come; ``sees`` are columns of its objective."""

    def __init__(self, directory: Path, sees: Sequence[str] = ()) -> None:
        self.path, self._directory, self._sees = directory / TABLE, directory, tuple(sees)

    @contextmanager
    def written_from(self, step: int) -> Iterator[None]:
        """Keep what was written up to ``step``, nothing of a later one that was lost, and go on."""
        kept = [row for row in read(self.path) if row.step <= step] if step else []
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            # Beside it until it is whole: whoever is killed now has lost no row.
            part = self.path.with_suffix(".part")
            file = part.open("w", newline="", encoding="utf-8")
        except OSError as error:
            raise self._unwritten(error) from error
        with file:
            self._file, self._writer = file, csv.writer(file)
            try:
                self._writer.writerow((*COLUMNS, *self._sees))
                for row in kept:
                    self._add(row)
                file.flush()
                part.replace(self.path)
            except OSError as error:
                raise self._unwritten(error) from error
            yield

    def _unwritten(self, error: OSError) -> SaveError:
        return SaveError(f"{self.path}: cannot be written: {error.strerror}.")

    def write(
        self,
        progress: Progress,
        loss: float,
        rate: float,
        validation: float | None,
        seen: Mapping[str, float],
    ) -> None:
        """One update more; raises :class:`SaveError`."""
        row = Row(
            step=progress.step,
            epoch=progress.epoch,
            tokens=progress.tokens,
            seconds=round(progress.seconds, 3),
            loss=loss,
            learning_rate=rate,
            validation_loss=validation,
            seen=seen,
        )
        try:
            self._add(row)
            self._file.flush()
        except OSError as error:
            raise self._unwritten(error) from error

    def _add(self, row: Row) -> None:
        values = [getattr(row, name) for name in COLUMNS] + [row.seen[n] for n in self._sees]
        # All digits: two runs that are one are compared by them.
        self._writer.writerow("" if value is None else repr(value) for value in values)

    def draw(self) -> None:
        """The picture, where matplotlib is installed."""
        try:
            draw(read(self.path), self._directory / PICTURE)
        except MissingExtraError:
            return


def read(path: Path) -> list[Row]:
    """The rows of a CSV file that :class:`Journal` wrote; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if None not in row.values()]
    return [
        Row(
            step=int(row["step"]),
            epoch=int(row["epoch"]),
            tokens=int(row["tokens"]),
            seconds=float(row["seconds"]),
            loss=float(row["loss"]),
            learning_rate=float(row["learning_rate"]),
            validation_loss=float(row["validation_loss"]) if row["validation_loss"] else None,
            seen={name: float(value) for name, value in row.items() if name not in COLUMNS},
        )
        for row in rows
    ]


def draw(rows: Sequence[Row], path: Path) -> None:
    """Loss against updates, of training (a running mean) and of validation."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot", "the picture of a loss") from error
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    steps = [row.step for row in rows]
    axes.plot(steps, _smooth([row.loss for row in rows]), color="#4c78a8", label="training")
    seen = [(row.step, row.validation_loss) for row in rows if row.validation_loss is not None]
    if seen:
        axes.plot(*zip(*seen, strict=True), "o-", color="#e45756", label="validation", markersize=4)
    axes.set(xlabel="updates", ylabel="loss (nats a token)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def _smooth(values: Sequence[float], share: float = 0.1) -> list[float]:
    """An exponential running mean."""
    found: list[float] = []
    for value in values:
        found.append(value if not found else (1 - share) * found[-1] + share * value)
    return found
