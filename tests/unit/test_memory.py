"""Memories and their keys."""

from dataclasses import replace

import pytest
import torch

from xattn.errors import UsageError
from xattn.memory import Memory, MemoryKey, Span, digest_of

KEY = MemoryKey(source="s", modality="text", preprocessing="p", encoder="e", dtype="float32")


def test_every_field_of_a_key_changes_its_digest():
    changed = [
        replace(KEY, source="t"),
        replace(KEY, modality="audio"),
        replace(KEY, preprocessing="q"),
        replace(KEY, encoder="f"),
        replace(KEY, dtype="float16"),
        replace(KEY, schema_version=KEY.schema_version + 1),
        replace(KEY, tenant="x"),
        replace(KEY, hash="sha256"),
    ]
    assert len({KEY.digest, *(key.digest for key in changed)}) == 9
    assert KEY.digest == replace(KEY).digest


def test_parts_do_not_run_together():
    assert digest_of(b"ab", b"c") != digest_of(b"a", b"bc") != digest_of(b"abc")
    assert digest_of(b"") != digest_of()


def test_size_counts_states_and_mask():
    spans = [Span(i, i + 1, "characters") for i in range(3)]
    memory = Memory(states_SD=torch.zeros(3, 4), key=KEY, spans=spans)
    masked = replace(memory, mask_S=torch.ones(3, dtype=torch.bool))
    assert memory.size_bytes == 48
    assert masked.size_bytes == 51


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"states_SD": torch.zeros(3)}, "states_SD"),
        ({"spans": []}, "spans"),
        ({"mask_S": torch.ones(2, dtype=torch.bool)}, "mask_S"),
        ({"mask_S": torch.ones(3)}, "mask_S"),
    ],
)
def test_what_does_not_fit_is_named(change, named):
    spans = [Span(i, i + 1, "characters") for i in range(3)]
    values = {"states_SD": torch.zeros(3, 4), "key": KEY, "spans": spans, **change}
    with pytest.raises(UsageError, match=f"`{named}` must be"):
        Memory(**values)
