"""From a checkpoint to a network: every weight found, of the right shape, none left empty."""

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
from xattn.models.narrow import NarrowEmbedding, NarrowMatrix, narrow_layers
from xattn.models.network import Network
from xattn.models.positions import PositionTable
from xattn.models.weights import Checkpoint, Weight
from xattn.native.pages import put_together

NUMBERS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
QUANTISED = ("int8",)
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

    ``quantize="int8"`` keeps the matrices of its layers and its vocabulary as 8-bit integers.

    Raises :class:`TensorError` where a tensor is missing or misshaped, with the checkpoint's own
    name for it, the shape expected and the shape found.
    """
    dtype = str(dtype).removeprefix("torch.")
    require(hash in HASHES, "hash", f"one of {', '.join(HASHES)}", hash)
    require(dtype in DTYPES, "dtype", f"one of {', '.join(DTYPES)}", dtype)
    require(quantize in (None, *QUANTISED), "quantize", f"None or {QUANTISED[0]!r}", quantize)
    if quantize is not None:
        require(dtype == "float32", "dtype", f"float32 with quantize={quantize!r}", dtype)
    with torch.device("meta"):
        network = Network(checkpoint.spec, hash=hash)
    expected = {name: tuple(p.shape) for name, p in network.named_parameters()}
    check_weights(checkpoint, expected)
    loaded: dict[str, nn.Parameter] = {}
    for name in expected:
        weight = checkpoint.weights[name]
        kept_wide = _is_wide(network, name) and dtype == "float16"
        target = torch.float32 if kept_wide else DTYPES[dtype]
        if weight.origin not in loaded:
            tensor = _read(weight, may_ban=name.endswith("head.bias")).to(
                device=device, dtype=target
            )
            loaded[weight.origin] = nn.Parameter(tensor.contiguous(), requires_grad=False)
        module_name, _, attribute = name.rpartition(".")
        setattr(network.get_submodule(module_name), attribute, loaded[weight.origin])
    for module in network.modules():
        if isinstance(module, PositionTable) and module.spec.kind == "sinusoidal":
            module.clear(DTYPES[dtype], torch.device(device))
    if quantize is not None:
        loaded.clear()
        _make_narrow(network)
    loaded.clear()
    put_together(network)
    return network.eval()


def _make_narrow(network: Network) -> None:
    """The matrices of all layers, and the vocabulary's, as int8."""
    decoder, encoder = network.decoder, network.encoder
    tables: dict[int, NarrowEmbedding] = {}
    for stack in (decoder, encoder):
        if stack is None:
            continue
        narrow_layers(stack)
        if isinstance(getattr(stack, "embed", None), nn.Embedding):
            weight = stack.embed.weight
            if id(weight) not in tables:
                tables[id(weight)] = NarrowEmbedding(NarrowMatrix.of(weight.detach()))
            stack.register_module("embed", tables[id(weight)])
    if decoder.head.weight is not None:
        decoder.head.matrix = NarrowMatrix.of(decoder.head.weight.detach())
        decoder.head.weight = None


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
    if not may_ban and not bool(tensor.sum(dtype=torch.float32).isfinite()):
        raise CorruptCheckpointError(
            f"tensor {weight.origin!r} holds numbers that are none (NaN or infinite); "
            "download or convert the checkpoint again."
        )
    return tensor
