"""The same requests otherwise: other forms, shared or not, nothing kept, and in transformers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xattn.counts import weight_bytes
from xattn.errors import AbsorptionError
from xattn.ledger.account import Ledger
from xattn.ledger.plan import encoding_flops, plan
from xattn.spec import FORMS, DecoderSpec, ModelSpec, dtype_bytes


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """One way, and what it comes to."""

    name: str
    input_bytes: int
    """What is held of the inputs."""
    total_bytes: int
    encode_flops: int
    """Before the first token of each batch."""
    bytes_per_token: float
    """Read for one token."""
    chosen: bool = False
    """It is the configuration that was asked for."""


def alternatives(spec: ModelSpec, inputs: Mapping[str, Any], **settings: Any) -> list[Alternative]:
    """What was asked for beside its alternatives; ``settings`` are those of :func:`plan`."""
    asked = plan(spec, inputs, **settings)
    settings = {**settings, "dtype": asked.setting.dtype}
    settings["weights_dtype"] = asked.setting.weights_dtype
    found = []
    for shared in (False, True) if asked.setting.batch > 1 else (asked.setting.shared,):
        for form in FORMS:
            try:
                ledger = plan(spec, inputs, **{**settings, "form": form, "shared": shared})
            except AbsorptionError:
                continue
            name = f"{form}, shared" if shared else form
            found.append(_alternative(name, ledger, chosen=ledger.setting == asked.setting))
    recomputed = "states recomputed for every request"
    if spec.decoder.cross_attention is not None:
        found.append(_recomputed(recomputed, spec, asked))
    return [*found, _transformers(spec, asked)]


def _alternative(name: str, ledger: Ledger, *, chosen: bool = False) -> Alternative:
    return Alternative(
        name=name,
        input_bytes=ledger.memory_bytes,
        total_bytes=ledger.total_bytes,
        encode_flops=ledger.encode_flops,
        bytes_per_token=ledger.bytes_per_token,
        chosen=chosen,
    )


def _recomputed(name: str, spec: ModelSpec, asked: Ledger) -> Alternative:
    """Each request encodes its inputs, and lets states go once they are projected."""
    setting, states = asked.setting, asked.of("states")
    assert spec.encoder is not None
    again = sum(
        (setting.batch - setting.copies) * amount.count * encoding_flops(spec.encoder, amount)
        for amount in asked.amounts
    )
    kept = asked.memory_bytes - states if setting.form == "materialized" else asked.memory_bytes
    copies = setting.batch // setting.copies
    return Alternative(
        name=name,
        input_bytes=kept * copies,
        total_bytes=asked.total_bytes - asked.memory_bytes + kept * copies,
        encode_flops=asked.encode_flops + again,
        bytes_per_token=asked.bytes_per_token,
    )


def _transformers(spec: ModelSpec, asked: Ledger) -> Alternative:
    """``generate`` of transformers 5: every beam of every request has keys and values of its own.

    Encoder outputs are repeated for beams, too (``_expand_inputs_for_generation``), and the cache
    grows by concatenation, which holds one layer twice.
    """
    decoder, setting = spec.decoder, asked.setting
    dtype, rows = setting.dtype, setting.rows
    positions = sum(amount.total for amount in asked.amounts)
    tokens = setting.prompt_tokens + setting.new_tokens
    inputs, total = _expanded(decoder, positions, rows, dtype)
    cache = decoder.self_cache_bytes(tokens, rows=rows, dtype=dtype)
    weights = weight_bytes(spec, dtype=dtype)
    held = weights + inputs + cache + cache // decoder.layers + asked.of("workspace")
    again = setting.batch // setting.copies
    encoding = sum(row.encode_flops for row in asked.rows if row.what == "states") * again
    [reading] = (row.step_bytes for row in asked.rows if row.what == "weights")
    read = reading + total + cache // 2
    return Alternative(
        name="transformers",
        input_bytes=inputs,
        total_bytes=held,
        encode_flops=encoding,
        bytes_per_token=read / setting.batch,
    )


def _expanded(decoder: DecoderSpec, positions: int, rows: int, dtype: str) -> tuple[int, int]:
    """Bytes held of inputs, and of these what a step reads."""
    read = rows * decoder.memory_bytes(positions, dtype=dtype)
    if decoder.cross_attention is None:
        return read, read
    return read + rows * positions * decoder.memory_width * dtype_bytes(dtype), read
