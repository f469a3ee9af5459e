"""The searches on a model whose every prefix has logits of its own, against exhaustive twins."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from tree import TreeNetwork, logits_of, memory

from xattn.decoding import Hypothesis, Request, Settings, decode, stream
from xattn.decoding.batch import plan
from xattn.decoding.search import course_of
from xattn.errors import PromptError, UsageError, XattnError

V, EOS = 5, 0


def logprobs_of(prompt, tokens, label="m"):
    """Log-probabilities of ``tokens`` after ``prompt``."""
    found = []
    for n, token in enumerate(tokens):
        logits = logits_of(V, label, (*prompt, *tokens[:n]))
        found.append(logits.log_softmax(-1)[token].item())
    return found


def all_sequences(length):
    """Every sequence that ends with EOS, or at ``length`` tokens."""
    for n in range(1, length + 1):
        for head in itertools.product([t for t in range(V) if t != EOS], repeat=n - 1):
            yield (*head, EOS)
    yield from itertools.product([t for t in range(V) if t != EOS], repeat=length)


def ranked(prompt, length, penalty, *, count_eos, label="m"):
    scored = []
    for tokens in all_sequences(length):
        counted = len(tokens) - (tokens[-1] == EOS and not count_eos)
        total = sum(logprobs_of(prompt, tokens, label))
        # What C makes of a division by pow(0, penalty).
        empty = total if penalty == 0 else -math.inf if penalty > 0 else 0.0
        scored.append((total / counted**penalty if counted else empty, tokens))
    return sorted(scored, reverse=True)


def request(*prompt, label="m", seed=None):
    return Request(prompt, (memory(label),), seed)


MIXED = [request(1), request(2, 3, 1, label="n"), request(4, 4, label="o"), request(1, label="p")]


def test_greedy_takes_the_likeliest_token_every_time():
    (found,) = decode(TreeNetwork(V), [request(1, 2)], Settings(max_new_tokens=6))[0]
    for n, token in enumerate(found.tokens):
        assert token == logits_of(V, "m", (1, 2, *found.tokens[:n])).argmax().item()
    assert found.logprobs == pytest.approx(logprobs_of((1, 2), found.tokens), abs=1e-5)
    assert found.score == pytest.approx(sum(found.logprobs) / len(found.tokens))


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("patience", [None, 1.0])
@pytest.mark.parametrize("count_eos", [None, True, False])
def test_wide_beams_find_the_best_of_all_sequences(penalty, patience, count_eos):
    width, length = 300, 4
    settings = Settings(
        num_beams=width,
        max_new_tokens=length,
        length_penalty=penalty,
        early_stopping="never",
        # Without a length penalty, patience stops at the first finished best beam.
        patience=None if patience is None or penalty == 0 else patience,
        num_return_sequences=8,
        count_eos=count_eos,
    )
    counted = settings.patience is None if count_eos is None else count_eos
    (found,) = decode(TreeNetwork(V), [request(3)], settings)
    best = ranked((3,), length, penalty, count_eos=counted)[:8]
    assert [h.tokens for h in found] == [tokens for _, tokens in best]
    assert [h.score for h in found] == pytest.approx([score for score, _ in best], abs=1e-5)
    for hypothesis in found:
        assert hypothesis.logprobs == pytest.approx(logprobs_of((3,), hypothesis.tokens), abs=1e-5)
        assert hypothesis.finish == ("eos" if hypothesis.tokens[-1] == EOS else "length")


ALL_KINDS = [
    Settings(max_new_tokens=7),
    Settings(max_new_tokens=7, num_beams=3, num_return_sequences=2),
    Settings(max_new_tokens=7, num_beams=3, patience=1.5, num_return_sequences=3),
    Settings(max_new_tokens=7, num_beams=2, do_sample=True, num_return_sequences=2, seed=5),
    Settings(max_new_tokens=7, do_sample=True, num_return_sequences=3, seed=5),
    Settings(max_length=8, repetition_penalty=1.4, no_repeat_ngram_size=2, min_length=4),
    Settings(max_length=8, num_beams=3, repetition_penalty=1.4, forced_eos_token_id=(0,)),
    Settings(max_new_tokens=7, forced_bos_token_id=3, begin_suppress_tokens=(1, 2), logprobs=2),
]


@pytest.mark.parametrize("settings", ALL_KINDS)
def test_a_batch_of_unequal_requests_equals_one_at_a_time(settings):
    together = decode(TreeNetwork(V), MIXED, settings)
    alone = [decode(TreeNetwork(V), [one], settings)[0] for one in MIXED]
    assert together == alone
    assert len({h.tokens for found in together for h in found}) > len(MIXED) - 1
    reversed_batch = decode(TreeNetwork(V), MIXED[::-1], settings)
    assert reversed_batch[::-1] == alone


@pytest.mark.parametrize("settings", ALL_KINDS[:5])
def test_finished_requests_leave_the_batch(settings):
    network = TreeNetwork(V)
    decode(network, MIXED, settings)
    rows = network.rows_of_steps
    per_request = settings.num_beams if settings.num_beams > 1 else settings.num_return_sequences
    assert rows[0] == len(MIXED)
    assert rows[1] <= len(MIXED) * per_request
    assert rows[-1] < rows[1]
    assert rows[1:] == sorted(rows[1:], reverse=True)


def test_samples_follow_their_seeds_and_nothing_else():
    settings = Settings(
        do_sample=True, max_new_tokens=6, num_return_sequences=3, seed=11, top_k=0, eos_token_id=()
    )
    three = decode(TreeNetwork(V), [request(1)], settings)[0]
    assert len({h.tokens for h in three}) == 3
    again = decode(TreeNetwork(V), [request(1)], settings)[0]
    assert three == again
    one = decode(TreeNetwork(V), [request(1)], replace(settings, num_return_sequences=1))[0]
    assert one == three[:1]
    other = decode(TreeNetwork(V), [request(1)], replace(settings, seed=12))[0]
    assert [h.tokens for h in other] != [h.tokens for h in three]
    own = decode(TreeNetwork(V), [request(1, seed=12)], settings)[0]
    assert own == other
    fresh = replace(settings, seed=None, max_new_tokens=30)
    drawn = [decode(TreeNetwork(V), [request(1)], fresh)[0][0].tokens for _ in range(2)]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("beams", [1, 3])
def test_a_row_that_is_forced_leaves_the_others_their_truncation(beams):
    # forced_bos_token_id acts on prompts of one token, so that rows differ in what they may take.
    settings = Settings(
        do_sample=True, top_k=2, num_beams=beams, max_new_tokens=5, forced_bos_token_id=3
    )
    for seed in range(20):
        free = request(2, 3, seed=seed)
        alone = decode(TreeNetwork(V), [free], settings)[0]
        beside = decode(TreeNetwork(V), [free, request(1, seed=7)], settings)[0]
        assert [h.tokens for h in beside] == [h.tokens for h in alone]


@pytest.mark.parametrize("beams", [1, 2])
def test_samples_follow_the_model(beams):
    """First tokens of many samples against the softmax, by chi-square."""
    count = 3000
    settings = Settings(do_sample=True, num_beams=beams, max_new_tokens=1, eos_token_id=())
    found = decode(TreeNetwork(V), [request(4, seed=n) for n in range(count)], settings)
    seen = torch.bincount(torch.tensor([f[0].tokens[0] for f in found]), minlength=V)
    want = logits_of(V, "m", (4,)).softmax(-1)
    if beams == 2:
        # The better one of two different tokens.
        pairs = itertools.permutations(range(V), 2)
        better = torch.zeros(V)
        for a, b in pairs:
            better[a if want[a] > want[b] else b] += want[a] * want[b] / (1 - want[a])
        want = better
    possible = want > 0
    assert seen[~possible].sum() == 0
    squared = ((seen - count * want)[possible] ** 2 / (count * want)[possible]).sum()
    assert squared < 18.5  # 99.9 % with 4 degrees of freedom


@pytest.mark.parametrize("settings", [Settings(max_new_tokens=9), ALL_KINDS[5]])
def test_streamed_tokens_are_those_of_decode(settings):
    for one in MIXED:
        network = TreeNetwork(V)
        tokens = stream(network, one, settings)
        first = next(tokens)
        assert len(network.rows_of_steps) == 1  # no step is run ahead of the token
        assert (first, *tokens) == decode(TreeNetwork(V), [one], settings)[0][0].tokens


def test_streamed_samples_are_those_of_decode():
    settings = Settings(max_new_tokens=9, do_sample=True, seed=3)
    tokens = tuple(stream(TreeNetwork(V), request(1), settings))
    assert tokens == decode(TreeNetwork(V), [request(1)], settings)[0][0].tokens


def test_processors_see_each_rows_own_tokens_under_beams():
    """Bans whatever token came last; a beam with a stranger's history would repeat itself."""

    def no_doubles(tokens, logits_RV):
        for row, own in enumerate(tokens):
            if own:
                logits_RV[row, own[-1]] = -math.inf
        return logits_RV

    settings = Settings(num_beams=4, num_return_sequences=4, max_new_tokens=8, eos_token_id=())
    plain = decode(TreeNetwork(V), MIXED, settings)
    found = decode(TreeNetwork(V), MIXED, settings, processors=[no_doubles])

    def doubles(hypotheses):
        return sum(a == b for h in hypotheses for a, b in itertools.pairwise(h.tokens))

    assert sum(map(doubles, plain)) > 0
    assert sum(map(doubles, found)) == 0
    kept = Settings(
        num_beams=4, num_return_sequences=4, max_new_tokens=8, eos_token_id=(), patience=1.0
    )
    assert sum(map(doubles, decode(TreeNetwork(V), MIXED, kept, processors=[no_doubles]))) == 0


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("wanted", [2, V, 10 * V])
def test_top_logprobs_are_the_models_likeliest(beams, wanted):
    settings = Settings(max_new_tokens=5, num_beams=beams, logprobs=wanted)
    for found in decode(TreeNetwork(V), MIXED[:1], settings)[0]:
        assert len(found.top_logprobs) == len(found.tokens)
        for n, top in enumerate(found.top_logprobs):
            want = logits_of(V, "m", (1, *found.tokens[:n])).log_softmax(-1)
            want = want.topk(min(wanted, V))
            assert [token for token, _ in top] == want.indices.tolist()
            assert [logprob for _, logprob in top] == pytest.approx(want.values.tolist(), abs=1e-5)


