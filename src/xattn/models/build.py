"""From a checkpoint to a network: every weight found, of the right shape, none left empty."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from xattn.errors import (
    CorruptCheckpointError,
    TensorError,
    UnsupportedModelError,
    UsageError,
    require,
)
from xattn.memory import HASHES, Hash
from xattn.models.narrow import NarrowEmbedding, NarrowMatrix, is_narrowable, narrow_layer
from xattn.models.network import Network
from xattn.models.positions import PositionTable
from xattn.models.weights import Checkpoint, Weight
from xattn.native.pages import Room, forget_mapped, put_together

NUMBERS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
QUANTISED = {"int8": 8, "int4": 4}
"""Bits of a weight of layers; vocabularies are int8 in both."""
TABLES = ("encoder.embed.weight", "decoder.embed.weight", "decoder.head.weight")
"""Matrices of the vocabulary."""
SOME = 1 << 20
"""Numbers that are looked at together."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def build(
    checkpoint: Checkpoint,
    *,
    dtype: str | torch.dtype = "float32",
    quantize: str | None = None,
    hash: Hash = "blake3",
    device: str = "cpu",
) -> Network:
    """A network with the checkpoint's weights, in evaluation mode.

    ``quantize="int8"`` keeps the matrices of its layers and its vocabulary as 8-bit integers,
    ``int4`` those of its layers as 4-bit ones.

    Raises :class:`TensorError` where a tensor is missing or misshaped, with the checkpoint's own
    name for it, the shape expected and the shape found.
    """
    dtype = str(dtype).removeprefix("torch.")
    require(hash in HASHES, "hash", f"one of {', '.join(HASHES)}", hash)
    require(dtype in DTYPES, "dtype", f"one of {', '.join(DTYPES)}", dtype)
    known = ", ".join(map(repr, QUANTISED))
    require(quantize in (None, *QUANTISED), "quantize", f"one of None, {known}", quantize)
    if quantize is not None:
        require(dtype == "float32", "dtype", f"float32 with quantize={quantize!r}", dtype)
    with torch.device("meta"):
        network = Network(checkpoint.spec, hash=hash)
    expected = {name: tuple(p.shape) for name, p in network.named_parameters()}
    check_weights(checkpoint, expected)
    loading = _Loading(network, checkpoint.weights, DTYPES[dtype], torch.device(device))
    if quantize is None:
        loading.wide(expected)
    else:
        loading.narrow(expected, QUANTISED[quantize])
    for module in network.modules():
        if isinstance(module, PositionTable) and module.spec.kind == "sinusoidal":
            module.clear(DTYPES[dtype], torch.device(device))
    return network.eval()


