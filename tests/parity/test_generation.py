"""Whole generations against transformers' ``generate``, on tiny models of every family.

transformers runs one group of equally long prompts and sources after another; ours are one batch of
all of them.
"""

from dataclasses import replace

import pytest
import tiny
import torch
from generations import EOS, generate, groups_of, requests_of, theirs

from xattn.decoding import Request, Settings, decode, stream


def assert_equal(found, want):
    for n, (ours, hf) in enumerate(zip(found, want, strict=True)):
        assert [h.tokens for h in ours] == [tokens for tokens, _ in hf], f"request {n}"
        for hypothesis, (_, score) in zip(ours, hf, strict=True):
            if score is not None:
                assert hypothesis.score == pytest.approx(score, abs=1e-4, rel=5e-7)


# Left alone, some of these models say one token over and over.
@pytest.mark.parametrize("ngram", [0, 1])
@pytest.mark.parametrize("name", tiny.TINY)
def test_fifty_greedy_generations(pairs, name, ngram):
    pair = pairs(name)
    groups = list(groups_of(pair, 10))
    arguments = {"no_repeat_ngram_size": ngram, "max_new_tokens": 12}
    found = decode(pair.ours, requests_of(pair, groups), Settings(**arguments, eos_token_id=EOS))
    assert_equal(found, theirs(pair, groups, **arguments))
    assert "eos" in {h.finish for (h,) in found}


@pytest.mark.parametrize("ngram", [0, 1])
@pytest.mark.parametrize("name", tiny.TINY)
def test_fifty_generations_with_four_beams(pairs, name, ngram):
    pair = pairs(name)
    groups = list(groups_of(pair, 10))
    arguments = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 12}
    arguments["no_repeat_ngram_size"] = ngram
    found = decode(pair.ours, requests_of(pair, groups), Settings(**arguments, eos_token_id=EOS))
    assert_equal(found, theirs(pair, groups, **arguments))
    assert "eos" in {h.finish for hypotheses in found for h in hypotheses}


def few(request, tokens_T):
    """Five tokens that depend on all that was said, one of which may end the sequence."""
    return [(7 * int(tokens_T.sum()) + 13 * n) % tiny.VOCAB for n in range(4)] + [2]


def without_50(request, tokens_T):
    return [token for token in few(request, tokens_T) if token != 50]


KINDS = [
    {"num_beams": 4, "length_penalty": penalty, "early_stopping": early}
    for penalty in (0.0, 2.0, -1.0)
    for early in (True, False, "never")
] + [
    {"num_beams": 2, "length_penalty": 0.7, "max_new_tokens": 20},
    {"num_beams": 3, "num_return_sequences": 2, "min_new_tokens": 5},
    {"num_beams": 3, "num_return_sequences": 3, "repetition_penalty": 1.6},
    {"num_beams": 3, "no_repeat_ngram_size": 2, "max_new_tokens": 20, "renormalize_logits": True},
    {"num_beams": 4, "forced_bos_token_id": 9, "forced_eos_token_id": 2},
    {"num_beams": 4, "suppress_tokens": [5, 6, 2], "begin_suppress_tokens": [7, 11]},
    {"num_beams": 4, "bad_words_ids": [[33], [12, 50]], "min_length": 6},
    {"repetition_penalty": 1.6, "max_new_tokens": 20},
    {"no_repeat_ngram_size": 2, "max_new_tokens": 20},
    {"no_repeat_ngram_size": 1},
    {"forced_bos_token_id": 9, "begin_suppress_tokens": [7, 11, 40], "forced_eos_token_id": 2},
    {"min_new_tokens": 6, "suppress_tokens": [5, 6, 2], "bad_words_ids": [[33], [12, 50]]},
    {"max_length": 8, "min_length": 7, "max_new_tokens": None},
    {"prefix_allowed_tokens_fn": few},
    {"prefix_allowed_tokens_fn": few, "num_beams": 3, "num_return_sequences": 3},
    # Neither is ever among the few: what is forced goes before what is allowed.
    {"prefix_allowed_tokens_fn": without_50, "forced_bos_token_id": 50, "forced_eos_token_id": 50},
    {"prefix_allowed_tokens_fn": without_50, "forced_eos_token_id": 50, "num_beams": 3},
]


@pytest.mark.parametrize("name", ["t5", "marian", "whisper", "llama"])
@pytest.mark.parametrize(
    "kind",
    KINDS,
    ids=lambda kind: " ".join(f"{k}={getattr(v, '__name__', v)}" for k, v in kind.items()),
)
def test_settings(pairs, name, kind):
    pair = pairs(name)
    groups = list(groups_of(pair, 2, seed=1))
    settings = Settings.resolve({"max_new_tokens": 12}, **kind, eos_token_id=EOS)
    found = decode(pair.ours, requests_of(pair, groups), settings)
    assert_equal(found, theirs(pair, groups, **kind))


@pytest.mark.parametrize("eos", [(2,), ()])
def test_one_end_token_or_none(pairs, eos):
    pair = pairs("bart")
    groups = list(groups_of(pair, 4, seed=2))
    arguments = dict(num_beams=4, num_return_sequences=4, max_new_tokens=25)
    found = decode(pair.ours, requests_of(pair, groups), Settings(**arguments, eos_token_id=eos))
    # transformers wants at least one; a token that is never generated serves.
    hf = dict(eos=eos) if eos else dict(eos=(2,), suppress_tokens=[2])
    if not eos:
        suppressed = Settings(**arguments, eos_token_id=eos, suppress_tokens=(2,))
        found = decode(pair.ours, requests_of(pair, groups), suppressed)
    assert_equal(found, theirs(pair, groups, **arguments, **hf))