class Letters:
    """Token n is two letters, so that stop strings begin and end within tokens."""

    words = ("<s>", "ab", "bc", "ca", "xa")

    def decode(self, ids, *, skip_special=True):
        return "".join(self.words[i] for i in ids if i or not skip_special)


@pytest.mark.parametrize("settings", [ALL_KINDS[0], ALL_KINDS[1], ALL_KINDS[2], ALL_KINDS[4]])
def test_stop_strings_end_sequences_and_are_cut_from_the_text(settings):
    settings = replace(settings, stop_strings=("bx", "cc"), eos_token_id=(), max_new_tokens=20)
    tokenizer, stopped = Letters(), 0
    for found in decode(TreeNetwork(V), MIXED, settings, tokenizer):
        for hypothesis in found:
            text = tokenizer.decode(hypothesis.tokens)
            before = tokenizer.decode(hypothesis.tokens[:-1])
            assert not any(stop in before for stop in settings.stop_strings)
            if hypothesis.finish == "stop":
                stopped += 1
                cut = min(text.find(s) for s in settings.stop_strings if s in text)
                assert hypothesis.text == text[:cut]
            else:
                assert hypothesis.text is None
                assert not any(stop in text for stop in settings.stop_strings)
    assert stopped >= 3


def test_limits_of_the_decoder():
    network = TreeNetwork(V, eos=(), limit=6)
    ask = [request(1, 2, 3, 4)]
    assert len(decode(network, ask, Settings())[0][0].tokens) == 2
    assert len(decode(network, ask, Settings(max_new_tokens=2))[0][0].tokens) == 2
    with pytest.raises(PromptError, match=r"max_new_tokens=3 .* 7 positions.* has 6; at most 2"):
        decode(network, ask, Settings(max_new_tokens=3))
    with pytest.raises(PromptError, match=r"max_length=9 .*has 6"):
        decode(network, ask, Settings(max_length=9))
    cut = Settings.resolve({"max_length": 9})
    assert len(decode(network, ask, cut)[0][0].tokens) == 2
    with pytest.raises(PromptError, match=r"7 tokens, but the decoder has 6 positions"):
        decode(network, [request(*[1] * 7)], Settings())
    with pytest.raises(PromptError, match=r"4 tokens.* `max_length` \(4\)"):
        decode(network, ask, Settings(max_length=4))


