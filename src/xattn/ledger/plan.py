"""What a configuration will cost, before the first tensor is allocated: arithmetic on a spec.

Axes: S positions of all memories, R rows (every beam of every request), T tokens, L layers, D model
width.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from xattn.costs import absorption_bytes, flops, projection_flops
from xattn.counts import (
    CODECS,
    CodecName,
    decoder_flops,
    encoder_flops,
    head_flops,
    kept_bytes,
    layer_flops,
    pass_bytes,
    projector_flops,
    read_bytes,
    weight_bytes,
)
from xattn.errors import UsageError, is_whole, require, shown
from xattn.ledger.account import Ledger, Row, Setting, What
from xattn.ledger.amounts import KINDS, MOST_COUNT, Amount, amounts_of, encoder_of
from xattn.ledger.workspace import workspace_bytes
from xattn.spec import (
    DTYPE_BYTES,
    FORMS,
    DecoderSpec,
    EncoderSpec,
    Form,
    ModelSpec,
    dtype_bytes,
    is_absorbed,
    is_narrow,
)

NEW_TOKENS = 128


def plan(
    spec: ModelSpec,
    inputs: Mapping[str, Any],
    *,
    batch: int = 1,
    beams: int = 1,
    form: Form = "materialized",
    dtype: str = "float32",
    weights_dtype: str | None = None,
    store_codec: CodecName | None = None,
    shared: bool = False,
    prompt_tokens: int = 1,
    new_tokens: int = NEW_TOKENS,
    engine: bool = False,
) -> Ledger:
    """What ``batch`` requests take that each attend to ``inputs``, with ``beams`` beams each.

    ``inputs`` maps ``document``, ``text``, ``table``, ``audio`` or ``image`` to an amount, or to a
    list of them: a number of positions, or the thing itself as text (see
    :mod:`xattn.ledger.amounts`): ``{"image": 2}`` are two positions, ``{"image": "2"}`` two
    pictures. With ``shared`` all requests read the same memories, else each has its own. ``dtype``
    is that of states, keys and values, ``int8`` meaning the int8 form of ``form`` over states in
    float32; ``weights_dtype`` that of weights, ``int4`` among them, the same if not given.
    ``store_codec`` adds what the states take on disk. Each request feeds ``prompt_tokens`` and
    generates ``new_tokens``; FLOPs and bytes of a step are those of the middle one. With
    ``engine`` they are an :class:`~xattn.Engine`'s, which reads prompts one at a time; else all are
    read at once, as ``generate_batch`` does.

    Raises :class:`UsageError` for an input that the model does not read, and for numbers out of
    bounds; :class:`AbsorptionError` where ``form`` is not exact for this decoder.
    """
    require(isinstance(spec, ModelSpec), "spec", "a ModelSpec, as spec_of(name) gives", spec)
    form, dtype = _form(spec.decoder, form, dtype)
    setting = Setting(
        batch=batch,
        beams=beams,
        form=form,
        dtype=dtype,
        weights_dtype=weights_dtype or dtype,
        store_codec=store_codec,
        shared=shared,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        engine=engine,
    )
    _check(spec.decoder, setting)
    amounts = amounts_of(spec, inputs)
    rows = [row for amount in amounts for row in _of_input(spec, amount, setting)]
    rows += [*_answers(spec.decoder, setting), *_model(spec, amounts, setting)]
    return Ledger(model=spec.family, amounts=tuple(amounts), setting=setting, rows=tuple(rows))


def _form(decoder: DecoderSpec, form: str, dtype: str) -> tuple[Form, str]:
    """The form, and the number format of states: ``int8`` is a form of its own."""
    chosen: Form | None = next((known for known in FORMS if known == form), None)
    require(chosen is not None, "form", f"one of {', '.join(FORMS)}", form)
    require(dtype in [*DTYPE_BYTES], "dtype", f"one of {', '.join(DTYPE_BYTES)}", dtype)
    assert chosen is not None
    if dtype == "int8":
        chosen, dtype = ("absorbed-int8" if is_absorbed(chosen) else "materialized-int8"), "float32"
    if is_absorbed(chosen):
        decoder.require_absorbable()
    return chosen, dtype


def _check(decoder: DecoderSpec, setting: Setting) -> None:
    weights, codec = setting.weights_dtype, setting.store_codec
    known = [*DTYPE_BYTES, "int4"]
    require(weights in known, "weights_dtype", f"one of {', '.join(known)}", weights)
    require(codec is None or codec in CODECS, "store_codec", f"one of {', '.join(CODECS)}", codec)
    for name in ("batch", "beams", "prompt_tokens", "new_tokens"):
        value = getattr(setting, name)
        fits = is_whole(value, 1) and value <= MOST_COUNT
        require(fits, name, f"a whole number from 1 to {MOST_COUNT}", value)
    limit, tokens = decoder.position.limit, setting.prompt_tokens + setting.new_tokens
    if limit is not None and tokens > limit:
        raise UsageError(
            f"`prompt_tokens` + `new_tokens` must be at most {limit} for this model, "
            f"but is {shown(tokens)} instead."
        )


def _of_input(spec: ModelSpec, amount: Amount, setting: Setting) -> Iterator[Row]:
    """States, what the decoder makes of them, and what they take on disk."""
    decoder, form, copies = spec.decoder, setting.form, setting.copies
    total = amount.total * copies
    common: dict[str, Any] = {
        "input": amount.kind,
        "positions": total,
        "estimated": amount.estimated,
    }
    read = decoder.memory_bytes(total, form=form, dtype=setting.dtype)
    reading: dict[str, Any] = {
        "step_flops": setting.rows * _reading_flops(decoder, amount.total, form),
        "step_bytes": read * (decoder.placement.count if is_absorbed(form) else 1),
    }
    wide, projecting = decoder.memory_bytes(total, dtype=setting.dtype), 0
    sources = copies * amount.memories
    if decoder.cross_attention is None:
        # A decoder-only model goes on from keys and values: they are its states.
        states, read_as_they_are = wide, not is_narrow(form)
        encoding = sources * decoder_flops(decoder, amount.positions, logits=0)
    else:
        lent, projector = spec.lent_for(KINDS[amount.kind]), spec.projector_for(KINDS[amount.kind])
        width = decoder.memory_width if lent is None else lent.width
        encoded = total if lent is None else sources * amount.encoded
        states = encoded * width * dtype_bytes(setting.dtype)
        read_as_they_are = form == "absorbed" and projector is None
        encoding = sources * _once(spec, amount)
        if projector is not None:
            projecting = sources * projector_flops(projector, amount.encoded)
    yield Row(
        what="states",
        bytes=states,
        encode_flops=encoding,
        **(reading if read_as_they_are else {}),
        **common,
    )
    if not read_as_they_are:
        yield Row(
            what=_read_as(form),
            bytes=read,
            encode_flops=projecting + projection_flops(decoder, total, form),
            **reading,
            **common,
        )
    if setting.store_codec is not None:
        kept = kept_bytes(decoder, total, setting.store_codec)
        yield Row(what="at rest", bytes=kept, **common)


def _read_as(form: Form) -> What:
    if not is_absorbed(form):
        return "keys and values"
    return "int8 states" if is_narrow(form) else "projected states"


def _once(spec: ModelSpec, amount: Amount) -> int:
    """Operations that encode one source; none where the encoder is not known."""
    encoder, lent = encoder_of(spec, amount.kind), spec.lent_for(KINDS[amount.kind])
    if encoder is not None:
        return encoding_flops(encoder, amount)
    if lent is None or not lent.itself:
        return 0
    return decoder_flops(spec.decoder.without_cross(), amount.encoded, logits=0)


def encoding_flops(encoder: EncoderSpec, amount: Amount) -> int:
    """Operations that encode one source; pictures may go through an encoder of their own first."""
    if amount.kind == "image" and encoder.pictures is not None:
        before = encoder_flops(encoder.pictures, amount.encoded)
        return before + encoder_flops(encoder, amount.positions)
    return encoder_flops(encoder, amount.encoded)


def _answers(decoder: DecoderSpec, setting: Setting) -> Iterator[Row]:
    """Keys and values of prompts and answers, but for the last token, which is not fed."""
    fed, rows, dtype, seen = setting.fed, setting.rows, setting.dtype, setting.seen
    own, read = decoder.self_attention, decoder.kept_tokens(seen) + decoder.self_layers
    yield Row(
        input="answer",
        what="self-attention cache",
        positions=rows * fed,
        bytes=decoder.self_cache_bytes(fed, rows=rows, dtype=dtype),
        step_bytes=decoder.self_cache_bytes(seen, rows=rows, dtype=dtype),
        step_flops=rows * 4 * own.heads * own.head_width * read,
    )


def _model(spec: ModelSpec, amounts: Sequence[Amount], setting: Setting) -> Iterator[Row]:
    """Weights, and room to work in."""
    decoder, rows, form = spec.decoder, setting.rows, setting.form
    quantize = setting.quantize
    dtype = "float32" if quantize else setting.weights_dtype
    read = read_bytes(decoder, dtype=dtype, quantize=quantize, rows=rows)
    step_flops = rows * (layer_flops(decoder) + head_flops(decoder))
    if amounts and is_absorbed(form):  # the projections go to the queries, in every step
        read += absorption_bytes(decoder, dtype=dtype)
        step_flops += rows * flops(decoder, 0, 1, form)
    positions = sum(amount.total for amount in amounts)
    prompt = decoder_flops(
        decoder,
        setting.prompt_tokens,
        seen=positions if decoder.cross_attention is None else 0,
        memories=positions,
        form=form,
        logits=1,
    )
    yield Row(
        input="model",
        what="weights",
        bytes=weight_bytes(spec, dtype=dtype, quantize=quantize),
        encode_flops=setting.batch * prompt,
        encode_bytes=pass_bytes(spec, dtype=dtype, quantize=quantize),
        step_flops=step_flops,
        step_bytes=read,
    )
    if amounts and is_absorbed(form) and quantize is not None:
        wide = absorption_bytes(decoder)
        yield Row(input="model", what="wide projections", bytes=wide)
    yield Row(input="model", what="workspace", bytes=workspace_bytes(spec, amounts, setting))


def _reading_flops(decoder: DecoderSpec, positions: int, form: Form) -> int:
    """Operations in which one token reads positions, in all layers."""
    if decoder.cross_attention is None:
        own = decoder.self_attention
        return 4 * own.heads * own.head_width * positions * decoder.self_layers
    return flops(decoder, positions, 1, form) - flops(decoder, 0, 1, form)
