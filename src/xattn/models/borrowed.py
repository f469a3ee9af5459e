"""Encoders of transformers that xattn borrows, and what names them."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from xattn.errors import UsageError, require
from xattn.memory import HASHES, Hash, Memory
from xattn.models.encode import Prepared
from xattn.models.network import Counters, digest_of_weights, stamp_of

_SAYS_NOTHING = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")
"""Entries of a config that change no number: where it came from, and what the weights say too."""


class Borrowed(ABC):
    """A module of transformers that encodes, named by all that its states depend on."""

    def __init__(self, module: nn.Module, hash: Hash) -> None:
        require(hash in HASHES, "hash", f"one of {', '.join(HASHES)}", hash)
        self.module, self.hash = module, hash
        self.counters = Counters()
        self._digest: tuple[str, str] | None = None

    @property
    def encoder_digest(self) -> str:
        """Digest over the module's class, config, weights and buffers; taken again as they change.

        See :attr:`xattn.models.network.Network.encoder_digest`.
        """
        named = [*self.module.named_parameters(), *self.module.named_buffers()]
        about = f"{class_of(self.module)} {as_json(self._config())}"
        stamp = about + stamp_of(tensor for _, tensor in named)
        if self._digest is None or self._digest[0] != stamp:
            self._digest = (stamp, digest_of_weights(about, named, self.hash))
        return self._digest[1]

    def weights_changed(self) -> None:
        """Take the digest again: a few numbers of a weight were changed through ``.data``."""
        self._digest = None

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.weight.device

    @property
    def dtype(self) -> str:
        """Number type of its weights."""
        return str(self.weight.dtype).removeprefix("torch.")

    @property
    def weight(self) -> Tensor:
        """One of its weights: of the device and number type of all."""
        return next(self.module.parameters())

    def encode(self, source: Any) -> Memory:
        """A source as a memory, by one encoder pass. Raises as :meth:`prepare_batch`."""
        return self.encode_prepared([self.prepare(source)])[0]

    def prepare(self, source: Any) -> Prepared:
        """``source`` with its key, and not encoded."""
        return self.prepare_batch([source])[0]

    @abstractmethod
    def prepare_batch(self, sources: Sequence[Any]) -> list[Prepared]:
        """The sources with their keys, in the order given."""

    @abstractmethod
    def encode_prepared(self, prepared: Sequence[Prepared]) -> list[Memory]:
        """The memories of prepared sources."""

    def _require_evaluating(self) -> None:
        """Raise :class:`UsageError` in training mode: dropout would make each memory another."""
        training = any(part.training for part in self.module.modules())
        require(not training, "module", "in evaluation mode (module.eval())", "training")

    def _config(self) -> dict[str, Any]:
        config: Any = self.module.config
        return {name: v for name, v in config.to_dict().items() if name not in _SAYS_NOTHING}


def class_of(value: object) -> str:
    """Where its class is defined, and its name."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def as_json(settings: Mapping[str, Any]) -> str:
    """Settings as text that is the same for the same settings."""
    return json.dumps(settings, sort_keys=True, default=_as_list)


def _as_list(value: Any) -> Any:
    """Arrays of numbers as lists; :class:`UsageError` for what has no lasting form."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise UsageError(f"a setting is a {type(value).__name__}, which no key can name: {value!r:.80}")
