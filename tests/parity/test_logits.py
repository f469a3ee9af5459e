"""Logits of every family against live transformers, and of every way to run the decoder against the
plain one."""

from dataclasses import replace

import pytest
import tiny
import torch
from pairs import memory_of, random_tokens

from xattn.attention.reference import materialize
from xattn.errors import AbsorptionError
from xattn.memory import Memory
from xattn.models.network import Network
from xattn.spec import NormSpec

TOLERANCE = dict(atol=1e-4, rtol=0.0)
FORMS = ("materialized", "absorbed")


def rows_of(pair, memories):
    return [[memory] for memory in memories]


def steps(network, tokens, state):
    return torch.stack(
        [network.step(tokens[:, i : i + 1], state) for i in range(tokens.shape[1])], dim=1
    )


@pytest.mark.parametrize("name", tiny.SEQ2SEQ)
@pytest.mark.parametrize("form", FORMS)
def test_encoder_decoder_logits(pairs, name, form):
    pair, tokens = pairs(name), random_tokens(3, 9)
    values, named = pair.inputs(3, 11)
    with torch.no_grad():
        want = pair.theirs(**named, decoder_input_ids=tokens).logits
    attended = rows_of(pair, pair.memories(values))
    forced = pair.ours.score(tokens, pair.ours.start(attended, form=form))
    torch.testing.assert_close(forced, want, **TOLERANCE)
    stepped = steps(pair.ours, tokens, pair.ours.start(attended, form=form))
    torch.testing.assert_close(stepped, want, **TOLERANCE)
    assert want.abs().max() > 0.5, "the comparison means something"


@pytest.mark.parametrize("name", tiny.DECODER_ONLY)
def test_decoder_only_logits(pairs, name):
    pair, tokens = pairs(name), random_tokens(3, 40)
    with torch.no_grad():
        want = pair.theirs(input_ids=tokens).logits
    torch.testing.assert_close(
        pair.ours.score(tokens, pair.ours.start([[]] * 3)), want, **TOLERANCE
    )
    torch.testing.assert_close(
        steps(pair.ours, tokens, pair.ours.start([[]] * 3)), want, **TOLERANCE
    )


@pytest.mark.parametrize("name", [n for n in tiny.SEQ2SEQ if n != "whisper"])
def test_sources_of_unequal_length_share_a_pass(pairs, name):
    pair, tokens = pairs(name), random_tokens(2, 5)
    values, _ = pair.inputs(2, 12)
    ids = [values[0].tolist(), values[1, :4].tolist()]
    batched = [memory_of(s, f"{name}{i}") for i, s in enumerate(pair.ours.encode_tokens(ids))]
    for row, source in enumerate(ids):
        with torch.no_grad():
            want = pair.theirs(
                input_ids=torch.tensor([source]), decoder_input_ids=tokens[row : row + 1]
            ).logits
        got = pair.ours.score(tokens[row : row + 1], pair.ours.start([[batched[row]]]))
        torch.testing.assert_close(got, want, **TOLERANCE)
    both = pair.ours.score(tokens, pair.ours.start([[m] for m in batched]))
    torch.testing.assert_close(both[1:], got, **TOLERANCE)


@pytest.mark.parametrize("name", tiny.TINY)
def test_prompts_of_unequal_length(pairs, name):
    """Right-padded prefill, then steps, against each row alone."""
    pair, tokens, counts = pairs(name), random_tokens(3, 12), [6, 2, 4]
    attended = [[]] * 3
    if not pair.decoder_only:
        attended = rows_of(pair, pair.memories(pair.inputs(3, 7)[0]))
    state = pair.ours.start(attended)
    prefix = torch.stack(
        [
            tokens[r, :6] if c == 6 else torch.cat([tokens[r, :c], torch.full((6 - c,), 3)])
            for r, c in enumerate(counts)
        ]
    )
    got = [pair.ours.step(prefix, state, torch.tensor(counts))]
    for step in range(3):
        following = torch.stack([tokens[r, c + step] for r, c in enumerate(counts)])[:, None]
        got.append(pair.ours.step(following, state))
    assert state.lengths == [c + 3 for c in counts]
    for row, count in enumerate(counts):
        alone = pair.ours.score(
            tokens[row : row + 1, : count + 3], pair.ours.start([attended[row]])
        )
        for step, logits in enumerate(got):
            torch.testing.assert_close(logits[row], alone[0, count - 1 + step], **TOLERANCE)