@pytest.mark.parametrize(
    ("requests", "settings", "error", "words"),
    [
        ([], Settings(), UsageError, "`requests` must be at least one"),
        ([request()], Settings(), PromptError, "0 tokens"),
        ([request(1), request(V)], Settings(), PromptError, f"token {V}.*0 to {V - 1}"),
        ([request(1)], Settings(suppress_tokens=tuple(range(V))), UsageError, "leave no token"),
        ([request(1)], Settings(eos_token_id=(V,)), UsageError, "`eos_token_id`"),
        ([request(1)], Settings(suppress_tokens=(V,)), UsageError, "`suppress_tokens` .* 0 to 4"),
        ([request(1)], Settings(begin_suppress_tokens=(V,)), UsageError, "`begin_suppress_tok"),
        ([request(1)], Settings(bad_words_ids=((1, V),)), UsageError, "`bad_words_ids`"),
        ([request(1)], Settings(forced_bos_token_id=V), UsageError, "`forced_bos_token_id`"),
        ([request(1)], Settings(forced_eos_token_id=(V,)), UsageError, "`forced_eos_token_id`"),
        ([request(1)], Settings(stop_strings=("x",)), UsageError, "no tokenizer"),
    ],
)
@pytest.mark.parametrize("kind", [{}, {"num_beams": 2}, {"num_beams": 2, "patience": 1.0}])
def test_requests_that_cannot_be_run(requests, settings, error, words, kind):
    with pytest.raises(error, match=words):
        decode(TreeNetwork(V), requests, replace(settings, **kind))


