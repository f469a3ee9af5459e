"""The same requests through ``generate`` of transformers 5, from the spec alone.

Every beam of every request is a row, with keys and values of its own (``generate`` repeats its
inputs before the first pass), and all numbers have one format. Room to work in is not counted, so
it is the least that transformers takes.
"""

from collections.abc import Sequence
from dataclasses import replace

from xattn.costs import projection_flops
from xattn.counts import decoder_flops, read_bytes, weight_bytes
from xattn.ledger.account import Alternative, Setting
from xattn.ledger.amounts import Amount
from xattn.ledger.plan import encoding_flops
from xattn.spec import ModelSpec, dtype_bytes


def in_transformers(spec: ModelSpec, amounts: Sequence[Amount], setting: Setting) -> Alternative:
    """What it would hold, do and read."""
    decoder, dtype, rows = spec.decoder, setting.dtype, setting.rows
    amounts = [padded(spec, amount) for amount in amounts]
    positions = sum(amount.total for amount in amounts)
    inputs, read = _of_inputs(spec, rows * positions, dtype)
    cache = decoder.self_cache_bytes(setting.fed, rows=rows, dtype=dtype)
    # DynamicCache grows by concatenation: keys of one layer are there twice for a moment.
    grown = cache + (inputs if decoder.cross_attention is None else 0)
    twice = grown // (2 * decoder.self_layers)
    weights = read_bytes(decoder, dtype=dtype, rows=rows)
    return Alternative(
        name="transformers",
        input_bytes=inputs,
        total_bytes=weight_bytes(spec, dtype=dtype) + inputs + cache + twice,
        encode_flops=_encode_flops(spec, amounts, setting, positions),
        bytes_per_token=(
            weights + read + decoder.self_cache_bytes(setting.seen, rows=rows, dtype=dtype)
        )
        / setting.batch,
    )


def _of_inputs(spec: ModelSpec, positions: int, dtype: str) -> tuple[int, int]:
    """Bytes held of inputs in all rows, and what a step reads of them."""
    decoder = spec.decoder
    read = decoder.memory_bytes(positions, dtype=dtype)
    states = positions * decoder.memory_width * dtype_bytes(dtype)
    if decoder.placement.own_feed_forward:  # Idefics projects the states anew in every step
        return states, decoder.placement.count * states
    if decoder.cross_attention is None or _sees(spec):  # states go when they are projected
        return read, read
    return read + states, read


def _encode_flops(
    spec: ModelSpec, amounts: Sequence[Amount], setting: Setting, positions: int
) -> int:
    """Encoding, projecting and the first pass.

    An encoder of texts or recordings runs before inputs are repeated, everything else after. The
    tiles that fill up a picture are encoded too.
    """
    decoder, rows = spec.decoder, setting.rows
    if decoder.cross_attention is None:  # inputs and prompt are one text
        return rows * decoder_flops(decoder, positions + setting.prompt_tokens, logits=1)
    first = projection_flops(decoder, positions, "materialized") + decoder_flops(
        decoder,
        setting.prompt_tokens,
        memories=positions,
        logits=1 if _sees(spec) else setting.prompt_tokens,
    )
    assert spec.encoder is not None
    encoding = sum(one.memories * encoding_flops(spec.encoder, one) for one in amounts)
    return rows * first + (rows if _sees(spec) else setting.batch) * encoding


def padded(spec: ModelSpec, amount: Amount) -> Amount:
    """An amount of pictures of which each has all tiles; any other as it is."""
    image = None if spec.encoder is None else spec.encoder.image
    if image is None:
        return amount
    pictures = -(-amount.positions // (image.tiles * image.positions))
    return replace(
        amount,
        positions=pictures * image.tiles * image.positions,
        encoded=pictures * image.tiles * image.encoded,
    )


def _sees(spec: ModelSpec) -> bool:
    """Whether the decoder itself is given pictures, as transformers has it (Mllama, Idefics)."""
    return spec.encoder is not None and spec.encoder.image is not None
