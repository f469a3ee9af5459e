"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685), by peft, on any part of a model.

An adapter that encodes nothing changes no memory and no memory's key. One on what encodes, which
may be the decoder itself, changes both: it is set for all, and named by no request with a source.
"""

import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from xattn.errors import CorruptCheckpointError, MissingExtraError, UsageError, is_whole, require
from xattn.model import Model
from xattn.models.adapters import adapters_of, used_adapters
from xattn.tuning.whole import replacing

try:
    import peft
    from peft.tuners.lora import LoraLayer
except ImportError as error:
    raise MissingExtraError("peft", "training", "adapters") from error

Preset = Literal["cross", "self", "all"]
PRESETS: dict[Preset, str] = {
    "cross": r"decoder\.layers\.\d+\.cross_attn\.[qkvo]",
    "self": r"decoder\.layers\.\d+\.self_attn\.[qkvo]",
    "all": r"decoder\.layers\.\d+\.((cross|self)_attn\.[qkvo]|(cross_)?ffn\.(up|gate|down))",
}
"""Products that each adapts: of cross-attention, of self-attention, or of all the decoder."""
DEFAULT = "default"


def add_adapter(
    model: Model,
    *,
    preset: Preset = "cross",
    rank: int = 8,
    alpha: int = 16,
    dropout: float = 0.0,
    name: str = DEFAULT,
) -> list[str]:
    """Put a new adapter onto the products that ``preset`` names; the names of its weights.

    It changes nothing until it is trained: what it adds begins at zero. Raises :class:`UsageError`
    where the model has no such products, or has int8 ones.
    """
    require(preset in get_args(Preset), "preset", f"one of {', '.join(PRESETS)}", preset)
    require(is_whole(rank, 1), "rank", "at least 1", rank)
    require(name not in adapters(model), "name", "that of no adapter yet", name)
    _require_products(model, preset)
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=PRESETS[preset]
    )
    _inject(model, config, name)
    return [one for one, _ in model.network.named_parameters() if f".{name}." in one]


def _require_products(model: Model, preset: Preset) -> None:
    named = dict(model.network.named_modules())
    found = [one for path, one in named.items() if re.fullmatch(PRESETS[preset], path)]
    if not found:
        raise UsageError(
            f"`preset` is {preset!r}, and {model.name} has no such products; choose one of "
            f"{', '.join(PRESETS)}."
        )
    plain = all(isinstance(one, nn.Linear | LoraLayer) for one in found)
    require(plain, "model", "with weights that are not quantised", model)


def _inject(model: Model, config: Any, name: str) -> None:
    frozen = {n: p.requires_grad for n, p in model.network.named_parameters()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several are wanted
        peft.inject_adapter_in_model(config, model.network, adapter_name=name)
    for path, one in model.network.named_parameters():
        plain = path.replace(".base_layer", "")
        one.requires_grad_(frozen.get(path, frozen.get(plain, True)))


def adapters(model: Model) -> list[str]:
    """The names of a model's adapters."""
    return adapters_of(model.network)


def use_adapters(model: Model, *names: str) -> None:
    """Compute with these adapters, added together; with none, the model is what it was."""
    _require_known(model, names)
    for layer in _layers(model):
        chosen = [name for name in names if name in layer.lora_A]
        layer.set_adapter(chosen, inference_mode=True)


def merge(model: Model, *names: str) -> None:
    """Add what adapters (all that are used, if none is named) add to the weights themselves.

    The model computes with plain matrices again, as fast as without; :func:`unmerge` undoes it.
    """
    _require_known(model, names)
    for layer in _layers(model):
        chosen = [name for name in names if name in layer.lora_A]
        if chosen or not names:
            layer.merge(safe_merge=True, adapter_names=chosen or None)
    model.network.weights_changed()


def _require_known(model: Model, names: Sequence[str]) -> None:
    known = adapters(model)
    for name in names:
        require(name in known, "names", f"of adapters: {', '.join(known) or 'none'}", name)


def unmerge(model: Model) -> None:
    """Take out again what :func:`merge` added; weights are the same to within rounding."""
    for layer in _layers(model):
        layer.unmerge()
    model.network.weights_changed()


def remove(model: Model, *, keep_merged: bool = False) -> None:
    """Take all adapters off; with ``keep_merged`` after merging those that are used."""
    if keep_merged:
        merge(model)
    for path, layer in list(model.network.named_modules()):
        if isinstance(layer, LoraLayer):
            parent, _, attribute = path.rpartition(".")
            setattr(model.network.get_submodule(parent), attribute, layer.get_base_layer())
    if adapters(model):
        del model.network.peft_config
    model.network.weights_changed()


def save_adapter(
    model: Model,
    directory: str | os.PathLike[str],
    name: str = DEFAULT,
    *,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write an adapter as peft does: adapter_config.json and adapter_model.safetensors.

    ``weights`` are the network's by name, where it has not all of them itself.
    """
    require(name in adapters(model), "name", "that of an adapter", name)
    network: Any = model.network
    config = network.peft_config[name]
    given = dict(model.network.named_parameters()) if weights is None else weights
    held = {
        path.replace(f".{name}.", "."): given[path].detach().cpu().contiguous()
        for path, _ in model.network.named_parameters()
        if f".{name}." in path and ".lora_" in path
    }
    with replacing(Path(directory).absolute()) as new:
        config.save_pretrained(new)
        save_file(held, new / "adapter_model.safetensors")


def load_adapter(model: Model, directory: str | os.PathLike[str], name: str = DEFAULT) -> list[str]:
    """Put an adapter that :func:`save_adapter` wrote onto a model, beside those that it has.

    Raises :class:`CorruptCheckpointError` where it is none, or another model's.
    """
    path = Path(directory)
    try:
        config = peft.PeftConfig.from_pretrained(str(path))
        held = load_file(path / "adapter_model.safetensors")
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise CorruptCheckpointError(
            f"{path}: holds no adapter that can be read: {error}"
        ) from error
    require(name not in adapters(model), "name", "that of no adapter yet", name)
    used = used_adapters(model.network)
    _inject(model, config, name)
    own = {
        one.replace(f".{name}.", "."): weight
        for one, weight in model.network.named_parameters()
        if f".{name}." in one and ".lora_" in one
    }
    strange = held.keys() ^ own.keys()
    wrong = [one for one in held.keys() & own.keys() if held[one].shape != own[one].shape]
    if strange or wrong:
        use_adapters(model, *used)
        _take_off(model, name)
        raise CorruptCheckpointError(
            f"{path}: is another model's adapter: {sorted(strange or wrong)[0]!r} does not fit."
        )
    for one, weight in own.items():
        weight.data.copy_(held[one])
    return list(own)


def _take_off(model: Model, name: str) -> None:
    """One adapter; others stay."""
    network: Any = model.network
    del network.peft_config[name]
    if not network.peft_config:
        remove(model)
        return
    for layer in _layers(model):
        layer.delete_adapter(name)


def _layers(model: Model) -> Iterator[Any]:
    return (one for one in model.network.modules() if isinstance(one, LoraLayer))
