"""What is measured: seven workloads, as cells.

W1 Whisper tiny.en, real recordings. W2 one text, decoded. W3 one source, many prefixes. W4 many
requests over few documents. W5 a language model. W6 cost against length. W7 the roofline.
"""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from xattn.bench.cells import PEERS, Cell
from xattn.bench.equality import Rule
from xattn.bench.making import SHAPES
from xattn.bench.recordings import Windows
from xattn.bench.tasks import Precision, Task
from xattn.errors import UsageError
from xattn.spec import FORMS

PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
NEW_TOKENS, FEW_TOKENS = 64, 16
PREFIX_TOKENS = 4


class Plan:
    """The cells of a run; ``quick`` takes few and small ones."""

    def __init__(self, *, quick: bool, scratch: Path, text_models: tuple[str, ...] = ()) -> None:
        self._quick = quick
        self._new_tokens = FEW_TOKENS if quick else NEW_TOKENS
        self._windows = Windows(scratch)
        self._text_models = text_models

    def cells(self, only: tuple[str, ...] = ()) -> list[Cell]:
        """All, or those that match one of ``only``; :class:`UsageError` for one without a match."""
        every = [cell for make in self._makers().values() for cell in make()]
        for pattern in only:
            if not any(cell.matches(pattern) for cell in every):
                raise UsageError(
                    f"`only` must name a workload ({', '.join(self._makers())}) or cells by their "
                    f"names or a glob, but is {pattern!r} instead; --list shows all names."
                )
        return [cell for cell in every if not only or any(cell.matches(one) for one in only)]

    def _makers(self) -> dict[str, Callable[[], Iterator[Cell]]]:
        return {
            "W1": self._speech,
            "W2": self._text,
            "W3": self._prefixes,
            "W4": self._requests,
            "W5": self._language,
            "W6": self._cross,
            "W7": self._roofline,
        }

    def _speech(self) -> Iterator[Cell]:
        """Windows of 30 s, joined from recorded prompts."""
        recordings = self._windows.files(1 if self._quick else 3)
        for precision in PRECISIONS:
            for beams in self._some(precision, (1, 5)):
                yield Cell(
                    workload="W1",
                    axes={"model": "whisper-tiny.en", "beams": _beams(beams), "as": precision},
                    model="whisper-tiny.en",
                    precision=precision,
                    task=Task(kind="speech", recordings=recordings, beams=beams),
                    rule=_rule(precision),
                    engines=_engines(precision),
                    memory="" if self._quick else "cold",
                )

    def _text(self) -> Iterator[Cell]:
        """One source, a fixed number of new tokens."""
        models = ("t5-small",) if self._quick else ("t5-small", "t5-base", "marian")
        lengths = (64, 512) if self._quick else (64, 512, 2048, 4096)
        for model in self._text_models or models:
            for precision in PRECISIONS:
                for length in lengths:
                    for beams in self._some(precision, (1, 4)):
                        yield self._one_text("W2", model, length, beams, precision)

    def _one_text(
        self, workload: str, model: str, length: int, beams: int, precision: Precision
    ) -> Cell:
        return Cell(
            workload=workload,
            axes={"model": model, "source": length, "beams": _beams(beams), "as": precision},
            model=model,
            precision=precision,
            task=Task(
                kind="text",
                sources=(_random_ids(model, length, f"{length}"),),
                beams=beams,
                new_tokens=self._new_tokens,
            ),
            rule=_rule(precision),
            engines=_engines(precision),
            memory="" if self._quick else "cold",
        )

    def _some(self, precision: Precision, beams: tuple[int, int]) -> tuple[int, ...]:
        """Both, or with ``quick`` one in float32 and the other in int8."""
        return (beams[PRECISIONS.index(precision)],) if self._quick else beams

    def _prefixes(self) -> Iterator[Cell]:
        """What one source is asked 32 times; CTranslate2 and transformers encode each time."""
        count, length = (4, 256) if self._quick else (32, 4096)
        yield Cell(
            workload="W3",
            axes={"model": "t5-small", "source": length, "prefixes": count, "as": "fp32"},
            model="t5-small",
            task=Task(
                kind="prefixes",
                sources=(_random_ids("t5-small", length, "W3"),),
                prefixes=_prefixes("t5-small", count),
                reads=(0,) * count,
                new_tokens=16,
            ),
        )

    def _requests(self) -> Iterator[Cell]:
        """Four questions to each of eight documents, all at once."""
        documents, requests, length = (4, 16, 64) if self._quick else (8, 32, 1024)
        for precision in PRECISIONS[:1] if self._quick else PRECISIONS:
            yield Cell(
                workload="W4",
                axes={"model": "t5-small", "source": length, "requests": requests, "as": precision},
                model="t5-small",
                precision=precision,
                task=Task(
                    kind="requests",
                    sources=tuple(_random_ids("t5-small", length, n) for n in range(documents)),
                    prefixes=_prefixes("t5-small", requests),
                    reads=tuple(number % documents for number in range(requests)),
                    new_tokens=self._new_tokens // 2,
                ),
                rule=_rule(precision),
                engines=_engines(precision),
                memory="" if self._quick else "cold",
            )

    def _language(self) -> Iterator[Cell]:
        """A language model from its GGUF file: a prompt, and what follows it."""
        length = 64 if self._quick else 256
        yield Cell(
            workload="W5",
            axes={"model": "smollm2", "prompt": length, "as": "fp32"},
            model="smollm2",
            task=Task(kind="language", sources=(_counting(length),), new_tokens=self._new_tokens),
            engines=("xattn", "transformers", "llama.cpp"),
            loose=("llama.cpp",),
        )

    def _cross(self) -> Iterator[Cell]:
        """One step of the decoder, at all lengths of the memory, in all forms."""
        powers = (8, 10, 12) if self._quick else range(8, 16)
        for form in FORMS:
            for beams in (1, 4):
                for positions in (2**power for power in powers):
                    yield Cell(
                        workload="W6",
                        axes={"form": form, "beams": _beams(beams), "positions": positions},
                        model="t5-small",
                        task=Task(kind="cross", positions=positions, beams=beams, form=form),
                        engines=("xattn",),
                    )

    def _roofline(self) -> Iterator[Cell]:
        """How fast memory can be read, and how fast decoding reads it."""
        model = "t5-small" if self._quick else "t5-base"
        yield Cell(
            workload="W7",
            axes={"what": "read"},
            model="",
            task=Task(kind="read"),
            engines=("machine",),
        )
        for precision in PRECISIONS:
            yield self._one_text("W7", model, 512, 1, precision)


def _beams(count: int) -> str:
    return f"beam{count}"


def _rule(precision: Precision) -> Rule:
    return "same tokens" if precision == "fp32" else "as likely"


def _engines(precision: Precision) -> tuple[str, ...]:
    """transformers has no int8 here."""
    return PEERS if precision == "fp32" else PEERS[:2]


def _random_ids(model: str, length: int, seed: object) -> tuple[int, ...]:
    """Ordinary tokens; the same for the same seed on every machine."""
    most: int = SHAPES[model].arguments["vocab_size"] - 2
    draw = random.Random(f"{model} {seed}")
    return tuple(draw.randint(3, most) for _ in range(length))


def _prefixes(model: str, count: int) -> tuple[tuple[int, ...], ...]:
    return tuple(_random_ids(model, PREFIX_TOKENS, f"prefix {number}") for number in range(count))


def _counting(length: int) -> tuple[int, ...]:
    """Ordinary tokens of a language model, in no order that it has seen."""
    draw = random.Random("prompt")
    return tuple(draw.randint(1000, 40000) for _ in range(length))
