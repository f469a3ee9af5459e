"""Several memories of a decoder-only model, against transformers with masks written out by hand."""

import pytest
import tiny
import torch
from pairs import random_tokens
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import xattn
from xattn import Parallel
from xattn.store import MemoryStore

PREFIX, FIRST, SECOND = list(range(3, 9)), list(range(20, 31)), list(range(40, 48))
ASKED = random_tokens(1, 7)[0].tolist()
WAYS = [
    Parallel(),
    Parallel(positions="shared"),
    Parallel(temperature=0.8, scale=0.9),
    Parallel(positions="shared", temperature=1.3, scale=0.7),
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


@pytest.fixture(params=[True, False], ids=["kernels", "torch"])
def kernels(request):
    return request.param


def memories_of(model, prefix=PREFIX, texts=(FIRST, SECOND)):
    before = model.encode(prefix)
    return [before, *model.encode_batch(list(texts), behind=before)]


def theirs_on(theirs, texts, asked, how, prefix=PREFIX, weights=None):
    """Logits ``[T, V]`` after each asked token: the texts do not see each other.

    Where they stand in sequence, their keys are turned on for those who ask. ``weights`` is given
    those of each layer, ``[H, T, S]`` over prefix and texts.
    """
    P, sizes = len(prefix), [len(text) for text in texts]
    ids = [*prefix, *(token for text in texts for token in text), *asked]
    whole, end = len(ids), P + sum(sizes)
    seen = torch.ones(whole, whole).tril().bool()
    made, moved_by, start = list(range(P)), [0] * P, P
    for size in sizes:
        seen[start : start + size, P:start] = False
        made += range(P, P + size)
        moved_by += [start - P if how.positions == "sequence" else 0] * size
        start += size
    after = end if how.positions == "sequence" else P + max(sizes)
    positions = [*made, *range(after, after + len(asked))]
    moved_by += [0] * len(asked)
    turns = theirs.model.rotary_emb(torch.zeros(1), torch.tensor([moved_by]))
    context = torch.zeros(whole, whole, dtype=torch.bool)
    context[end:, P:end] = True

    def weighed(module, query, key, value, attention_mask, scaling, **_):
        repeats = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
        scores = (query @ key.transpose(-1, -2)) * scaling
        turned, _ = apply_rotary_pos_emb(key, key, *turns)
        scores[:, :, end:] = (query[:, :, end:] @ turned.transpose(-1, -2)) * scaling
        scores = scores.masked_fill(~seen, float("-inf"))
        scores = torch.where(context, scores / how.temperature, scores)
        of_context = scores.masked_fill(~context, float("-inf")).logsumexp(-1, keepdim=True)
        moved = torch.where(of_context.isfinite(), of_context * (how.scale - 1), 0.0)
        scores = torch.where(context, scores + moved, scores)
        if weights is not None:
            weights.append(scores.softmax(-1)[0, :, end:, :end])
        return (scores.softmax(-1) @ value).transpose(1, 2), None

    AttentionInterface.register("weighed", weighed)
    AttentionMaskInterface.register("weighed", sdpa_mask)
    before = theirs.config._attn_implementation
    theirs.set_attn_implementation("weighed")
    with torch.no_grad():
        found = theirs(input_ids=torch.tensor([ids]), position_ids=torch.tensor([positions]))
    theirs.set_attn_implementation(before)
    return found.logits[0, end:]


@pytest.mark.parametrize("name", tiny.DECODER_ONLY)
@pytest.mark.parametrize("how", WAYS, ids=str)
def test_logits_equal_those_of_transformers_with_the_same_mask(load, name, how, kernels):
    theirs, model = load(name)
    network, network.use_kernels = model.network, kernels
    memories = memories_of(model)
    want = theirs_on(theirs, (FIRST, SECOND), ASKED, how)
    asked = torch.tensor([ASKED])
    found = network.score(asked, network.start([memories], parallel=[how]))[0]
    torch.testing.assert_close(found, want, atol=1e-4, rtol=0)
    state = network.start([memories], parallel=[how])
    stepped = [network.step(asked[:, i : i + 1], state)[0] for i in range(len(ASKED))]
    torch.testing.assert_close(torch.stack(stepped), want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", tiny.DECODER_ONLY)
def test_rows_read_in_ways_of_their_own(load, name, kernels):
    """A row with two texts, one with one, one with none, and one whose texts changed places."""
    theirs, model = load(name)
    network, network.use_kernels = model.network, kernels
    before, first, second = memories_of(model)
    rows = [
        ([before, first, second], WAYS[2]),
        ([before, first], WAYS[3]),
        ([before], WAYS[0]),
        ([before, second, first], WAYS[1]),
        ([before, second, first], WAYS[0]),
    ]
    texts = [(FIRST, SECOND), (FIRST,), (), (SECOND, FIRST), (SECOND, FIRST)]
    state = network.start([row for row, _ in rows], parallel=[how for _, how in rows])
    found = network.step(torch.tensor([ASKED] * 5), state)
    state.reorder([4, 2, 0])
    again = network.step(torch.tensor([[9]] * 3), state)
    for j, (text, (_, how)) in enumerate(zip(texts, rows, strict=True)):
        if not text:
            continue
        want = theirs_on(theirs, text, [*ASKED, 9], how)
        torch.testing.assert_close(found[j], want[-2], atol=1e-4, rtol=0)
        if j in (4, 0):
            torch.testing.assert_close(again[[4, 2, 0].index(j)], want[-1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", tiny.DECODER_ONLY)
@pytest.mark.parametrize("positions", ["sequence", "shared"])
@pytest.mark.parametrize("search", [{}, {"num_beams": 3}], ids=str)
def test_one_memory_behind_its_prefix_is_the_plain_prompt(load, name, positions, search):
    _, model = load(name)
    settings = {"max_new_tokens": 12, "eos_token_id": (), **search}
    want = model.generate(prompt=[*PREFIX, *FIRST, *ASKED], **settings)
    memories = memories_of(model, texts=[FIRST])
    how = Parallel(positions=positions)
    assert model.generate(memories, ASKED, parallel=how, **settings).tokens == want.tokens
    alone = [model.encode([*PREFIX, *FIRST])]
    assert model.generate(alone, ASKED, parallel=how, **settings).tokens == want.tokens


@pytest.mark.parametrize("name", tiny.DECODER_ONLY)
def test_with_everything_made_again_it_is_the_plain_prompt(load, name, kernels):
    theirs, model = load(name)
    model.network.use_kernels = kernels
    memories = memories_of(model, texts=(FIRST, SECOND, FIRST[:4]))
    ids = [*PREFIX, *FIRST, *SECOND, *FIRST[:4], *ASKED]
    with torch.no_grad():
        want = theirs(input_ids=torch.tensor([ids])).logits[0, -1]
    before, far = model.counters.recomputed, None
    for share in (0.0, 0.5, 1.0):
        state = model.network.start([memories])
        model.network.blend(state, ASKED, share)
        found = model.network.step(torch.tensor([ASKED]), state)[0]
        distance = (found - want).abs().max()
        assert far is None or distance < far
        far = distance
    assert far < 1e-4
    behind = len(SECOND) + 4
    assert model.counters.recomputed == before + behind + behind // 2
    settings = {"max_new_tokens": 10, "eos_token_id": (), "num_beams": 2}
    plain = model.generate(prompt=ids, **settings)
    how = Parallel(recompute=1.0)
    assert model.generate(memories, ASKED, parallel=how, **settings).tokens == plain.tokens
    pair = model.generate_batch([memories, memories[:2]], [ASKED] * 2, parallel=how, **settings)
    alone = model.generate(prompt=[*PREFIX, *FIRST, *ASKED], **settings)
    assert [one.tokens for one in pair] == [plain.tokens, alone.tokens]


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_what_is_read_again_is_told_where_it_was_first(load, name):
    """All made again, it is read as in one piece, and so are the shares of its positions."""
    _, model = load(name)
    memories = [*memories_of(model), *memories_of(model)[1:2]]
    how = Parallel(recompute=1.0)
    said = model.generate(memories, ASKED, parallel=how, max_new_tokens=6, eos_token_id=())
    found = model.attribution(memories, said, parallel=how)
    whole = model.encode([token for memory in memories for token in memory.source_tokens])
    [want] = model.attribution([whole], said)
    torch.testing.assert_close(torch.cat(found, dim=1), want, atol=1e-5, rtol=1e-3)
    apart = torch.cat(model.attribution(memories, said), dim=1)
    assert (apart - want).abs().max() > 1e-3


def test_what_is_made_again_is_not_read_twice_or_changed(load):
    _, model = load("llama")
    memories = memories_of(model)
    kept = [memory.states_SD.clone() for memory in memories]
    state = model.network.start([memories])
    model.network.blend(state, ASKED, 0.5)
    assert state.cache.lengths == [4]
    masks = [read.memory.mask_S for read in state.readings[0]]
    assert masks[:2] == [None, None]
    assert int((~masks[2]).sum()) == 4
    for memory, states in zip(memories, kept, strict=True):
        assert torch.equal(memory.states_SD, states)
        assert memory.mask_S is None
    with pytest.raises(xattn.UsageError, match="`recompute` must be 0 in an engine"):
        xattn.Engine(model).submit(memories, ASKED, parallel=Parallel(recompute=0.5))


def test_no_key_is_copied_or_turned(load):
    _, model = load("llama")
    memories = memories_of(model)
    state = model.network.start([memories, [memories[0], memories[2], memories[1]]])
    assert [read.turn for read in state.readings[1]] == [0, 0, len(SECOND)]
    lie = {memory.states_SD.untyped_storage().data_ptr() for memory in memories}
    for projection in state.projections:
        for segment in projection.segments:
            assert segment.k_NGSK.untyped_storage().data_ptr() in lie


def test_what_is_behind_a_prefix_has_a_name_of_its_own(load, tmp_path):
    _, model = load("llama")
    before, other = model.encode(PREFIX), model.encode(PREFIX[:-1])
    names = [
        model.prepare(FIRST).key.digest,
        model.prepare(FIRST, behind=before).key.digest,
        model.prepare(FIRST, behind=other).key.digest,
    ]
    assert len(set(names)) == 3
    passes = model.counters.encoder_passes
    for _ in range(2):
        with MemoryStore(tmp_path) as store:
            kept = store.get_or_encode(model, PREFIX)
            behind = store.get_or_encode(model, FIRST, behind=kept)
    assert model.counters.encoder_passes == passes + 2
    want = model.generate(prompt=[*PREFIX, *FIRST, *ASKED], max_new_tokens=8, eos_token_id=())
    found = model.generate([kept, behind], ASKED, max_new_tokens=8, eos_token_id=())
    assert found.tokens == want.tokens


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_an_engine_reads_them_as_generate_does(load, how):
    _, model = load("llama")
    before, first, second = memories_of(model)
    settings = {"max_new_tokens": 8, "eos_token_id": ()}
    asked = [[before, first, second], [before, second], [before, second, first], [before]]
    with xattn.Engine(model) as engine:
        tickets = [engine.submit(row, ASKED, parallel=how, **settings) for row in asked]
    for row, ticket in zip(asked, tickets, strict=True):
        want = model.generate(row, ASKED, parallel=how, **settings)
        assert ticket.result().tokens == want.tokens


@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize("how", WAYS, ids=str)
def test_what_is_read_of_each_memory_is_what_transformers_reads(load, name, how):
    theirs, model = load(name)
    memories = memories_of(model)
    answer = model.generate(memories, ASKED, parallel=how, max_new_tokens=5, eos_token_id=())
    weights = []
    theirs_on(theirs, (FIRST, SECOND), [*ASKED, *answer.tokens[:-1]], how, weights=weights)
    want_LHTS = torch.stack(weights)[:, :, len(ASKED) - 1 :]
    sizes = [len(memory) for memory in memories]
    for heads in ([(1, 2)], [(0, 0), (1, 1), (1, 3)], None):
        found = model.attribution(memories, answer, heads=heads, parallel=how)
        some = heads or [(i, h) for i in range(len(weights)) for h in range(len(weights[0]))]
        want = torch.stack([want_LHTS[pair] for pair in some]).mean(0).split(sizes, dim=1)
        torch.testing.assert_close(found, list(want), atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", ["t5", "bart"])
def test_what_is_read_of_several_memories_is_one_softmax(tmp_path, form):
    theirs = tiny.make(form, tmp_path)
    model = xattn.load(tmp_path)
    texts = [FIRST, SECOND, PREFIX]
    memories = model.encode_batch(texts)
    answer = model.generate(memories, max_new_tokens=5, eos_token_id=())
    theirs.set_attn_implementation("eager")
    states = torch.cat([memory.states_SD for memory in memories]).unsqueeze(0)
    ids = torch.tensor([[*answer.prompt, *answer.tokens[:-1]]])
    with torch.no_grad():
        found = theirs(
            encoder_outputs=BaseModelOutput(states), decoder_input_ids=ids, output_attentions=True
        )
    want = torch.cat(found.cross_attentions)[:, :, len(answer.prompt) - 1 :].mean((0, 1))
    shares = model.attribution(memories, answer)
    torch.testing.assert_close(shares, list(want.split([len(m) for m in memories], dim=1)))
    assert torch.allclose(sum(share.sum(1) for share in shares), torch.ones(5))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"positions": "apart"}, "`positions` must be one of sequence, shared, but is 'apart'"),
        ({"temperature": 0}, "`temperature` must be a number above 0, at most 10, but is 0"),
        ({"recompute": 1.5}, "`recompute` must be from 0 to 1, but is 1.5"),
        ({"recompute": 0.1, "positions": "shared"}, "`recompute` must be 0 where positions are"),
        ({"scale": float("nan")}, "`scale` must be a number above 0, at most 10, but is nan"),
    ],
)
def test_bad_ways_are_named(how, said):
    with pytest.raises(xattn.UsageError, match=said):
        Parallel(**how)