@pytest.mark.parametrize("name", tiny.TINY)
def test_select_reorders_repeats_and_drops_rows(pairs, name):
    pair, tokens = pairs(name), random_tokens(3, 8)
    attended = [[]] * 3
    if not pair.decoder_only:
        attended = rows_of(pair, pair.memories(pair.inputs(3, 7)[0]))
    network, state = pair.ours, pair.ours.start(attended)
    network.step(tokens[:, :4], state)
    before = state.cross_bytes
    for order in ([2, 0, 0, 1], [3, 3, 0], [1, 2]):
        tokens = tokens[order]
        state.reorder(order)
    assert state.cross_bytes == before or len(state.projections) < 3
    got = network.step(tokens[:, 4:5], state)
    sources = [attended[i] for i in [[2, 0, 0, 1][j] for j in [[3, 3, 0][k] for k in [1, 2]]]]
    want = network.score(tokens[:, :5], network.start(sources))[:, -1]
    torch.testing.assert_close(got, want, **TOLERANCE)


@pytest.mark.parametrize("form", FORMS)
def test_rows_that_share_a_memory_fold(pairs, form):
    """Unequal shares, in any order, against each row alone; nothing is projected twice."""
    pair, tokens = pairs("bart"), random_tokens(5, 6)
    a, b = pair.memories(pair.inputs(2, 9)[0])
    attended = [[a], [b], [a], [a], [b]]
    before = pair.ours.counters.projections
    state = pair.ours.start(attended, form=form)
    assert pair.ours.counters.projections == before + 2
    got = pair.ours.score(tokens, state)
    for row, memories in enumerate(attended):
        alone = pair.ours.score(tokens[row : row + 1], pair.ours.start([memories], form=form))
        torch.testing.assert_close(got[row : row + 1], alone, **TOLERANCE)


@pytest.mark.parametrize("name", tiny.SEQ2SEQ)
@pytest.mark.parametrize("form", FORMS)
def test_several_memories_equal_their_concatenation(pairs, name, form):
    pair, tokens = pairs(name), random_tokens(2, 6)
    a, b, c = pair.memories(pair.inputs(3, 8)[0])
    joined = memory_of(torch.cat([a.states_SD, b.states_SD, c.states_SD]), "joined")
    # The second row has fewer memories than the first, and shares one with it.
    got = pair.ours.score(tokens, pair.ours.start([[c, a, b], [b]], form=form))
    want = pair.ours.score(tokens, pair.ours.start([[joined], [b]], form=form))
    torch.testing.assert_close(got, want, **TOLERANCE)


def test_masked_positions_are_not_read(pairs):
    pair, tokens = pairs("t5"), random_tokens(1, 6)
    (memory,) = pair.memories(pair.inputs(1, 8)[0])
    mask = torch.tensor([True] * 5 + [False] * 3)
    masked = Memory(states_SD=memory.states_SD, key=memory.key, spans=memory.spans, mask_S=mask)
    cut = memory_of(memory.states_SD[:5], "cut")
    for form in FORMS:
        got = pair.ours.score(tokens, pair.ours.start([[masked]], form=form))
        torch.testing.assert_close(
            got, pair.ours.score(tokens, pair.ours.start([[cut]])), **TOLERANCE
        )
    nothing = Memory(
        states_SD=memory.states_SD,
        key=memory.key,
        spans=memory.spans,
        mask_S=torch.zeros(8, dtype=torch.bool),
    )
    assert pair.ours.score(tokens, pair.ours.start([[nothing]])).isfinite().all()


