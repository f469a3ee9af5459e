"""Where few tokens are allowed, logits are computed of no others: the answers stay the same."""

import pytest
import tiny
import torch
from generations import EOS, groups_of, requests_of
from pairs import random_tokens

from xattn.decoding import Settings, decode
from xattn.models.compiled import CompiledDecoder


@pytest.mark.parametrize("name", tiny.TINY)
@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_logits_of_some_tokens_are_those_among_all(pairs, monkeypatch, name, kernels, quantize):
    pair = pairs(name, quantize)
    monkeypatch.setattr(pair.ours, "use_kernels", kernels)
    attended = (
        [()] * 3 if pair.decoder_only else [(m,) for m in pair.memories(pair.inputs(3, 9)[0])]
    )
    only = [2, 7, tiny.VOCAB - 1]
    found = []
    for wanted in (None, only):
        state = pair.ours.start(attended)
        steps = [random_tokens(3, 4), random_tokens(3, 1, seed=2)]
        found.append([pair.ours.step(tokens, state, only=wanted) for tokens in steps])
        counts = torch.tensor([1, 3, 2])
        found[-1].append(pair.ours.step(random_tokens(3, 3, seed=3), state, counts, only=wanted))
    for whole_RV, few_RV in zip(*found, strict=True):
        torch.testing.assert_close(few_RV[:, only], whole_RV[:, only], atol=1e-5, rtol=1e-5)
        rest = [token for token in range(tiny.VOCAB) if token not in only]
        assert (few_RV[:, rest] == -torch.inf).all()


@pytest.mark.parametrize("name", ["t5", "whisper"])
def test_the_vocabulary_is_not_read_where_few_are_allowed(pairs, monkeypatch, name):
    pair = pairs(name)
    groups = list(groups_of(pair, 2))
    heads = []
    whole = CompiledDecoder.step

    def step(self, tokens_RT, state):
        heads.append(tokens_RT.shape)
        return whole(self, tokens_RT, state)

    monkeypatch.setattr(CompiledDecoder, "step", step)
    allowed = Settings(max_new_tokens=6, eos_token_id=EOS, prefix_allowed_tokens_fn=lambda *_: [3])
    answers = decode(pair.ours, requests_of(pair, groups), allowed)
    assert all(set(h.tokens) == {3} for (h,) in answers)
    assert not heads