@pytest.mark.parametrize("name", ["t5", "bart", "whisper", "qwen3"])
@pytest.mark.parametrize(
    "settings",
    [
        Settings(max_new_tokens=15, eos_token_id=EOS),
        Settings(max_new_tokens=15, eos_token_id=EOS, num_beams=4, num_return_sequences=4),
        Settings(
            max_new_tokens=15, eos_token_id=EOS, num_beams=4, num_return_sequences=4, patience=1.0
        ),
        Settings(
            max_new_tokens=15, eos_token_id=EOS, do_sample=True, num_return_sequences=3, seed=4
        ),
        Settings(max_new_tokens=15, eos_token_id=EOS, do_sample=True, num_beams=3, seed=4),
    ],
    ids=["greedy", "beams", "patience", "samples", "beam samples"],
)
def test_a_batch_equals_its_requests_one_by_one(pairs, name, settings):
    pair = pairs(name)
    requests = requests_of(pair, groups_of(pair, 1, seed=3))
    together = decode(pair.ours, requests, settings)
    for request, found in zip(requests, together, strict=True):
        (alone,) = decode(pair.ours, [request], settings)
        assert [h.tokens for h in found] == [h.tokens for h in alone]
        assert [h.score for h in found] == pytest.approx([h.score for h in alone], abs=1e-4)


@pytest.mark.parametrize("name", ["t5", "whisper", "llama"])
def test_a_stream_gives_the_tokens_of_decode(pairs, name):
    pair = pairs(name)
    (request, *_) = requests_of(pair, groups_of(pair, 1, seed=3))
    for settings in (
        Settings(max_new_tokens=15, eos_token_id=EOS),
        Settings(max_new_tokens=15, eos_token_id=EOS, do_sample=True, seed=1),
    ):
        (found,) = decode(pair.ours, [request], settings)[0]
        assert tuple(stream(pair.ours, request, settings)) == found.tokens


@pytest.mark.parametrize("name", ["t5", "whisper", "llama"])
def test_logprobs_are_those_of_transformers(pairs, name):
    pair = pairs(name)
    groups = list(groups_of(pair, 2, seed=5))
    settings = Settings(max_new_tokens=10, eos_token_id=EOS, suppress_tokens=(4, 5))
    found = decode(pair.ours, requests_of(pair, groups), settings)
    want = []
    for _, _, inputs in groups:
        output = generate(
            pair,
            inputs,
            max_new_tokens=10,
            do_sample=False,
            suppress_tokens=[4, 5],
            eos_token_id=list(EOS),
        )
        rows = pair.theirs.compute_transition_scores(
            output.sequences, output.scores, normalize_logits=True
        )
        want += rows.tolist()
    for (hypothesis,), row in zip(found, want, strict=True):
        assert hypothesis.logprobs == pytest.approx(row[: len(hypothesis.tokens)], abs=1e-4)


def test_first_samples_follow_the_warped_softmax_of_transformers(pairs):
    """By chi-square, with the warpers of transformers on the logits of transformers."""
    pair, count = pairs("bart"), 4000
    ((prompts, values, inputs), *_) = groups_of(pair, 1, seed=6)
    warpers = {"do_sample": True, "temperature": 1.4, "top_k": 20, "top_p": 0.9}
    output = generate(pair, inputs, max_new_tokens=1, **warpers)
    want = output.scores[0][0].softmax(-1)
    settings = Settings(**warpers, max_new_tokens=1, num_return_sequences=count)
    (request,) = requests_of(pair, [(prompts, values, inputs)])
    found = decode(pair.ours, [request], settings)[0]
    seen = torch.bincount(torch.tensor([h.tokens[0] for h in found]), minlength=tiny.VOCAB)
    likely = want > 0
    assert seen[~likely].sum() == 0
    assert 5 < likely.sum() <= 20
    squared = ((seen - count * want)[likely] ** 2 / (count * want)[likely]).sum()
    assert squared < 43.8  # 99.9 % with 19 degrees of freedom


@pytest.mark.parametrize("name", tiny.SEQ2SEQ)
def test_beams_and_samples_copy_no_memory(pairs, name):
    pair = pairs(name)
    values, _ = pair.inputs(1, 9)
    (memory,) = pair.memories(values)
    state = pair.ours.start([[memory]])
    before = state.cross_bytes
    for beams in (1, 8):
        passes, projections = pair.ours.counters.encoder_passes, pair.ours.counters.projections
        one = replace(Settings(max_new_tokens=4, eos_token_id=()), num_beams=beams)
        decode(pair.ours, [Request((3,), (memory,))], one)
        assert pair.ours.counters.encoder_passes == passes
        assert pair.ours.counters.projections == projections + 1
    pair.ours.step(torch.tensor([[3]]), state)
    state.reorder([0] * 8)
    assert (state.rows, state.cross_bytes) == (8, before)


def test_a_projection_serves_many_calls(pairs):
    pair = pairs("whisper")
    values, _ = pair.inputs(1, 9)
    (memory,) = pair.memories(values)
    projection = pair.ours.project(memory)
    projections = pair.ours.counters.projections
    for temperature in (0.2, 0.6, 1.0):
        settings = Settings(do_sample=True, temperature=temperature, max_new_tokens=6)
        kept = decode(pair.ours, [Request((3, 4), (projection,))], settings)
        assert pair.ours.counters.projections == projections
        assert kept == decode(pair.ours, [Request((3, 4), (memory,))], settings)
        projections += 1
