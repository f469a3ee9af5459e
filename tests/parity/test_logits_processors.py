"""Each constraint and warper against the class of transformers that does the same."""

import math

import pytest
import torch
from transformers.generation import logits_process as hf

from xattn.decoding.constraints import Constraints, Rows
from xattn.decoding.history import History
from xattn.decoding.settings import Settings
from xattn.decoding.warpers import draw, inverse_cdf, min_p, scattered, top_k, top_p, typical

V, EOS = 23, (2, 5)
CPU = torch.device("cpu")


def logits(rows: int, *, seed: int = 0, ties: bool = False) -> torch.Tensor:
    drawn = 3 * torch.randn(rows, V, generator=torch.Generator().manual_seed(seed))
    return drawn.round() if ties else drawn


def sequences(rows: int, length: int, *, seed: int = 1, kinds: int = V) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, kinds, (rows, length), generator=generator).tolist()


def constrained(settings, tokens, logits_RV, *, prompt=1, limit=99, processors=()):
    """Ours, on rows whose first ``prompt`` tokens are the prompt."""
    history = History([row[:prompt] for row in tokens], V, CPU)
    for column in range(prompt, len(tokens[0])):
        history.append(torch.tensor([row[column] for row in tokens]))
    rows = Rows(
        step=len(tokens[0]) - prompt,
        prompt_lengths=[prompt] * len(tokens),
        limits=[limit] * len(tokens),
        requests=range(len(tokens)),
        history=history,
        new_tokens=lambda: [row[prompt:] for row in tokens],
    )
    prompts = [row[:prompt] for row in tokens]
    constraints = Constraints(settings, EOS, V, CPU, processors, prompts)
    return constraints(logits_RV.clone(), rows)


@pytest.mark.parametrize("penalty", [0.7, 1.3])
def test_repetition_penalty_equals_transformers(penalty):
    tokens, scores = sequences(4, 9), logits(4)
    want = hf.RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor(tokens), scores)
    got = constrained(Settings(repetition_penalty=penalty), tokens, scores, prompt=3)
    assert torch.equal(got, want)
    assert not torch.equal(got, scores)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [2, 4, 20])
def test_no_repeat_ngram_equals_transformers(size, length):
    tokens, scores = sequences(5, length, kinds=3), logits(5)
    want = hf.NoRepeatNGramLogitsProcessor(size)(torch.tensor(tokens), scores)
    got = constrained(Settings(no_repeat_ngram_size=size), tokens, scores, prompt=2)
    assert torch.equal(got, want)