class _Loading:
    """Weights on their way into a network: at no time are more there twice than one."""

    def __init__(
        self,
        network: Network,
        weights: Mapping[str, Weight],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._network, self._weights = network, weights
        self._dtype, self._device = dtype, device
        self._loaded: dict[str, nn.Parameter] = {}
        """By origin: two of our names for one tensor are one parameter."""
        self._tables: dict[str, NarrowEmbedding] = {}
        """The same of vocabularies that are int8."""

    def wide(self, names: Iterable[str]) -> None:
        """All weights as they are, side by side."""
        distinct = {self._weights[name].origin: name for name in names}.values()
        room = Room(
            math.prod(self._weights[name].shape) * self._target(name).itemsize for name in distinct
        )
        for name in names:
            self._put(name, room)

    def narrow(self, names: Iterable[str], bits: int) -> None:
        """Matrices of layers with so many bits, of the vocabulary with 8; each as soon as it is
        there."""
        modules: dict[str, list[str]] = {}
        for name in names:
            modules.setdefault(name.rpartition(".")[0], []).append(name)
        matrices = {module: parts for module, parts in modules.items() if self._is_layer(module)}
        shapes = [self._weights[f"{module}.weight"].shape for module in matrices]
        # One place for all of them in turn: between what stays, they would leave holes.
        scratch = torch.empty(max(map(math.prod, shapes), default=0), device=self._device)
        for module, parts in modules.items():
            for name in parts:
                wide = module in matrices and name.endswith(".weight")
                if name in TABLES:
                    self._put_table(name)
                else:
                    self._put(name, scratch if wide else None)
            if module in matrices:
                parent, _, attribute = module.rpartition(".")
                narrow_layer(self._network.get_submodule(parent), attribute, bits)
                del self._loaded[self._weights[f"{module}.weight"].origin]
        self._loaded.clear()
        del scratch
        put_together(self._network)

    def _is_layer(self, module: str) -> bool:
        """Whether it is a product of attention or of a feed-forward, in a stack of layers."""
        parent, _, attribute = module.rpartition(".")
        if module.startswith("projectors."):
            return False
        return is_narrowable(self._network.get_submodule(parent), attribute)

    def _put(self, name: str, place: Room | Tensor | None) -> None:
        weight = self._weights[name]
        if weight.origin not in self._loaded:
            tensor = _read(weight, may_ban=name.endswith("head.bias"))
            target = self._target(name)
            if self._device.type != "cpu":
                held = tensor.to(self._device, target).contiguous()
            elif place is None:
                held = tensor.to(target, copy=True).contiguous()
            elif isinstance(place, Room):
                held = place.take(weight.shape, target).copy_(tensor)
            else:
                held = place[: tensor.numel()].view(weight.shape).copy_(tensor)
            if weight.mapped:
                forget_mapped(tensor)
            self._loaded[weight.origin] = nn.Parameter(held, requires_grad=False)
        module, _, attribute = name.rpartition(".")
        setattr(self._network.get_submodule(module), attribute, self._loaded[weight.origin])

    def _put_table(self, name: str) -> None:
        """A matrix of the vocabulary, straight from the file to int8."""
        weight, decoder = self._weights[name], self._network.decoder
        if name == "decoder.head.weight":
            decoder.head.matrix, decoder.head.weight = self._narrowed(weight), None
            return
        if weight.origin not in self._tables:
            self._tables[weight.origin] = NarrowEmbedding(self._narrowed(weight))
        module, _, attribute = name.removesuffix(".weight").rpartition(".")
        stack = self._network.get_submodule(module)
        stack.register_module(attribute, self._tables[weight.origin])

    def _narrowed(self, weight: Weight) -> NarrowMatrix:
        tensor = _read(weight)
        matrix = NarrowMatrix.of(tensor.to(self._device))
        if weight.mapped:
            forget_mapped(tensor)
        return matrix

    def _target(self, name: str) -> torch.dtype:
        kept_wide = self._dtype == torch.float16 and _is_wide(self._network, name)
        return torch.float32 if kept_wide else self._dtype


def require_device(device: str) -> None:
    """Raise :class:`UsageError` unless torch can put a tensor on ``device``."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"`device` must be one that `xattn doctor` lists, but is {device!r} instead: {reason}"
        ) from error


def check_weights(checkpoint: Checkpoint, expected: dict[str, tuple[int, ...]]) -> None:
    """Raise :class:`TensorError` unless the expected tensors, and no others, are there."""
    problems: list[str] = []
    for name, shape in expected.items():
        weight = checkpoint.weights.get(name)
        if weight is None:
            theirs = checkpoint.names.get(name, name)
            problems.append(f"tensor {theirs!r} is missing (expected shape {list(shape)})")
        elif weight.shape != shape:
            problems.append(
                f"tensor {weight.origin!r} has the wrong shape: expected {list(shape)}, "
                f"found {list(weight.shape)}"
            )
    unread = "is in the file and nothing reads it"
    problems += [f"tensor {name!r} {unread}" for name in checkpoint.unused]
    if problems:
        others = f" (and {len(problems) - 1} more like it)" if len(problems) > 1 else ""
        raise TensorError(
            f"{checkpoint.origin}: {problems[0]}{others}; "
            "the config and the weights do not belong together, or the file is incomplete."
        )


def _is_wide(network: Network, name: str) -> bool:
    if not name.endswith("ffn.down.weight"):
        return False
    stack = network.spec.decoder if name.startswith("decoder.") else network.spec.encoder
    return stack is not None and stack.feed_forward.wide_down


def _read(weight: Weight, *, may_ban: bool = False) -> Tensor:
    tensor = weight.load()
    assert tuple(tensor.shape) == weight.shape, (weight.origin, tuple(tensor.shape), weight.shape)
    if tensor.dtype not in NUMBERS:
        raise UnsupportedModelError(
            f"tensor {weight.origin!r} holds {str(tensor.dtype).removeprefix('torch.')}: quantised "
            "weights are not read from safetensors; take the unquantised checkpoint, a GGUF file, "
            "or a CTranslate2 conversion."
        )
    # A sum costs a tenth of a comparison of each number. A bias may ban a token with -inf.
    if not may_ban and not all(
        some.sum(dtype=torch.float32).isfinite() for some in tensor.reshape(-1).split(SOME)
    ):
        raise CorruptCheckpointError(
            f"tensor {weight.origin!r} holds numbers that are none (NaN or infinite); "
            "download or convert the checkpoint again."
        )
    return tensor
