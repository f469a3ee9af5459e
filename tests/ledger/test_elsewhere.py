"""What is said of transformers, against what its own ``generate`` holds and multiplies."""

import pytest
import tiny
import torch
import transformers
from meta import counted, theirs

from xattn.ledger import plan
from xattn.ledger.alternatives import ENCODED_ANEW, PROJECTED_ANEW, alternatives
from xattn.ledger.specs import spec_of

VISION = "llama-3.2-11b-vision"
BATCH, LENGTH, PROMPT, NEW = 2, 24, 3, 5


def in_transformers(spec, inputs, **settings):
    return alternatives(spec, inputs, **settings)[-1]


def generated(pair, beams, new_tokens):
    """Its answers to two requests, with the cache."""
    _, given = pair.inputs(BATCH, LENGTH)
    if pair.decoder_only:
        prompts = torch.randint(3, tiny.VOCAB, (BATCH, PROMPT))
        given = {"input_ids": torch.cat([given["input_ids"], prompts], dim=1)}
    else:
        given["decoder_input_ids"] = torch.tensor(
            [[pair.theirs.config.decoder_start_token_id, 5, 9]] * BATCH
        )
    return pair.theirs.generate(
        **given,
        num_beams=beams,
        do_sample=False,
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        return_dict_in_generate=True,
        output_hidden_states=True,
        pad_token_id=0,
    )


def setting_of(pair, beams, new_tokens):
    kind = "audio" if pair.name == "whisper" else "document"
    positions = 30 if kind == "audio" else LENGTH
    prompt = {"prompt_tokens": PROMPT, "new_tokens": new_tokens, "batch": BATCH, "beams": beams}
    return {kind: positions}, prompt


def bytes_of(cache):
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("name", ["mt5", "bart", "llama"])
def test_every_beam_holds_what_transformers_holds_for_it(pairs, name, beams):
    pair = pairs(name)
    inputs, settings = setting_of(pair, beams, NEW)
    cache = generated(pair, beams, NEW).past_key_values
    said = in_transformers(pair.ours.spec, inputs, **settings)
    weights = sum(p.nbytes for p in pair.theirs.parameters())
    if pair.decoder_only:
        held = bytes_of(cache)
        document = held * LENGTH // (LENGTH + PROMPT + NEW - 1)
        assert said.input_bytes == document
        assert said.total_bytes == pytest.approx(weights + held, rel=0.15)
        return
    states = BATCH * beams * len_of(cache) * pair.theirs.config.d_model * 4
    assert said.input_bytes == bytes_of(cache.cross_attention_cache) + states
    own = bytes_of(cache.self_attention_cache)
    layers = len(cache.self_attention_cache.layers)
    beside = (
        said.total_bytes - said.input_bytes - plan(pair.ours.spec, inputs, **settings).of("weights")
    )
    assert beside == own + own // (2 * layers)


def len_of(cache):
    return cache.cross_attention_cache.layers[0].keys.shape[2]


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("name", ["mt5", "bart", "whisper", "llama"])
def test_before_the_first_token_it_multiplies_as_much(pairs, name, beams):
    pair = pairs(name)
    inputs, settings = setting_of(pair, beams, 1)
    done, _ = counted(lambda: generated(pair, beams, 1))
    said = in_transformers(pair.ours.spec, inputs, **settings)
    assert said.encode_flops == pytest.approx(done, rel=0.01)


def test_pictures_are_filled_up_with_tiles():
    """A picture of one tile has four in Mllama's own tensors, and keys and values of four."""
    from PIL import Image

    processor = transformers.MllamaImageProcessorPil(size={"height": 560, "width": 560})
    picture = Image.new("RGB", (560, 560))
    pixels = processor(images=[[picture]], return_tensors="pt")["pixel_values"]
    with torch.device("meta"):
        states = theirs(VISION).model.vision_model(
            pixel_values=torch.empty(pixels.shape),
            aspect_ratio_ids=torch.ones(1, 1, dtype=torch.long),
            aspect_ratio_mask=torch.ones(1, 1, 4, dtype=torch.long),
        )
    positions = states.last_hidden_state.shape[2] * states.last_hidden_state.shape[3]
    one = in_transformers(spec_of(VISION), {"image": "560x560"}, dtype="bfloat16", beams=3)
    assert one.input_bytes == 3 * positions * 8 * 2 * 8 * 128 * 2
    four = in_transformers(spec_of(VISION), {"image": "1120x1120"}, dtype="bfloat16", beams=3)
    assert four == one


@pytest.mark.parametrize(
    "settings",
    [{"form": "absorbed"}, {"form": "absorbed-int8"}, {"weights_dtype": "int8"}, {"shared": True}],
)
def test_the_row_rests_on_the_shape_alone(settings):
    given = {"document": "4x500"}
    plain = in_transformers(spec_of("t5-base"), given, batch=8, beams=2)
    assert in_transformers(spec_of("t5-base"), given, batch=8, beams=2, **settings) == plain


def test_what_is_made_anew_is_held_and_done_as_often_as_it_is_said():
    """T5-base, eight requests for 500 tokens, by hand: D 768, 12 layers of 12 heads of 64."""
    found = {one.name: one for one in alternatives(spec_of("t5-base"), {"document": 500}, batch=8)}
    states, kv = 500 * 768 * 4, 500 * 12 * 2 * 768 * 4
    assert found[PROJECTED_ANEW].input_bytes == states + 8 * kv
    assert found[ENCODED_ANEW].input_bytes == 8 * kv
    assert found["materialized"].input_bytes == 8 * (states + kv)
    assert found["materialized, shared"].input_bytes == states + kv
    own, once = found["materialized"], found["materialized, shared"]
    projecting = 500 * 12 * 2 * 2 * 768 * 768
    assert found[ENCODED_ANEW].encode_flops == own.encode_flops
    assert found[PROJECTED_ANEW].encode_flops == once.encode_flops + 7 * projecting
    for name in (PROJECTED_ANEW, ENCODED_ANEW):
        assert found[name].bytes_per_token == own.bytes_per_token > once.bytes_per_token
        held = own.total_bytes - own.input_bytes
        assert found[name].total_bytes == held + found[name].input_bytes


def test_one_request_alone_shares_with_nobody():
    names = [one.name for one in alternatives(spec_of("t5-base"), {"document": 500})]
    assert ENCODED_ANEW in names
    assert PROJECTED_ANEW not in names
