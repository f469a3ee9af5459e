"""Room for what is between a pass's input and its output: an upper bound, from shapes.

An engine foretells its own with the same pieces, for the jobs and threads that it has.

Axes: P positions that go through an encoder together, D model width.
"""

from collections.abc import Sequence
from functools import partial

from xattn.costs import absorption_bytes
from xattn.counts import (
    GROUP,
    GROUP_BYTES,
    PANEL,
    QUAD,
    Matrix,
    decoder_matrices,
    encoder_matrices,
    is_int4,
    matrices,
    parameters,
    weight_bytes,
)
from xattn.ledger.account import Setting
from xattn.ledger.amounts import Amount
from xattn.spec import DecoderSpec, EncoderSpec, Form, ModelSpec, is_absorbed, is_narrow

TOGETHER = 4096
"""Positions that go through an encoder in one pass, unless one source alone has more."""
CHUNK = 256
"""Tokens of a prompt that an engine feeds in one step, at most."""
SHORT_PROMPT = 8
"""Tokens of a prompt that are worth no step of their own while other rows are in flight."""
FEW_TOKENS = 64
"""Tokens of one step over the rows in flight, at most, beside a prompt that is read alone."""
ENCODED_AT_ONCE = 512
"""Positions that an engine encodes between two steps, if one source is no longer."""
BLOCK = 1024
"""Positions that go through a feed-forward together."""
KERNEL_TOKENS = 64
"""Tokens of a pass up to which the compiled kernels take it; beyond, torch does."""
POSITIONS = 1024
"""Of a narrow memory that torch makes wide at once."""
THREAD_BYTES = 2**17
"""What a thread of torch's attention has of its own."""
THREADS = 8
"""Of the machine that is planned for."""
LOOKED_AT = 2**22
"""Weights of so many numbers are looked at entirely to see whether one changed."""


def workspace_bytes(spec: ModelSpec, amounts: Sequence[Amount], setting: Setting) -> int:
    """The largest of what encoding, decoding and looking at the weights take for a while."""
    decoder, form = spec.decoder, setting.form
    prompt, together = setting.prompt_tokens, TOGETHER
    memories = sum(amount.memories for amount in amounts)
    step = partial(
        _pass_bytes,
        decoder,
        positions=sum(amount.total for amount in amounts),
        memories=memories,
        form=form,
    )
    seen, fed = prompt + setting.new_tokens, max(setting.rows, setting.batch * prompt)
    decoding, moving = 0, moving_bytes(decoder, setting.fed, setting.rows, setting.dtype)
    if setting.engine:
        together = ENCODED_AT_ONCE
        fed = max(setting.rows, min(setting.rows * min(prompt, SHORT_PROMPT), FEW_TOKENS))
        if prompt > 1:
            decoding += step(min(prompt, CHUNK), 1, prompt)
            moving += decoder.self_cache_bytes(prompt, rows=1, dtype=setting.dtype)
        decoding += projecting_bytes(
            decoder, max((one.positions for one in amounts), default=0), form
        )
    decoding += step(fed, setting.rows, seen)
    if is_absorbed(form) and setting.quantize is not None:
        layers = max(1, decoder.placement.projections)
        decoding += absorption_bytes(decoder) // layers  # the next on their way
    longest = max((amount.encoded for amount in amounts), default=0)
    several = sum(amount.memories * amount.encoded for amount in amounts) * setting.copies
    known = [one.encoder for one in spec.lent if one.encoder is not None]
    encoder = spec.encoder or (known[0] if known else None)
    if encoder is not None:
        encoding = encoding_bytes(encoder, max(longest, min(several, together)))
    else:
        encoding = _pass_bytes(
            decoder, longest, 0, longest, positions=0, memories=0, form="materialized"
        )
    # An engine's requests come, and are encoded, while others' caches are moved.
    beside = moving if setting.engine else 0
    passing = max(decoding + moving, encoding + beside if amounts else 0)
    return max(passing, looking_bytes(spec, setting.quantize))


def _pass_bytes(
    decoder: DecoderSpec,
    tokens: int,
    logits: int,
    seen: int,
    *,
    positions: int,
    memories: int,
    form: Form,
) -> int:
    """One pass of the decoder."""
    found = decoder.step_bytes(
        tokens, logits, seen, positions, memories=memories, form=form, threads=THREADS
    )
    if tokens <= KERNEL_TOKENS:
        return found
    return found + torch_bytes(
        decoder, form, tokens, seen + tokens, memories, positions, threads=THREADS
    )


