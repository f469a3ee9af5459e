"""Gradients through a whole decoder, against transformers."""

import json

import pytest
import tiny
import torch
from pairs import memory_of, random_tokens

from xattn.models.build import build
from xattn.models.families import family_of
from xattn.models.formats import huggingface


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *((name, form) for name in ("bart", "t5") for form in ("materialized", "absorbed")),
        ("llama", "materialized"),
        ("qwen3", "materialized"),
    ],
)
def test_gradients_of_a_loss(name, form, tmp_path):
    theirs = tiny.make(name, tmp_path)
    ours = build(huggingface.read(tmp_path, name)).requires_grad_()
    tokens = random_tokens(2, 7)
    if tiny.TINY[name].decoder_only:
        want, attended = theirs(input_ids=tokens).logits, [[], []]
    else:
        values, named = tiny.hf_memory_inputs(name, 2, 9)
        want = theirs(**named(values), decoder_input_ids=tokens).logits
        states = ours.encode_tokens(values.tolist())
        attended = [[memory_of(s, str(i))] for i, s in enumerate(states)]
    got = ours.score(tokens, ours.start(attended, form=form))
    (want[:, :-1].log_softmax(-1).gather(2, tokens[:, 1:, None])).sum().backward()
    (got[:, :-1].log_softmax(-1).gather(2, tokens[:, 1:, None])).sum().backward()
    table = family_of(theirs.config.to_dict()).table
    grads = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    compared = 0
    for key, parameter in ours.decoder.named_parameters():
        (their_name, *_) = table.names_of(f"decoder.{key}")
        # Embeddings that the encoder shares have a gradient from there too.
        if their_name in grads and "embed" not in key and "head" not in key:
            scale = grads[their_name].abs().max().clamp(min=1.0)
            # A key's bias cancels in the softmax: absorbed, it is not read at all.
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            difference = (own - grads[their_name]).abs().max()
            assert difference / scale < 1e-3, key
            compared += 1
    assert compared > 10


def test_scoring_in_two_pieces_has_the_gradients_of_one(tmp_path):
    tiny.make("llama", tmp_path)
    tokens = random_tokens(1, 8)

    def gradient(pieces):
        network = build(huggingface.read(tmp_path, "llama")).requires_grad_()
        state = network.start([[]])
        logits = torch.cat([network.score(piece, state) for piece in pieces], dim=1)
        logits[:, -1].square().sum().backward()
        return network.decoder.layers[1].ffn.up.weight.grad, logits.detach()

    (whole, logits), (cut, cut_logits) = (
        gradient([tokens]),
        gradient([tokens[:, :5], tokens[:, 5:]]),
    )
    torch.testing.assert_close(cut_logits, logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(cut, whole, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("trained", [("q",), ("v",), ("q", "v"), ("k",)], ids="+".join)
@pytest.mark.parametrize("name", ["llama", "bart"])
def test_some_weights_may_be_frozen(name, trained, tmp_path):
    """Adapters train the projections of queries and values, and leave the keys alone."""
    theirs = tiny.make(name, tmp_path)
    ours = build(huggingface.read(tmp_path, name))
    tokens = random_tokens(1, 8)
    parts = [f"self_attn.{part}." for part in trained]
    for key, parameter in ours.decoder.named_parameters():
        parameter.requires_grad_(any(part in key for part in parts))
    if name == "bart":
        source = torch.tensor([[5, 6, 7]])
        memory = memory_of(ours.encode_tokens(source.tolist())[0], "x")
        state, arguments = ours.start([[memory]]), dict(input_ids=source, decoder_input_ids=tokens)
    else:
        state, arguments = ours.start([[]]), dict(input_ids=tokens)
    ours.score(tokens, state).square().sum().backward()
    theirs(**arguments).logits.square().sum().backward()
    grads = dict(theirs.named_parameters())
    table = family_of(json.loads((tmp_path / "config.json").read_text())).table
    compared = 0
    for key, parameter in ours.decoder.named_parameters():
        if parameter.requires_grad:
            want = grads[table.names_of(f"decoder.{key}")[0]].grad
            torch.testing.assert_close(parameter.grad, want, atol=2e-2, rtol=1e-3)
            compared += 1
    assert compared >= 2 * len(trained)


def test_scoring_goes_on_after_steps(tmp_path):
    tiny.make("llama", tmp_path)
    network = build(huggingface.read(tmp_path, "llama")).requires_grad_()
    tokens = random_tokens(2, 8)
    state = network.start([[]] * 2)
    network.step(tokens[:, :5], state)
    state.reorder([1, 0])
    got = network.score(tokens[[1, 0], 5:], state)
    want = network.score(tokens[[1, 0]], network.start([[]] * 2))[:, 5:]
    torch.testing.assert_close(got, want, atol=5e-5, rtol=1e-5)
    got.sum().backward()
