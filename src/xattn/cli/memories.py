"""Files that a model attends to, and their memories."""

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xattn.errors import UnreadableSourceError

if TYPE_CHECKING:
    from xattn.memory import Memory
    from xattn.model import Model
    from xattn.models.encode import Prepared

BATCH = 32
"""Pieces of a file that are encoded at once where there is no store, which has its own batches."""
HELD = 8
"""Files whose memories are held for the next record that names them."""


def content_of(model: "Model", source: str) -> Any:
    """What ``model`` takes for the file ``source``: a recording, or a text; ``-`` is stdin.

    Raises :class:`UnreadableSourceError` where stdin is to be text, and is none.
    """
    encoder = model.spec.encoder
    if encoder is not None and encoder.modality == "audio":
        return sys.stdin.buffer.read() if source == "-" else source
    if source != "-":
        return Path(source)
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableSourceError(f"stdin: not readable as UTF-8 text: {error}.") from error


class Files:
    """The memories of files, from the model's store, or encoded once in this call."""

    def __init__(self, model: "Model", open_store: Callable[[], None] | None) -> None:
        """``open_store`` gives the model its store where it has none yet; None does without."""
        self._model = model
        self._open_store = None if model.store is not None else open_store
        self._of_file = lru_cache(maxsize=HELD)(self._read)

    def read(self, sources: Sequence[str]) -> "tuple[tuple[Memory, ...], int]":
        """The memories of all ``sources``, and the encoder passes that these took in this call.

        Raises :class:`~xattn.errors.SourceError` for a file that cannot be read.
        """
        found = [self._of_file(source) for source in sources]
        memories = tuple(memory for pieces, _ in found for memory in pieces)
        return memories, sum(passes for _, passes in found)

    def _read(self, source: str) -> "tuple[list[Memory], int]":
        pieces = self._model.prepare_long(content_of(self._model, source))
        if self._open_store is not None:
            self._open_store()
            self._open_store = None
        before = self._model.counters.encoder_passes
        memories = self._remembered(pieces)
        return memories, self._model.counters.encoder_passes - before

    def _remembered(self, pieces: "Sequence[Prepared]") -> "list[Memory]":
        if self._model.store is not None:
            return self._model.store.get_or_encode_prepared(self._model, pieces)
        return [
            memory
            for start in range(0, len(pieces), BATCH)
            for memory in self._model.encode_prepared(pieces[start : start + BATCH])
        ]
