"""What of a CTranslate2 file was asked for, and the weights found there so far."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from xattn.errors import CorruptCheckpointError, UnsupportedModelError
from xattn.models.formats.ctranslate2.binary import ModelFile
from xattn.models.weights import Weight
from xattn.spec import NormSpec

_UNUSED_SCALARS = frozenset(
    (
        *("activation", "num_heads", "pre_norm", "multi_query"),
        *("alignment_heads", "alignment_layer", "alibi_use_positive_positions", "scale_alibi"),
        *("embeddings_merge", "layernorm_embedding", "multi_query_attention"),
        *("max_position_embeddings", "original_max_position_embeddings"),
        *("relative_attention_max_distance", "user_decoder_start_tokens"),
        *("with_source_bos", "with_source_eos", "with_target_bos"),
        *("bos_token", "eos_token", "unk_token"),
    )
)
"""Numbers that change nothing here, or that are read for the first layer alone."""
_MUST_BE_OFF = ("alibi", "sliding_window", "layer_norm_use_residual", "with_relative_position")


@dataclass
class Reading:
    """A file being read: what was asked for so far, and the weights found."""

    file: ModelFile
    epsilon: float | None = None
    """Epsilon of every norm, where the model's config gives one."""
    weights: dict[str, Weight] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    """Our name -> the file's."""
    asked: set[str] = field(default_factory=set)

    @property
    def path(self) -> Path:
        """The file, for messages."""
        return self.file.path

    def has(self, name: str) -> bool:
        """Whether the file has the variable ``name``."""
        return name in self.file.variables

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        """Shape of a variable that must have ``rank`` axes."""
        shape = self.file.find(name).shape
        if len(shape) != rank or 0 in shape:
            raise CorruptCheckpointError(
                f"{self.path}: {name!r} must have {rank} axes, none of them empty, but its shape "
                f"is {shape}."
            )
        return shape

    def number(self, names: Sequence[str] | str, default: float) -> float:
        """The first of ``names`` that is in the file, else ``default``."""
        for name in (names,) if isinstance(names, str) else names:
            if self.has(name):
                self.asked.add(name)
                return self.file.scalar(name)
        return default

    def count(self, names: Sequence[str] | str, default: int) -> int:
        """A whole number of at least 1."""
        value = self.number(names, default)
        if value < 1 or value != int(value):
            raise CorruptCheckpointError(
                f"{self.path}: {names!r} must be a whole number of at least 1, but is {value}."
            )
        return int(value)

    def bind(
        self,
        ours: str,
        name: str,
        start: int = 0,
        stop: int | None = None,
        *,
        tied: bool = False,
        zero_row: bool = False,
    ) -> None:
        """Take rows ``start`` to ``stop`` of the variable ``name`` as our weight ``ours``.

        ``tied``: names that the file gives one variable become one parameter. Only for
        vocabulary tables: converters alias whatever happens to be equal. ``zero_row`` adds one.
        """
        variable = self.file.find(name)
        self.asked |= {name, f"{variable.name}_scale"}
        rows = variable.shape[0] if variable.shape else 0
        part = "" if start == 0 and stop is None else f"[{start}:{stop}]"
        kept = max(min(rows, rows if stop is None else stop) - start, 0) + zero_row
        self.names[ours] = name
        self.weights[ours] = Weight(
            origin=f"{variable.name if tied else name}{part}",
            shape=(kept, *variable.shape[1:]),
            load=self._loader(name, start, stop, zero_row),
        )

    def _loader(
        self, name: str, start: int, stop: int | None, zero_row: bool
    ) -> Callable[[], Tensor]:
        file = self.file  # and not this reading, which holds the loader: the file would stay mapped

        def load() -> Tensor:
            rows = file.tensor(name, start, stop)
            return torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])]) if zero_row else rows

        return load

    def bind_linear(self, ours: str, linear: str, start: int = 0, stop: int | None = None) -> bool:
        """Take a linear layer, or some of its output rows; whether it has a bias."""
        self.bind(f"{ours}.weight", f"{linear}/weight", start, stop)
        if not self.has(f"{linear}/bias"):
            return False
        self.bind(f"{ours}.bias", f"{linear}/bias", start, stop)
        return True

    def bind_norm(self, ours: str, norm: str) -> NormSpec:
        """Take a norm; without a ``beta`` it is a root-mean-square norm."""
        self.bind(f"{ours}.weight", f"{norm}/gamma")
        if not self.has(f"{norm}/beta"):
            return NormSpec(kind="rms", eps=1e-6 if self.epsilon is None else self.epsilon)
        self.bind(f"{ours}.bias", f"{norm}/beta")
        return NormSpec(kind="layer", eps=1e-5 if self.epsilon is None else self.epsilon)

    def require_all_read(self) -> None:
        """Raise :class:`UnsupportedModelError` if a variable that matters was not asked for."""
        unread = sorted(name for name in self.file.variables if not self._settled(name))
        if unread:
            listed = ", ".join(unread[:5]) + (" …" if len(unread) > 5 else "")
            raise UnsupportedModelError(
                f"{self.path}: the model uses an option that xattn does not run; nothing reads "
                f"{len(unread)} of its variables: {listed}."
            )

    def _settled(self, name: str) -> bool:
        last = name.rpartition("/")[2]
        if name in self.asked:
            return True
        if last in _MUST_BE_OFF:
            return self.file.scalar(name) == 0
        return last in _UNUSED_SCALARS
