"""Seconds and dollars, worked by hand."""

from datetime import date

import pytest

from xattn.errors import UsageError
from xattn.ledger import plan
from xattn.ledger.hardware import Machine, estimate, machine_of, machines
from xattn.ledger.specs import spec_of

SLOW = Machine(
    key="slow",
    name="Slow",
    source="",
    memory_bytes=2**34,
    bytes_per_second=1e9,
    flops_per_second={"float32": 1e12, "bfloat16": 1e12},
    dollars_per_hour=3600.0,
)
"""A dollar a second."""
T5 = spec_of("t5-small")
D, FFN, LAYERS, VOCABULARY = 512, 2048, 6, 32128
ATTENTION, FEED_FORWARD = 4 * D * D, 2 * D * FFN
READ_ONCE = LAYERS * (ATTENTION + FEED_FORWARD) + LAYERS * (2 * ATTENTION + FEED_FORWARD)


def test_a_long_source_is_bound_by_multiplying():
    """T5-small over 10,000 tokens: everything by hand, two operations a multiply-add."""
    S, new = 10_000, 11
    found = estimate(plan(T5, {"document": S}, new_tokens=new), SLOW)
    encoder = LAYERS * (2 * S * (ATTENTION + FEED_FORWARD) + 4 * S * S * D)
    projected = LAYERS * 2 * S * 2 * D * D
    layer = 2 * (ATTENTION + 2 * D * D + FEED_FORWARD) + 4 * D * S
    prompt = LAYERS * (layer + 4 * D) + 2 * D * VOCABULARY
    assert found.encode_seconds == pytest.approx((encoder + projected + prompt) / 1e12)
    # Weights but the projections of the memory, its keys and values, six tokens of the cache.
    read = LAYERS * (ATTENTION + 2 * D * D + FEED_FORWARD) + D * VOCABULARY
    step = 4 * (read + LAYERS * 2 * D * S + LAYERS * 2 * D * 6) / 1e9
    assert found.step_seconds == pytest.approx(step)
    assert found.bound == "reading"
    seconds = found.encode_seconds + (new - 1) * step
    assert found.tokens_per_second == pytest.approx(new / seconds)
    assert found.dollars_per_million_tokens == pytest.approx(seconds / new * 1e6)


def test_a_short_source_is_bound_by_reading_the_weights():
    found = estimate(plan(T5, {"document": 1}, new_tokens=1), SLOW)
    assert found.encode_seconds == pytest.approx(4 * (READ_ONCE + D * VOCABULARY) / 1e9)
    assert found.dollars_per_million_tokens == pytest.approx(1e6 * found.encode_seconds)


def test_tables_that_are_only_looked_up_are_not_read():
    """Flan-T5's head is no table of embeddings: 32128 x 512 are read of the two."""
    spec = spec_of("flan-t5-small")
    ledger = plan(spec, {"document": 1}, dtype="bfloat16", new_tokens=1)
    others = 47 * 512 + 2 * 32 * 6
    """Norms of 8 + 8 layers, 2 and 3 in each, and 2 at the ends, and 5 more; biases of places."""
    unread = ledger.of("weights") - ledger.sum("encode_bytes")
    assert unread == pytest.approx(2 * (32128 * 512 + others), rel=1e-3)


def test_requests_together_share_the_encoding_of_what_they_share():
    given = {"document": 4000}
    own = estimate(plan(T5, given, batch=8, new_tokens=16), SLOW)
    shared = estimate(plan(T5, given, batch=8, new_tokens=16, shared=True), SLOW)
    assert own.encode_seconds > 7 * shared.encode_seconds
    assert own.dollars_per_million_tokens > shared.dollars_per_million_tokens


def test_a_price_says_whose_it_is(tmp_path):
    prices = tmp_path / "prices.toml"
    prices.write_text("[prices]\ndate = 2026-11-01\n[l4]\ndollars_per_hour = 2.0\n")
    assert machine_of("l4", prices).price == "yours, 2026-11-01"
    assert date.fromisoformat(machine_of("h100", prices).price) == date.fromisoformat(
        machine_of("h100").price
    )
    prices.write_text("[l4]\nbytes_per_second = 2.0\n")
    assert "yours" not in machine_of("l4", prices).price
    assert machines(prices)["l4"].bytes_per_second == 2.0


def test_several_machines_share_the_work():
    two = machine_of("h100x2")
    assert two.reading_rate == 2 * 3.35e12
    assert two.total_dollars_per_hour == 2 * machine_of("h100").dollars_per_hour


@pytest.mark.parametrize("key", ["rtx4090", "mi300x", "H200", "xx"])
def test_a_machine_may_have_any_name(tmp_path, key):
    table = tmp_path / "mine.toml"
    lines = [
        f"[{key}]",
        'name = "mine"',
        'source = "me"',
        "memory_bytes = 1",
        "bytes_per_second = 1.0",
    ]
    lines += ["dollars_per_hour = 1.0", "[" + key + ".flops_per_second]", "float32 = 1.0"]
    table.write_text("\n".join(lines))
    for name in (key, key.lower(), key.upper()):
        assert machine_of(name, table).count == 1
    assert machine_of(f"{key}x8", table).count == 8
    with pytest.raises(UsageError, match=f"must be {key}, or {key}xN"):
        machine_of(f"{key}x0", table)