def moving_bytes(decoder: DecoderSpec, tokens: int, rows: int, dtype: str) -> int:
    """One layer of the cache that is moved: what is gathered and where it goes, and two tables of
    the places of all tokens."""
    cache = decoder.self_cache_bytes(tokens, rows=rows, dtype=dtype)
    return 2 * (cache // decoder.layers) + 16 * rows * tokens


def torch_bytes(
    decoder: DecoderSpec,
    form: Form,
    tokens: int,
    seen: int,
    groups: int,
    positions: int,
    *,
    threads: int,
) -> int:
    """What torch makes more of than the kernels: a part of every row for each of ``groups``
    memories, of which the longest has ``positions``; a row sees ``seen`` tokens."""
    own = decoder.self_attention
    cross = decoder.cross_attention or own
    heads = max(own.heads, cross.heads)
    part = heads * (max(own.head_width, cross.head_width) + 2)
    absorbed = 3 * heads * decoder.memory_width if is_absorbed(form) else 0
    relative = decoder.position.kind == "relative"
    bias = (2 * heads + 16 if relative else 4) * seen
    numbers = tokens * ((groups + 6) * part + absorbed + bias)
    if is_narrow(form):
        blocks = 1 + positions // POSITIONS
        numbers += (
            min(POSITIONS, positions) * 4 * widest(decoder, form) + 2 * tokens * blocks * part
        )
    return 4 * numbers + THREAD_BYTES * threads


def widest(decoder: DecoderSpec, form: Form) -> int:
    """Numbers of a position of keys or values of one layer, or of its states."""
    attention = decoder.cross_attention or decoder.self_attention
    width = attention.kv_heads * attention.head_width
    return max(width, decoder.memory_width) if is_absorbed(form) else width


def projecting_bytes(decoder: DecoderSpec, positions: int, form: Form) -> int:
    """One layer of a memory before it is where it stays."""
    copies = 6 if is_narrow(form) else 2
    return 4 * copies * positions * widest(decoder, form)


def looking_bytes(spec: ModelSpec, quantize: str | None = None) -> int:
    """Numbers of the weights that tell whether one changed, once apart and once together.

    They are all, or of a large model one of each row and column, and the places of those.
    """
    if parameters(spec) <= LOOKED_AT:
        return 8 * parameters(spec)
    stacks = [decoder_matrices(spec.decoder)]
    if spec.encoder is not None:
        stacks.append(encoder_matrices(spec.encoder))
    sizes = [sum(one.times * max(one.outputs, one.inputs) for one in stack) for stack in stacks]
    if quantize is None:
        return 2 * 8 * max(sizes)
    # Of narrow ones a number of each row and each quad of inputs of a panel, or byte of a group.
    narrow = [sum(one.times * _looked_at(one, quantize) for one in stack) for stack in stacks]
    return 2 * 8 * max(a + b for a, b in zip(sizes, narrow, strict=True))


def _looked_at(matrix: Matrix, quantize: str) -> int:
    panels = -(-matrix.outputs // PANEL)
    if is_int4(matrix, quantize):
        return max(panels, -(-matrix.inputs // GROUP) * GROUP_BYTES)
    return max(panels, -(-matrix.inputs // QUAD) * PANEL * QUAD)


def encoding_bytes(spec: EncoderSpec, positions: int) -> int:
    """What one pass over so many positions takes at once, in float32."""
    own = spec.self_attention
    inner = (2 * own.heads + 2 * own.kv_heads) * own.head_width
    wide = (2 if spec.feed_forward.gated else 1) * spec.feed_forward.width
    numbers = positions * (4 * spec.width + inner) + min(positions, BLOCK) * 2 * wide
    if spec.audio is not None:
        numbers = max(numbers, 2 * positions * (spec.audio.mel_bins + 2 * spec.width))
    return 4 * numbers


def loading_bytes(spec: ModelSpec, *, quantize: str | None = None) -> int:
    """What is there beside the weights while they are loaded.

    That is the largest of a file's tensors; int8 weights are there twice for a moment, when they
    are put together.
    """
    largest = 4 * max(one.outputs * one.inputs for one in matrices(spec))
    return largest if quantize is None else max(largest, weight_bytes(spec, quantize=quantize))
