"""Encoders of transformers that xattn borrows, and what names them."""

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from xattn.errors import UsageError, require
from xattn.memory import HASHES, Hash
from xattn.models.network import digest_of_weights, stamp_of

_SAYS_NOTHING = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")
"""Entries of a config that change no number: where it came from, and what the weights say too."""


class Borrowed:
    """A module of transformers, with the digest of all that its states depend on."""

    def __init__(self, module: nn.Module, hash: Hash) -> None:
        require(hash in HASHES, "hash", f"one of {', '.join(HASHES)}", hash)
        self.module, self.hash = module, hash
        self._digest: tuple[str, str] | None = None

    @property
    def digest(self) -> str:
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
    def weight(self) -> Tensor:
        """One of its weights: of the device and number type of all."""
        return next(self.module.parameters())

    @property
    def dtype(self) -> str:
        """Number type of its weights."""
        return str(self.weight.dtype).removeprefix("torch.")

    def require_evaluating(self) -> None:
        """Raise :class:`UsageError` in training mode: dropout would make each memory another."""
        training = any(part.training for part in self.module.modules())
        require(not training, "module", "in evaluation mode (module.eval())", "training")

    def _config(self) -> dict[str, Any]:
        config: Mapping[str, Any] = self.module.config.to_dict()  # type: ignore[operator, union-attr]
        return {name: value for name, value in config.items() if name not in _SAYS_NOTHING}


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