@pytest.mark.parametrize("name", tiny.SEQ2SEQ)
def test_cross_weights_equal_transformers(pairs, name):
    pair, tokens = pairs(name), random_tokens(2, 5)
    values, named = pair.inputs(2, 9)
    with torch.no_grad():
        theirs = pair.theirs(
            **named, decoder_input_ids=tokens, output_attentions=True
        ).cross_attentions
    state = pair.ours.start(rows_of(pair, pair.memories(values)))
    heads = [(1, 3), (0, 0), (1, 1)]
    got = pair.ours.cross_weights(tokens, state, heads)
    want = torch.stack([theirs[layer][:, head] for layer, head in heads], dim=1)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0.0)
    assert state.lengths == [0, 0], "looking does not advance the state"


def test_absorption_is_refused_where_keys_pass_a_norm(pairs):
    spec = pairs("bart").ours.spec
    assert spec.decoder.cross_attention is not None
    normed = replace(spec.decoder.cross_attention, qk_norm=NormSpec(kind="rms"))
    network = Network(replace(spec, decoder=replace(spec.decoder, cross_attention=normed)))
    memory = memory_of(torch.randn(4, spec.decoder.memory_width), "x")
    with pytest.raises(AbsorptionError, match="keys pass through a norm"):
        network.start([[memory]], form="absorbed")
    rotated = replace(spec.decoder.cross_attention, rotary=True)
    network = Network(replace(spec, decoder=replace(spec.decoder, cross_attention=rotated)))
    with pytest.raises(AbsorptionError, match="rotated by their position"):
        network.start([[memory]], form="absorbed")


@pytest.mark.parametrize("form", FORMS)
def test_grouped_cross_heads_equal_repeated_ones(pairs, form):
    """The twin is the same model with its key and value heads written out."""
    spec = pairs("bart").ours.spec
    assert spec.decoder.cross_attention is not None
    grouped_spec = replace(
        spec,
        decoder=replace(
            spec.decoder, cross_attention=replace(spec.decoder.cross_attention, kv_heads=2)
        ),
    )
    torch.manual_seed(0)
    grouped, full = Network(grouped_spec), Network(spec)
    for parameter in grouped.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    weights = dict(grouped.state_dict())
    for name in list(weights):
        if "cross_attn.k." in name or "cross_attn.v." in name:
            weights[name] = (
                weights[name].unflatten(0, (2, 8)).repeat_interleave(2, dim=0).flatten(0, 1)
            )
    full.load_state_dict(weights)
    memory, tokens = memory_of(torch.randn(6, 32), "x"), random_tokens(1, 5)
    with torch.no_grad():
        got = grouped.score(tokens, grouped.start([[memory]], form=form))
        want = full.score(tokens, full.start([[memory]]))
    torch.testing.assert_close(got, want, **TOLERANCE)
    if form == "materialized":
        ours = grouped.start([[memory]]).projections[0].segments[0]
        assert ours is not None
        assert materialize(ours).k_NGSK.shape[1] == 2


@pytest.mark.parametrize("name", ["t5", "whisper", "qwen3"])
@pytest.mark.parametrize(
    ("rows", "tokens", "by_kernels"),
    [(128, 1, True), (129, 1, False), (32, 2, True), (33, 2, False)],
)
@pytest.mark.parametrize("form", ["materialized", "absorbed"])
def test_many_rows(pairs, monkeypatch, name, rows, tokens, by_kernels, form):
    pair, found = pairs(name), []
    memories = [()] if pair.decoder_only else [(m,) for m in pair.memories(pair.inputs(3, 9)[0])]
    for kernels in (True, False):
        monkeypatch.setattr(pair.ours, "use_kernels", kernels)
        state = pair.ours.start([memories[row % len(memories)] for row in range(rows)], form=form)
        steps = [random_tokens(rows, tokens, seed=n) for n in range(3)]
        found.append(torch.stack([pair.ours.step(tokens_RT, state) for tokens_RT in steps]))
        assert (state.native is not None) == (kernels and by_kernels)
    torch.testing.assert_close(*found, atol=2e-4, rtol=1e-4)
