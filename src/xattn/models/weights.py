"""Weights on their way from a checkpoint into a network.

A :class:`Checkpoint` is what every file format is read into; a :class:`WeightTable` translates the
tensor names of one family of Hugging Face checkpoints into ours, and back.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from xattn.errors import UnsafeCheckpointError
from xattn.spec import Modality, ModelSpec

if TYPE_CHECKING:  # a config says what a model is without torch
    from torch import Tensor

    from xattn.inputs.text import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One tensor of a checkpoint, not read yet."""

    origin: str
    """Its name in the file. Two of our names with one origin are one parameter."""
    shape: tuple[int, ...]
    load: "Callable[[], Tensor]"
    mapped: bool = False
    """What is loaded lies in a mapped file, and in a place of its own."""


@dataclass(frozen=True, kw_only=True)
class EncoderSource:
    """An encoder that a model reads and has not in its own weights."""

    modality: Modality
    kind: Literal["model", "itself", "text", "picture"]
    """Another model of xattn's, the decoder's own states, or a module of transformers."""
    path: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model as found on disk, whatever the format."""

    spec: ModelSpec
    weights: Mapping[str, Weight]
    """Our name -> weight."""
    origin: str
    """What the user asked for."""
    directory: Path
    tokenizer: "Tokenizer | None" = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    """Settings the checkpoint wants, under Hugging Face's generation-config names."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Our name -> name a missing tensor would have in the file, for error messages."""
    unused: tuple[str, ...] = ()
    """Tensors of the file that nothing reads."""
    encoders: tuple[EncoderSource, ...] = ()
    """What makes its memories, where that is no encoder of its own."""
    path: Path | None = None
    """The file or directory that was read."""
    base: Path | None = None
    """That of the model which cross-attention was grafted onto."""


PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


_CAUSAL = ("AutoModelForCausalLM", "AutoTokenizer")
_CLASSES = {
    "llama": _CAUSAL,
    "qwen2": _CAUSAL,
    "qwen3": _CAUSAL,
    "whisper": ("AutoModelForSpeechSeq2Seq", "AutoProcessor"),
}
"""transformers' classes for a model type that is no text-to-text model."""


def refuse_pickles(path: Path, model_type: object = None) -> None:
    """Raise :class:`UnsafeCheckpointError` if ``path`` is a pickle, or a directory with one."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    pickle = next((f for f in files if f.suffix in PICKLE_SUFFIXES and f.is_file()), None)
    if pickle is not None:
        directory = path if path.is_dir() else path.parent
        raise UnsafeCheckpointError(
            f"{pickle}: is a pickle, which can run any code when it is opened, and so is never "
            "opened here; convert it to safetensors once, where you trust it, with transformers: "
            f"{conversion(str(directory), model_type)}"
        )


def conversion(source: str, model_type: object) -> str:
    """Code that writes ``source``, a directory or hub id, as safetensors into NEW_DIRECTORY."""
    model, tokenizer = _CLASSES.get(str(model_type), ("AutoModelForSeq2SeqLM", "AutoTokenizer"))
    return (
        f"import transformers; new = 'NEW_DIRECTORY'; "
        f"transformers.{model}.from_pretrained({source!r}).save_pretrained(new); "
        f"transformers.{tokenizer}.from_pretrained({source!r}).save_pretrained(new)"
    )


class WeightTable:
    """Pairs of name patterns, ours and the checkpoint's; ``{i}`` stands for a layer number.

    Where several of their names may hold one of our weights, they are tried in order: its own name
    before that of a tensor that stands for several.
    """

    def __init__(
        self, pairs: Iterable[tuple[str, str | tuple[str, ...]]], *, ignored: Iterable[str] = ()
    ) -> None:
        self._theirs = {
            ours: (theirs,) if isinstance(theirs, str) else theirs for ours, theirs in pairs
        }
        self._ignored = [re.compile(pattern) for pattern in ignored]

    def names_of(self, ours: str) -> tuple[str, ...]:
        """The checkpoint's names for our weight ``ours``; empty if the table has none."""
        numbers = re.findall(r"\.(\d+)\.", ours)
        pattern = re.sub(r"\.\d+\.", ".{i}.", ours, count=1)
        return tuple(
            name.format(i=numbers[0] if numbers else "") for name in self._theirs.get(pattern, ())
        )

    def bind(
        self, expected: Iterable[str], tensors: Mapping[str, Weight]
    ) -> tuple[dict[str, Weight], dict[str, str], tuple[str, ...]]:
        """Our weights found in ``tensors``, the names they should have, and what nothing reads."""
        bound: dict[str, Weight] = {}
        names: dict[str, str] = {}
        for ours in expected:
            candidates = self.names_of(ours)
            names[ours] = candidates[0] if candidates else ours
            for name in candidates:
                if name in tensors:
                    bound[ours] = tensors[name]
                    break
        read = {weight.origin for weight in bound.values()}
        unused = tuple(
            name
            for name, weight in tensors.items()
            if weight.origin not in read and not any(p.search(name) for p in self._ignored)
        )
        return bound, names, unused

    def to_hf(self, weights: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """Our weights under the checkpoint's names, as Hugging Face would write them."""
        times = Counter(id(tensor) for tensor in weights.values())
        return {
            self.names_of(ours)[-1 if times[id(tensor)] > 1 else 0]: tensor
            for ours, tensor in weights.items()
        }
