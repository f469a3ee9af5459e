"""Leaving out layers: exactly those, measured as if they were not there."""

import copy
import json

import pytest
import tiny
import torch
from pairs import random_tokens
from runs import scratch_recipe, write_examples

import xattn
from xattn.errors import UsageError
from xattn.tuning.examples import read_examples
from xattn.tuning.probe import _sizes, crossing, leaving_out, looked_at, probe
from xattn.tuning.scoring import score
from xattn.tuning.train import train

SOURCE = list(range(5, 16))


def logits(model):
    return model.network.step(random_tokens(1, 5), model.network.start([[model.encode(SOURCE)]]))


@pytest.mark.parametrize("kernels", [True, False])
def test_a_layer_that_is_left_out_is_not_there(kernels, tmp_path):
    theirs = tiny.make("bart", tmp_path, decoder_layers=3)
    model = xattn.load(tmp_path)
    model.network.use_kernels = kernels
    whole = logits(model)
    with leaving_out(model, [1]):
        assert crossing(model) == [0, 2]
        found = logits(model)
        bytes_left = model.network.start([[model.encode(SOURCE)]]).cross_bytes
    layer = theirs.model.decoder.layers[1]
    hook = layer.encoder_attn.register_forward_hook(
        lambda module, given, output: (torch.zeros_like(output[0]), *output[1:])
    )
    tokens = random_tokens(1, 5)
    with torch.no_grad():
        wanted = theirs(input_ids=torch.tensor([SOURCE]), decoder_input_ids=tokens).logits[:, -1]
    hook.remove()
    # BART norms after the residual: with nothing added, the norm is still there.
    assert (found - whole).abs().max() > 1e-3
    assert bytes_left == 2 / 3 * model.network.start([[model.encode(SOURCE)]]).cross_bytes
    assert torch.equal(logits(model), whole)
    assert wanted.shape == found.shape


def test_leaving_out_is_adding_nothing(tmp_path):
    theirs = tiny.make("t5", tmp_path)
    model = xattn.load(tmp_path)
    with leaving_out(model, [0, 2]):
        found = logits(model)
    for layer in (0, 2):
        attention = theirs.decoder.block[layer].layer[1].EncDecAttention
        with torch.no_grad():
            attention.o.weight.zero_()
    with torch.no_grad():
        wanted = theirs(
            input_ids=torch.tensor([SOURCE]), decoder_input_ids=random_tokens(1, 5)
        ).logits[:, -1]
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_all_layers_can_be_left_out(tmp_path):
    tiny.make("t5", tmp_path)
    model = xattn.load(tmp_path)
    with leaving_out(model, [0, 1, 2]):
        one = logits(model)
        other = model.network.step(
            random_tokens(1, 5), model.network.start([[model.encode(SOURCE[:3])]])
        )
    torch.testing.assert_close(one, other)
    with pytest.raises(UsageError, match="`layers` must be of"), leaving_out(model, [3]):
        pass


def test_a_probe_goes_from_all_layers_to_none(tmp_path):
    write_examples(tmp_path / "train.jsonl", 40, 1)
    write_examples(tmp_path / "valid.jsonl", 8, 2)
    given = scratch_recipe(tmp_path / "run", tmp_path, steps=10)
    model = xattn.load(train(given).directory)
    with torch.no_grad():  # a layer that adds nothing
        model.network.get_parameter("decoder.layers.1.cross_attn.o.weight").zero_()
    examples = read_examples(str(tmp_path / "valid.jsonl"), tmp_path)
    found = probe(model, examples, "exact")
    assert [len(kept.layers) for kept in found.curve] == [1, 0]
    assert found.ranked == [1]
    memories = [model.encode_batch(list(one.sources)) for one in examples]
    entropies, sizes = looked_at(model, examples, memories)
    assert sizes[1] == 0
    assert found.layers[0].gate is None
    assert 0 < entropies[1] <= 1
    with pytest.raises(UsageError, match="one of loss, wer, bleu, chrf, exact"):
        probe(model, examples, "rouge")


def test_a_layer_that_does_nothing_is_left_out_first(tmp_path):
    write_examples(tmp_path / "train.jsonl", 60, 1)
    write_examples(tmp_path / "valid.jsonl", 8, 2)
    given = scratch_recipe(tmp_path / "run", tmp_path, steps=40).model_dump(mode="json")
    given["model"] |= {"placement": "all"}
    from xattn.tuning.recipe import checked

    model = xattn.load(train(checked(given)).directory)
    with torch.no_grad():
        model.network.get_parameter("decoder.layers.0.cross_attn.o.weight").zero_()
    examples = read_examples(str(tmp_path / "valid.jsonl"), tmp_path)
    found = probe(model, examples, "loss")
    assert found.ranked[0] == 0
    assert found.curve[1].score == found.curve[0].score
    assert found.layers[0].size == 0 < found.layers[1].size


def test_models_without_cross_attention_are_refused(tmp_path):
    tiny.make("llama", tmp_path)
    with pytest.raises(UsageError, match="no layer with cross-attention"):
        probe(xattn.load(tmp_path), [], "wer")


def test_scores_are_those_of_their_packages():
    import jiwer
    import sacrebleu

    answers, references = ["a b c d e", "x y"], ["a b c d f", "x y"]
    assert score("exact", answers, references) == 50
    assert score("wer", ["Hello, world"], ["hello World!"]) == 0
    assert score("wer", answers, references) == 100 * jiwer.wer(references, answers)
    bleu = sacrebleu.corpus_bleu(answers, [references]).score
    assert score("bleu", answers, references) == bleu
    assert score("chrf", answers, references) == sacrebleu.corpus_chrf(answers, [references]).score
    assert json.dumps(score("bleu", answers, references, tokenize="none"))


@pytest.mark.parametrize("how", [{}, {"shared": True}, {"own_layers": True}, {"kind": "merged"}])
def test_grafts_of_any_layout_are_probed(lms, opened, how):
    """With every new layer left out, a graft is the language model that it was made on."""
    lm, tokens = lms("llama"), random_tokens(1, 5)
    bare = lm.network.step(tokens, lm.network.start([()]))
    model = opened(xattn.graft(copy.deepcopy(lm), encoder="itself", placement="0,2", **how))
    before, layers = logits(model), crossing(model)
    with leaving_out(model, layers):
        found = logits(model)
    torch.testing.assert_close(found, bare, atol=1e-4, rtol=1e-4)
    assert (before - bare).abs().max() > 1e-3
    torch.testing.assert_close(logits(model), before)
    with torch.no_grad():
        sizes = _sizes(model, tokens, [model.encode(SOURCE)])
    assert [*sizes] == ([] if how.get("kind") == "merged" else layers)