@pytest.mark.parametrize("settings", ALL_KINDS[:5])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_an_error(settings, bad):
    class Broken(TreeNetwork):
        def step(self, *arguments, **more):
            logits_RV = super().step(*arguments, **more)
            if len(self.rows_of_steps) == 2:
                logits_RV[-1, 2] = bad
            return logits_RV

    with pytest.raises(XattnError, match="not finite at new token 2") as raised:
        decode(Broken(V), MIXED, settings)
    assert not isinstance(raised.value, UsageError)


@pytest.mark.parametrize("kind", [{}, {"do_sample": True}, {"num_beams": 3, "patience": 1.0}])
def test_logits_are_asked_of_the_tokens_that_are_allowed_where_these_are_few(kind):
    def every_third(request, tokens_T):
        first = (int(tokens_T[-1]) + request) % 3
        return [first, first + 3] if len(tokens_T) % 2 else list(range(V))

    vocab = 64
    settings = Settings(max_new_tokens=6, min_new_tokens=6, **kind)
    settings = replace(settings, prefix_allowed_tokens_fn=every_third)
    asked, whole = TreeNetwork(vocab), TreeNetwork(vocab)
    found = decode(asked, MIXED, settings)
    whole.step = lambda *arguments, only=None: TreeNetwork.step(whole, *arguments)
    assert decode(whole, MIXED, settings) == found
    assert asked.restricted
    assert not whole.restricted
    assert all(len(only) <= vocab // 8 for only in asked.restricted)


@pytest.mark.parametrize("kind", [{}, {"num_beams": 2}])
@pytest.mark.parametrize("allowed", [[], [V], [-1], [1.5]])
def test_a_function_that_allows_nothing_or_what_is_no_token_is_named(kind, allowed):
    settings = Settings(prefix_allowed_tokens_fn=lambda request, tokens: allowed, **kind)
    with pytest.raises(UsageError, match="prefix_allowed_tokens_fn returns for request 0 after"):
        decode(TreeNetwork(V), MIXED, settings)


def test_forced_tokens_are_the_only_ones_whose_logits_are_asked_for():
    network = TreeNetwork(64)
    settings = Settings(forced_bos_token_id=5, forced_eos_token_id=(2, 3), max_new_tokens=4)
    [[hypothesis]] = decode(network, [request(1)], replace(settings, eos_token_id=()))
    assert network.restricted == [[5], [2, 3]]
    assert hypothesis.tokens[0] == 5
    assert hypothesis.tokens[-1] in (2, 3)


def test_streaming_is_for_one_sequence():
    for settings in (Settings(num_beams=2), Settings(do_sample=True, num_return_sequences=2)):
        with pytest.raises(UsageError, match="stream"):
            stream(TreeNetwork(V), request(1), settings)
    with pytest.raises(PromptError, match="0 tokens"):
        stream(TreeNetwork(V), request(), Settings())


def test_several_end_tokens():
    network = TreeNetwork(V, eos=(0, 2))
    settings = Settings(num_beams=3, num_return_sequences=3, max_new_tokens=8)
    for found in decode(network, MIXED, settings):
        for hypothesis in found:
            ends = [token in (0, 2) for token in hypothesis.tokens]
            assert not any(ends[:-1])
            assert ends[-1] == (hypothesis.finish == "eos")


def test_hypotheses_are_plain_values():
    found = decode(TreeNetwork(V), [request(1)], Settings(max_new_tokens=2))[0][0]
    assert isinstance(found, Hypothesis)
    assert all(type(token) is int for token in found.tokens)
    assert all(type(logprob) is float for logprob in found.logprobs)


@pytest.mark.parametrize("settings", ALL_KINDS)
def test_a_course_decides_for_whoever_runs_the_decoder(settings):
    """Two courses on the rows of one network, which is run on both at once."""
    network, pair = TreeNetwork(V), [request(1), request(4, label="o")]
    courses = [
        course_of(network, plan(network.spec, [one], settings), settings, None) for one in pair
    ]
    state = network.start([one.memories for one in pair])
    counts = torch.tensor([len(one.prompt) for one in pair])
    logits_RV = network.step(torch.tensor([[1], [4]]), state, counts)
    held = [1, 1]
    while any(held):
        rows, tokens, first = [], [], 0
        for n, course in enumerate(courses):
            if held[n]:
                move = course.advance(logits_RV[first : first + held[n]])
                rows += [] if move is None else [first + row for row in move.rows]
                tokens += [] if move is None else move.tokens_R.tolist()
                first, held[n] = first + held[n], 0 if move is None else len(move.rows)
        if rows:
            state.reorder(rows)
            logits_RV = network.step(torch.tensor(tokens)[:, None], state)
    alone = [decode(TreeNetwork(V), [one], settings)[0] for one in pair]
    assert [course.hypotheses()[0] for course in courses] == alone
