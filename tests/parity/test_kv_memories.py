"""Memories of decoder-only models: going on from keys and values is going on from the text."""

import pytest
import tiny
import torch
from pairs import random_tokens

import xattn
from xattn.store import MemoryStore

LONG = list(range(3, 40))
SEARCHES = [
    {},
    {"num_beams": 4, "num_return_sequences": 3},
    {"do_sample": True, "num_return_sequences": 3, "seed": 5},
]


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    made = {}

    def get(name):
        if name not in made:
            directory = tmp_path_factory.mktemp(name)
            made[name] = (tiny.make(name, directory), xattn.load(directory))
        return made[name]

    return get


@pytest.mark.parametrize("name", tiny.DECODER_ONLY)
def test_logits_equal_those_of_transformers_after_the_whole_text(load, name):
    theirs, model = load(name)
    tokens = random_tokens(2, 7)
    memories = [model.encode(LONG), model.encode(LONG[:5])]
    forced = model.network.score(tokens, model.network.start([[m] for m in memories]))
    state = model.network.start([[m] for m in memories])
    stepped = [model.network.step(tokens[:, i : i + 1], state) for i in range(tokens.shape[1])]
    for row, text in enumerate((LONG, LONG[:5])):
        whole = torch.tensor([[*text, *tokens[row].tolist()]])
        with torch.no_grad():
            want = theirs(input_ids=whole).logits[0, len(text) :]
        torch.testing.assert_close(forced[row], want, atol=1e-4, rtol=0)
        torch.testing.assert_close(torch.stack(stepped)[:, row], want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", tiny.DECODER_ONLY)
@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_answers_equal_those_to_the_whole_prompt(load, name, search):
    _, model = load(name)
    settings = {"max_new_tokens": 12, **search}
    memories = [model.encode(LONG), model.encode(LONG[10:14]), model.encode(LONG)]
    prompts = [[7, 8], [9], [11, 12, 13, 14]]
    before = model.counters.encoder_passes
    found = model.generate_batch(memories, prompts, **settings)
    for memory, text, prompt, answer in zip(
        memories, (LONG, LONG[10:14], LONG), prompts, found, strict=True
    ):
        want = model.generate(prompt=[*text, *prompt], **settings)
        for one in (answer, model.generate(memory, prompt, **settings)):
            pairs = zip((one, *one.alternatives), (want, *want.alternatives), strict=True)
            assert all(a.tokens == b.tokens for a, b in pairs)
    assert model.counters.encoder_passes == before


def test_a_memory_is_read_where_it_lies(load):
    _, model = load("llama")
    memory = model.encode(LONG)
    projection = model.network.project(memory)
    start = memory.states_SD.untyped_storage().data_ptr()
    for segment in projection.segments:
        assert segment.k_NGSK.untyped_storage().data_ptr() == start
        assert segment.v_NGSK.untyped_storage().data_ptr() == start
    assert memory.width == model.spec.decoder.kv_width
    assert memory.size_bytes == model.spec.decoder.self_cache_bytes(len(LONG))


def test_there_is_room_for_what_the_decoder_has_positions_for(load):
    _, model = load("llama")
    limit = model.spec.decoder.position.limit
    memory = model.encode([5] * (limit - 4))
    assert len(model.generate(memory, [7], max_new_tokens=3, eos_token_id=()).tokens) == 3
    with pytest.raises(xattn.PromptError, match="at most 3 new tokens fit"):
        model.generate(memory, [7], max_new_tokens=4)
    with pytest.raises(xattn.PromptError, match=r"leaves|positions"):
        model.generate(model.encode([5] * limit), [7], max_new_tokens=1)
    with pytest.raises(xattn.InvalidSourceError, match=f"{limit} positions"):
        model.encode([5] * (limit + 1))


@pytest.mark.parametrize("codec", ["float32", "bfloat16", "int8"])
def test_a_language_model_goes_on_from_what_it_read_before(tmp_path, codec):
    """SmolLM2 reads a text once; every question after that is answered from its memory."""
    text = (
        "The lighthouse at Cape Gris was built in 1844 by the engineer Anna Verhoeven. "
        "It is 41 metres high, and its lamp is seen from 32 kilometres away.\n"
    )
    question = "Question: Who built the lighthouse?\nAnswer:"
    settings = {"max_new_tokens": 30, "stop_strings": "\n"}
    model = xattn.load("smollm2-135m-instruct")
    tokenizer = model.tokenizer
    whole = [*tokenizer.encode(text).ids, *tokenizer.encode_plain(question).ids]
    cold = model.generate(prompt=whole, **settings)
    with MemoryStore(tmp_path, codec=codec) as store:
        store.get_or_encode(model, text)
    assert model.counters.encoder_passes == 1
    warm = MemoryStore(tmp_path, codec=codec).get_or_encode(model, text)
    assert model.counters.encoder_passes == 1
    answer = model.generate(warm, question, **settings)
    assert "Verhoeven" in answer.text
    if codec == "float32":
        assert answer.tokens == cold.tokens
