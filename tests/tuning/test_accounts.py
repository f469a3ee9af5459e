"""What a graft takes: foretold by arithmetic, and found."""

import pytest
import tiny
import torch

import xattn
from xattn.tuning.saving import save

KINDS = {
    "gated": {},
    "shared": {"shared": True, "kv_heads": 1},
    "merged": {"kind": "merged"},
    "resampled": {"projector": "resampler:4"},
    "bare": {"projector": "none"},
    "own layers": {"own_layers": True},
}
SOURCE = list(range(5, 17))


def grafted(lms, readers, kind, encoder):
    reads = "itself" if encoder == "itself" else readers(encoder)
    return xattn.graft(lms("llama"), encoder=reads, placement="every:2", **KINDS[kind])


@pytest.mark.parametrize("form", ["materialized", "absorbed", "materialized-int8"])
@pytest.mark.parametrize("encoder", ["t5", "itself"])
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_foretold(kind, encoder, form, lms, readers):
    model = grafted(lms, readers, kind, encoder)
    ledger = xattn.plan(model.spec, {"document": len(SOURCE)}, form=form, new_tokens=8)
    memory = model.encode(SOURCE)
    state = model.network.start([[memory]], form=form)
    assert ledger.of("states") == memory.size_bytes
    held = sum(ledger.of(what) for what in ("keys and values", "int8 states", "projected states"))
    assert (held or ledger.of("states")) == state.cross_bytes
    own = {id(p): p.nbytes for p in model.network.parameters()}
    assert ledger.of("weights") == sum(own.values())


def test_encoding_is_counted(lms, readers):
    from torch.utils.flop_counter import FlopCounterMode

    model = grafted(lms, readers, "gated", "itself")
    ledger = xattn.plan(model.spec, {"document": len(SOURCE)}, new_tokens=8)
    with FlopCounterMode(display=False) as counter:
        model.network.use_kernels = False
        memory = model.encode(SOURCE)
    [row] = [row for row in ledger.rows if row.what == "states"]
    # The attention of its layers goes through an operator that the counter does not know.
    own = model.spec.decoder.self_attention
    attention = 4 * own.heads * own.head_width * len(SOURCE) ** 2 * model.spec.decoder.layers
    assert row.encode_flops == pytest.approx(counter.get_total_flops() + attention, rel=0.01)
    with FlopCounterMode(display=False) as counter:
        model.network.project(memory)
    [row] = [row for row in ledger.rows if row.what == "keys and values"]
    assert row.encode_flops == counter.get_total_flops()


def test_a_saved_graft_is_planned_for_without_its_weights(lms, readers, tmp_path):
    from xattn.ledger.specs import spec_of

    model = grafted(lms, readers, "resampled", "whisper")
    save(model, tmp_path / "graft")
    assert spec_of(tmp_path / "graft") == model.spec
    ledger = xattn.plan(model.spec, {"audio": "0.5s"}, new_tokens=8)
    memory = model.encode(torch.zeros(4000).numpy())
    assert ledger.of("states") == memory.size_bytes
    with pytest.raises(xattn.UsageError, match="takes audio, but is to read 'document'"):
        xattn.plan(model.spec, {"document": 5}, new_tokens=8)


@pytest.mark.parametrize("form", ["materialized", "absorbed"])
@pytest.mark.parametrize("kind", ["gated", "resampled", "bare"])
def test_an_engine_foretells_what_it_holds(kind, form, lms, readers):
    model = grafted(lms, readers, kind, "t5")
    with xattn.Engine(model, form=form) as engine:
        answer = engine.submit(SOURCE, [7, 21, 3], max_new_tokens=6).result()
        assert len(answer.tokens) <= 6
        held = engine.ledger()
        assert held.total_bytes > 0
    alone = model.generate(SOURCE, [7, 21, 3], form=form, max_new_tokens=6)
    assert answer.tokens == alone.tokens


def test_an_encoder_that_is_not_ours_is_counted_by_positions(lms):
    from test_graft import bert, word_tokenizer

    model = xattn.graft(
        lms("llama"), encoder=xattn.TextEncoder(bert(), word_tokenizer()), placement="every:2"
    )
    ledger = xattn.plan(model.spec, {"document": 5}, new_tokens=4)
    assert ledger.of("states") == model.encode("one two three").size_bytes
    assert tiny.VOCAB == model.spec.decoder.vocab_size
