"""Sources that go through an encoder together: which, in what order, and what comes of each."""

from itertools import pairwise

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from xattn.models import encoder
from xattn.models.build import build
from xattn.models.encoder import TOGETHER, packs
from xattn.models.formats import huggingface


@given(st.lists(st.integers(1, 2 * TOGETHER), max_size=60))
def test_every_source_is_in_one_pack(lengths):
    found = packs(lengths)
    assert sorted(n for pack in found for n in pack) == list(range(len(lengths)))
    for pack in found:
        sizes = [lengths[n] for n in pack]
        assert sizes == sorted(sizes), "those of one length are neighbours"
        assert len(pack) == 1 or sum(sizes) <= TOGETHER
    for one, following in pairwise(found):
        assert sum(lengths[n] for n in one) + lengths[following[0]] > TOGETHER, "packs are full"


@pytest.mark.parametrize("name", [n for n in tiny.SEQ2SEQ if n != "whisper"])
def test_a_source_has_the_states_that_it_has_alone(name, tmp_path, monkeypatch):
    model = tiny.make(name, tmp_path).eval()
    network = build(huggingface.read(tmp_path, name))
    numbers = torch.Generator().manual_seed(0)
    sources = [
        torch.randint(3, tiny.VOCAB, (length,), generator=numbers).tolist()
        for length in (5, 17, 1, 5, 30, 9, 5, 30)
    ]
    together = network.encode_tokens(sources)
    monkeypatch.setattr(encoder, "TOGETHER", 20)
    in_packs = network.encode_tokens(sources)
    assert network.counters.encoder_passes == 2 * len(sources)
    for source, states, other in zip(sources, together, in_packs, strict=True):
        with torch.no_grad():
            want = model.get_encoder()(input_ids=torch.tensor([source])).last_hidden_state[0]
        torch.testing.assert_close(states, want, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(other, want, atol=2e-5, rtol=1e-4)
        assert states.untyped_storage().nbytes() == states.nbytes, "it keeps no others alive"
