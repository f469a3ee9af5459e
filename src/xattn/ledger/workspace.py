"""Room for what is between a pass's input and its output: an upper bound, from shapes.

Axes: P positions that go through an encoder together, D model width.
"""

from collections.abc import Sequence

from xattn.counts import matrices, weight_bytes
from xattn.ledger.account import Setting
from xattn.ledger.amounts import Amount
from xattn.spec import EncoderSpec, ModelSpec

TOGETHER = 4096
"""Positions that go through an encoder in one pass, unless one source alone has more."""
BLOCK = 1024
"""Positions that go through a feed-forward together."""


def workspace_bytes(spec: ModelSpec, amounts: Sequence[Amount], setting: Setting) -> int:
    """The larger of what encoding and decoding take for a while."""
    decoder, reading = spec.decoder, sum(amount.total for amount in amounts)
    fed = max(setting.rows, setting.batch * setting.prompt_tokens)
    logits, seen = setting.rows, setting.prompt_tokens + setting.new_tokens
    decoding = decoder.step_bytes(
        fed,
        logits,
        seen,
        reading,
        memories=sum(amount.memories for amount in amounts),
        form=setting.form,
    )
    if spec.encoder is None or not amounts:
        return decoding
    longest = max(amount.encoded for amount in amounts)
    several = sum(amount.memories * amount.encoded for amount in amounts) * setting.copies
    return max(decoding, encoding_bytes(spec.encoder, max(longest, min(several, TOGETHER))))


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

    That is the largest of a file's tensors; int8 weights are there twice for a moment, after tables
    of the vocabulary and the largest matrix were float32.
    """
    numbers = [one.outputs * one.inputs for one in matrices(spec)]
    if quantize is None:
        return 4 * max(numbers)
    tables = {one.outputs * one.inputs for one in matrices(spec) if one.role in ("table", "head")}
    largest = max(n for n in numbers if n not in tables)
    return weight_bytes(spec, quantize=quantize) + 4 * (sum(tables) + largest)
