"""Bytes of real models, counted: what transformers caches for 5 beams, what xattn holds and keeps.

Models have the shapes of their published configurations and no weights: they are built on torch's
``meta`` device, where tensors have sizes and no content. Transformers expands its inputs as its
own ``generate`` does and runs one forward pass of the decoder; what its cache then holds of the
memory is counted. xattn projects one memory, which all beams share, in each form. What is at rest
is real: payloads of random states, spans included.

Axes: R rows, S positions, D model width.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from xattn.errors import AbsorptionError
from xattn.ledger.shapes import shapes
from xattn.memory import KV_PREPROCESSING, Memory, MemoryKey, SpanTable, digest_of
from xattn.models.families import family_of
from xattn.models.network import Network
from xattn.spec import DecoderSpec, ModelSpec, Placement
from xattn.store import CODECS
from xattn.store.payload import pack

BEAMS = 5
MEBI = 2**20
DTYPE = torch.bfloat16


def published(name: str) -> dict[str, Any]:
    """The config of a shape that is built in, as transformers' config classes take it."""
    return {key: value for key, value in shapes()[name].config.items() if key != "model_type"}


WHISPER, FLAN_T5_XL, SMOLLM2 = map(published, ("whisper-large-v3", "flan-t5-xl", "smollm2-135m"))
LLAMA_3_2 = dict(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=40,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=131072,
    rope_parameters={
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
)
CROSS_LAYERS = [3, 8, 13, 18, 23, 28, 33, 38]
VISION = dict(
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_global_layers=8,
    attention_heads=16,
    image_size=560,
    patch_size=14,
    max_num_tiles=4,
    vision_output_dim=7680,
    intermediate_layers_indices=[3, 7, 15, 23, 30],
    supported_aspect_ratios=[[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One model, and what it reads."""

    name: str
    spec: Callable[[], ModelSpec]
    theirs: Callable[[int], tuple[int, int]]
    """Rows -> bytes of the memory's keys and values, and of the states that are kept beside."""
    positions: int
    unit: str
    memories: int = 1


def table() -> list[dict[str, Any]]:
    """One row per shape, in MiB."""
    rows = []
    for shape in SHAPES:
        print(shape.name, flush=True)
        rows.append(row(shape))
    return rows


@torch.inference_mode()
def row(shape: Shape) -> dict[str, Any]:
    """At rest, in use, and what transformers holds."""
    spec = shape.spec()
    cached, kept = shape.theirs(BEAMS)
    in_use = {form: projected(shape, spec, form) for form in ("materialized", "absorbed")}
    least = min(size for size in in_use.values() if size is not None)
    at_rest = {f"at rest, {codec}": mib(packed(shape, spec, codec)) for codec in CODECS}
    return {
        "shape": shape.name,
        **at_rest,
        **{f"in use, {form}": "not exact" if n is None else mib(n) for form, n in in_use.items()},
        f"transformers K/V, {BEAMS} beams": mib(cached),
        f"transformers states, {BEAMS} beams": mib(kept),
        "times materialized": round((cached + kept) / in_use["materialized"], 1),
        "times the least": round((cached + kept) / least, 1),
    }


# Ours


def projected(shape: Shape, spec: ModelSpec, form: Any) -> int | None:
    """Bytes that cross-attention reads, whatever the beams; None where the form is not exact."""
    with torch.device("meta"):
        network = Network(spec).to(DTYPE)
        states_SD = torch.empty(shape.positions * shape.memories, width_of(spec), dtype=DTYPE)
    try:
        return network.project(memory_of(shape, spec, states_SD), form=form).size_bytes
    except AbsorptionError:
        return None


def packed(shape: Shape, spec: ModelSpec, codec: Any) -> int:
    """Bytes of the payloads that a store writes, one at a time."""
    generator, total = torch.Generator().manual_seed(1), 0
    for _ in range(shape.memories):
        states_SD = torch.randn(shape.positions, width_of(spec), generator=generator)
        memory = memory_of(shape, spec, states_SD)
        total += len(pack(memory, codec, encode_seconds=1.0, created=0.0))
    return total


def width_of(spec: ModelSpec) -> int:
    """Numbers of one position of a memory."""
    return spec.decoder.memory_width or spec.decoder.kv_width


def memory_of(shape: Shape, spec: ModelSpec, states_SD: Tensor) -> Memory:
    """A memory with these states and as many spans."""
    kind = "text/1" if spec.decoder.cross_attention else f"{KV_PREPROCESSING} text/1"
    return Memory(
        states_SD=states_SD,
        key=MemoryKey(
            source=digest_of(shape.name.encode()),
            modality="text",
            preprocessing=f"{kind} {digest_of(b'tokenizer')}",
            encoder=digest_of(b"encoder"),
            dtype="float32",
        ),
        spans=SpanTable.even(len(states_SD), 1.0, shape.unit),
        label=shape.name,
    )


def spec_of(kind: str, config: dict[str, Any]) -> ModelSpec:
    """As it is read from a checkpoint's config."""
    values = {"model_type": kind, **config}
    return family_of(values).spec(values, {})


def vision_spec() -> ModelSpec:
    """Llama with cross-attention in 8 of 40 layers, whose keys pass through a norm."""
    spec = spec_of("llama", LLAMA_3_2)
    decoder: DecoderSpec = spec.decoder
    cross = replace(decoder.self_attention, rotary=False, qk_norm=decoder.norm)
    placed = tuple(layer in CROSS_LAYERS for layer in range(decoder.layers))
    with_memory = replace(
        decoder,
        cross_attention=cross,
        memory_width=decoder.width,
        placement=Placement(kind="separate", layers=placed),
    )
    return replace(spec, decoder=with_memory)


# Theirs


def on_meta(model: Any, config: Any) -> Any:
    """One of their models without weights."""
    with torch.device("meta"):
        return model(config).to(DTYPE).eval()


def encoder_decoder(kind: str, config: dict[str, Any], width: int, S: int, beams: int) -> Any:
    """Whisper and T5: a cache of cross-attention, and the encoder's states in every row."""
    made = getattr(transformers, f"{kind}Config")(**config)
    model = on_meta(getattr(transformers, f"{kind}ForConditionalGeneration"), made)
    with torch.device("meta"):
        states_1SD = torch.empty(1, S, width, dtype=DTYPE)
        start, inputs = model._expand_inputs_for_generation(
            expand_size=beams,
            is_encoder_decoder=True,
            input_ids=torch.zeros(1, 1, dtype=torch.long),
            encoder_outputs=BaseModelOutput(last_hidden_state=states_1SD),
        )
        found = model(decoder_input_ids=start, use_cache=True, **inputs)
    cache = found.past_key_values.cross_attention_cache
    kept = inputs["encoder_outputs"].last_hidden_state
    return bytes_of_layers(cache.layers), kept.nbytes


def llama(beams: int) -> tuple[int, int]:
    """The prompt's keys and values, in every row."""
    model = on_meta(transformers.LlamaForCausalLM, transformers.LlamaConfig(**SMOLLM2))
    with torch.device("meta"):
        prompt, _ = model._expand_inputs_for_generation(
            expand_size=beams, input_ids=torch.zeros(1, 2048, dtype=torch.long)
        )
        found = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
    return bytes_of_layers(found.past_key_values.layers), 0


def mllama(beams: int) -> tuple[int, int]:
    """The picture's keys and values; its states are let go after the first step."""
    config = transformers.MllamaConfig(
        text_config={**LLAMA_3_2, "cross_attention_layers": CROSS_LAYERS, "pad_token_id": 128004},
        vision_config=VISION,
        attn_implementation="eager",
    )
    model = on_meta(transformers.MllamaForConditionalGeneration, config)
    with torch.device("meta"):
        prompt, inputs = model._expand_inputs_for_generation(
            expand_size=beams,
            input_ids=torch.zeros(1, 2, dtype=torch.long),
            pixel_values=torch.empty(1, 1, 4, 3, 560, 560, dtype=DTYPE),
            aspect_ratio_ids=torch.ones(1, 1, dtype=torch.long),
            aspect_ratio_mask=torch.ones(1, 1, 4, dtype=torch.long),
            cross_attention_mask=torch.ones(1, 2, 1, 4, dtype=torch.long),
        )
        found = model(input_ids=prompt, use_cache=True, logits_to_keep=1, **inputs)
    layers = found.past_key_values.layers
    return bytes_of_layers(layers[place] for place in CROSS_LAYERS), 0


def bytes_of_layers(layers: Iterable[Any]) -> int:
    """Keys and values of the cache's layers."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)


def mib(size: float) -> float:
    """Bytes as MiB, to two places."""
    return round(size / MEBI, 2)


SHAPES = (
    Shape(
        name="whisper-large-v3, 30 s",
        spec=partial(spec_of, "whisper", WHISPER),
        theirs=partial(encoder_decoder, "Whisper", WHISPER, 1280, 1500),
        positions=1500,
        unit="seconds",
    ),
    Shape(
        name="flan-t5-xl, 100 passages of 250 tokens",
        spec=partial(spec_of, "t5", FLAN_T5_XL),
        theirs=partial(encoder_decoder, "T5", FLAN_T5_XL, 2048, 25_000),
        positions=250,
        memories=100,
        unit="characters",
    ),
    Shape(
        name="Llama-3.2-11B-Vision, a picture of 4 tiles",
        spec=vision_spec,
        theirs=mllama,
        positions=6404,
        unit="pixels",
    ),
    Shape(
        name="SmolLM2-135M, a prompt of 2048 tokens",
        spec=partial(spec_of, "llama", SMOLLM2),
        theirs=llama,
        positions=2048,
        unit="characters",
    ),
)
