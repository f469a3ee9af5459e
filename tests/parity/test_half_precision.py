"""Numbers that leave float16: finite where transformers is finite."""

import pytest
import tiny
import torch

import xattn
from xattn.attention import Materialized, attend
from xattn.attention.reference import attend_reference


@pytest.mark.parametrize("name", ["t5", "t5-v1.1-untied-wide-heads"])
@pytest.mark.parametrize("form", ["materialized", "absorbed"])
def test_t5_overflows_no_more_than_transformers(name, form, tmp_path):
    model = tiny.make(name, tmp_path)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("wo.weight"):
                parameter.mul_(1e4)
    model.save_pretrained(tmp_path)
    source, tokens = [[5, 6, 7, 8, 1]], torch.tensor([[0, 7, 9]])
    theirs = type(model).from_pretrained(tmp_path, dtype=torch.float16).eval()
    with torch.no_grad():
        want = theirs(input_ids=torch.tensor(source), decoder_input_ids=tokens).logits.float()
    assert want.isfinite().all()
    ours = xattn.load(tmp_path, dtype="float16")
    state = ours.network.start([[ours.encode(source[0])]], form=form)
    got = ours.network.score(tokens, state)
    assert got.isfinite().all()
    if name == "t5":
        torch.testing.assert_close(got, want, atol=5e-2, rtol=5e-2)


def test_scores_beyond_float16_are_finite_on_every_path():
    """With gradients the products are written out, as on an accelerator."""
    k = torch.full((1, 1, 3, 64), 40.0, dtype=torch.float16)
    segment = Materialized(k_NGSK=k, v_NGSK=k)
    q = torch.full((1, 2, 1, 64), 40.0, dtype=torch.float16)
    want, want_lse = attend_reference(q, [segment], scale=1.0)
    for queries in (q, q.clone().requires_grad_()):
        out, lse = attend(queries, segment, scale=1.0)
        torch.testing.assert_close(out.float(), want, atol=0.1, rtol=1e-3)
        torch.testing.assert_close(lse, want_lse, atol=1.0, rtol=1e-3)


@pytest.mark.parametrize("shape", [(1, 1, 2100, 9), (1, 4, 1, 9), (2, 1, 1, 9)], ids=str)
def test_blocks_of_queries_are_one_attention(shape):
    generator = torch.Generator().manual_seed(0)
    k = torch.randn(2, 2, 9, 8, generator=generator)
    segment, q = (
        Materialized(k_NGSK=k, v_NGSK=k * 2),
        torch.randn(2, 2100, 4, 8, generator=generator),
    )
    bias = torch.randn(shape, generator=generator)
    out, lse = attend(q.requires_grad_(), segment, scale=0.3, bias_NHWS=bias)
    want, want_lse = attend_reference(q, [segment], scale=0.3, bias_NHWS=bias)
    torch.testing.assert_close(out, want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse, want_lse, atol=1e-5, rtol=1e-5)