@pytest.mark.parametrize("setting", [{"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}])
@pytest.mark.parametrize("size", [1, 2])
def test_penalties_see_no_filler_of_shorter_prompts(setting, size):
    if "no_repeat_ngram_size" in setting:
        setting = {"no_repeat_ngram_size": size}
    prompts = [[4], [4, 4, 7, 4], [7, 4]]
    scores = logits(3)
    history = History(prompts, V, CPU)
    rows = Rows(0, [len(p) for p in prompts], [9] * 3, range(3), history, lambda: [[]] * 3)
    together = Constraints(Settings(**setting), EOS, V, CPU)(scores.clone(), rows)
    alone = [
        constrained(Settings(**setting), [p], scores[i : i + 1], prompt=len(p))
        for i, p in enumerate(prompts)
    ]
    assert torch.equal(together, torch.cat(alone))


def test_penalties_can_leave_the_prompt_out():
    tokens, scores = sequences(4, 9), logits(4)
    settings = Settings(repetition_penalty=1.3, no_repeat_ngram_size=2, penalize_prompt=False)
    new = torch.tensor([row[3:] for row in tokens])
    want = hf.RepetitionPenaltyLogitsProcessor(1.3)(new, scores)
    want = hf.NoRepeatNGramLogitsProcessor(2)(new, want)
    assert torch.equal(constrained(settings, tokens, scores, prompt=3), want)
    prompts_only = [row[:3] for row in tokens]
    assert torch.equal(constrained(settings, prompts_only, scores, prompt=3), scores)


def test_bad_words_equal_transformers():
    words = ((7,), (1, 2), (0, 1, 2), (2,))
    tokens, scores = sequences(30, 5, kinds=3), logits(30)
    want = hf.NoBadWordsLogitsProcessor([list(w) for w in words], list(EOS))
    want = want(torch.tensor(tokens), scores)
    got = constrained(Settings(bad_words_ids=words), tokens, scores, prompt=2)
    assert torch.equal(got, want)
    assert not got[:, 7].isfinite().any()
    assert 0 < got[:, 2].isfinite().sum() < len(got)


@pytest.mark.parametrize("new", [0, 1, 2, 3])
def test_least_lengths_equal_transformers(new):
    tokens, scores = sequences(3, 2 + new), logits(3)
    ids = torch.tensor(tokens)
    want = hf.MinLengthLogitsProcessor(5, list(EOS))(ids, scores)
    got = constrained(Settings(min_length=5), tokens, scores, prompt=2)
    assert torch.equal(got, want)
    want = hf.MinNewTokensLengthLogitsProcessor(2, 2, list(EOS))(ids, scores)
    got = constrained(Settings(min_new_tokens=2), tokens, scores, prompt=2)
    assert torch.equal(got, want)


@pytest.mark.parametrize("prompt", [1, 2])
@pytest.mark.parametrize("new", [0, 1, 2])
def test_forced_and_suppressed_tokens_equal_transformers(prompt, new):
    tokens, scores = sequences(3, prompt + new), logits(3)
    ids = torch.tensor(tokens)
    want = hf.ForcedBOSTokenLogitsProcessor(4)(ids, scores)
    got = constrained(Settings(forced_bos_token_id=4), tokens, scores, prompt=prompt)
    assert torch.equal(got, want)
    want = hf.ForcedEOSTokenLogitsProcessor(prompt + 2, [2, 9])(ids, scores)
    settings = Settings(forced_eos_token_id=(2, 9))
    assert torch.equal(constrained(settings, tokens, scores, prompt=prompt, limit=2), want)
    want = hf.SuppressTokensLogitsProcessor([3, 8])(ids, scores)
    settings = Settings(suppress_tokens=(3, 8))
    assert torch.equal(constrained(settings, tokens, scores, prompt=prompt), want)


@pytest.mark.parametrize(("prompt", "forced", "begin"), [(1, None, 1), (1, 4, 2), (3, 4, 3)])
@pytest.mark.parametrize("new", [0, 1, 2])
def test_suppression_of_the_first_token_equals_transformers(prompt, forced, begin, new):
    tokens, scores = sequences(3, prompt + new), logits(3)
    ids = torch.tensor(tokens)
    want = scores
    if forced is not None:
        want = hf.ForcedBOSTokenLogitsProcessor(forced)(ids, want)
    want = hf.SuppressTokensAtBeginLogitsProcessor([3, 8], begin)(ids, want)
    settings = Settings(begin_suppress_tokens=(3, 8), forced_bos_token_id=forced)
    assert torch.equal(constrained(settings, tokens, scores, prompt=prompt), want)


def test_constraints_come_in_the_order_of_transformers():
    tokens, scores = sequences(4, 8, kinds=5), logits(4)
    ids = torch.tensor(tokens)
    chain = [
        hf.RepetitionPenaltyLogitsProcessor(1.4),
        hf.NoRepeatNGramLogitsProcessor(2),
        hf.NoBadWordsLogitsProcessor([[6]], list(EOS)),
        hf.MinNewTokensLengthLogitsProcessor(3, 30, list(EOS)),
        hf.ForcedEOSTokenLogitsProcessor(9, [2]),
        hf.SuppressTokensLogitsProcessor([11]),
    ]
    want = scores
    for processor in chain:
        want = processor(ids, want)
    settings = Settings(
        repetition_penalty=1.4,
        no_repeat_ngram_size=2,
        bad_words_ids=((6,),),
        min_new_tokens=30,
        forced_eos_token_id=(2,),
        suppress_tokens=(11,),
    )
    for limit in (6, 99):
        chain[4].max_length = 3 + limit
        want = scores
        for processor in chain:
            want = processor(ids, want)
        assert torch.equal(constrained(settings, tokens, scores, prompt=3, limit=limit), want)


def test_prefix_allowed_tokens_equal_transformers():
    def allowed(request, tokens_T):
        return [(int(tokens_T.sum()) + request + n) % V for n in range(0, 2 * len(tokens_T), 2)]

    tokens, scores = sequences(4, 6), logits(4)
    theirs = hf.PrefixConstrainedLogitsProcessor(allowed, num_beams=1)
    settings = Settings(prefix_allowed_tokens_fn=allowed, suppress_tokens=(3,))
    want = theirs(torch.tensor(tokens), scores)
    want[:, 3] = -math.inf
    assert torch.equal(constrained(settings, tokens, scores, prompt=2), want)


def test_callers_processors_see_new_tokens_and_come_last():
    seen = []

    def keep_only_nine(tokens, logits_RV):
        seen.append([list(row) for row in tokens])
        assert not logits_RV[:, 3].isfinite().any()
        return torch.full_like(logits_RV, -math.inf).index_fill_(1, torch.tensor([9]), 0.0)

    tokens = sequences(2, 6)
    settings = Settings(suppress_tokens=(3,))
    got = constrained(settings, tokens, logits(2), prompt=4, processors=[keep_only_nine])
    assert seen == [[row[4:] for row in tokens]]
    assert got.argmax(-1).tolist() == [9, 9]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("keep", [1, 3])
def test_warpers_equal_transformers(ties, keep):
    scores = logits(6, ties=ties)
    for p in (0.1, 0.5, 0.93):
        want = hf.TopPLogitsWarper(p, min_tokens_to_keep=keep)(None, scores)
        assert torch.equal(top_p(scores, p, keep), want)
        want = hf.MinPLogitsWarper(p, min_tokens_to_keep=keep)(None, scores)
        assert torch.equal(min_p(scores, p, keep), want)
        want = hf.TypicalLogitsWarper(p, min_tokens_to_keep=keep)(None, scores)
        assert torch.equal(typical(scores, p, keep), want)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("k", [1, 4, V, V + 9])
def test_top_k_keeps_what_transformers_keeps(ties, k):
    scores = logits(6, ties=ties)
    want = hf.TopKLogitsWarper(k)(None, scores)
    kept, ids = top_k(scores, k)
    if ids is not None:
        kept = torch.full_like(scores, -math.inf).scatter_(1, ids, kept)
    assert torch.equal(kept, want)


# Which of several tied tokens `keep` spares is up to the sort, hence no ties there.
@pytest.mark.parametrize(("keep", "ties"), [(1, False), (1, True), (3, False)])
@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": 0.6},
        {"top_k": 3},
        {"top_k": 8, "top_p": 0.8, "temperature": 1.5},
        {"top_k": 0, "top_p": 0.8, "min_p": 0.2},
        {"top_k": 9, "typical_p": 0.5},
        {"top_k": 7, "top_p": 0.9, "min_p": 0.05, "typical_p": 0.9, "temperature": 0.8},
    ],
)
def test_chain_of_warpers_equals_transformers(setting, keep, ties):
    scores = logits(6, ties=ties)
    scores[0, 3] = -math.inf
    settings = Settings(do_sample=True, **setting)
    chain = []
    if settings.temperature != 1.0:
        chain.append(hf.TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        chain.append(hf.TopKLogitsWarper(settings.top_k, min_tokens_to_keep=keep))
    if settings.top_p < 1:
        chain.append(hf.TopPLogitsWarper(settings.top_p, min_tokens_to_keep=keep))
    if settings.min_p is not None:
        chain.append(hf.MinPLogitsWarper(settings.min_p, min_tokens_to_keep=keep))
    if settings.typical_p < 1:
        chain.append(hf.TypicalLogitsWarper(settings.typical_p, min_tokens_to_keep=keep))
    want = scores
    for warper in chain:
        want = warper(None, want)
    assert torch.equal(scattered(scores, settings, keep), want)


def test_draws_follow_the_warped_softmax():
    settings = Settings(do_sample=True, top_k=8, top_p=0.9, temperature=1.3)
    scores = logits(1, seed=4)
    want = scattered(scores, settings, 1).softmax(-1)[0]
    count = 20_000
    uniform = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = draw(scores.expand(count, V), settings, uniform)
    seen = torch.bincount(drawn, minlength=V)
    assert seen[want == 0].sum() == 0
    likely = want > 0
    squared = ((seen - count * want)[likely] ** 2 / (count * want)[likely]).sum()
    # 99.9 % of chi-square with at most 7 degrees of freedom.
    assert squared < 24.3


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_a_draw_never_falls_on_what_has_no_probability(uniform):
    scores = torch.full((1, 5), -math.inf)
    scores[0, 1], scores[0, 3] = 0.0, 1.0
    chosen = inverse_cdf(scores, torch.tensor([uniform], dtype=torch.float64))
    assert chosen.item() in (1, 3)
