"""Engines that did other work are found out."""

from xattn.bench.equality import agreement, followed, judge, where

ONE = [[5, 6, 7], [8, 9]]


def test_equal_outputs_pass():
    verdict = judge("same tokens", {"a": [ONE], "b": [ONE]})
    assert verdict.holds
    assert verdict.agreement == 1.0
    assert verdict.compared == ("a", "b")


def test_one_other_token_fails_and_is_named():
    verdict = judge("same tokens", {"a": [ONE], "b": [[[5, 6, 7], [8, 1]]]})
    assert not verdict.holds
    assert verdict.agreement == 4 / 5
    assert verdict.faults == ("a and b differ: answer 1, token 1: 9 against 1",)


def test_quantised_weights_may_choose_others_but_not_fewer():
    others = judge("as likely", {"a": [ONE], "b": [[[5, 6, 1], [8, 9]]]})
    assert others.holds
    assert not judge("as likely", {"a": [ONE], "b": [[[5, 1, 7], [1, 9]]]}).holds
    assert others.agreement == 4 / 5
    changed = judge("as likely", {"a": [ONE, [[5, 6, 1], [8, 9]]]})
    assert changed.holds
    assert not judge("as likely", {"a": [ONE, [[5, 6], [8, 9]]]}).holds
    fewer = judge("as likely", {"a": [ONE], "b": [[[5, 6, 7], [8]]]})
    assert fewer.faults == ("a and b made different numbers of tokens: [3, 2] and [3, 1]",)


def test_an_engine_that_changes_its_mind_fails():
    verdict = judge("same tokens", {"a": [ONE, [[5, 6, 7], [8, 1]]], "b": [ONE]})
    assert verdict.faults == ("a gave 2 different outputs: answer 1, token 1: 9 against 1",)


def test_alone_there_is_nothing_to_agree_with():
    verdict = judge("same tokens", {"a": [ONE]})
    assert verdict.holds
    assert verdict.agreement is None
    assert judge("same tokens", {}).agreement is None


def test_an_answer_follows_until_it_says_something_else():
    assert followed([[5, 6, 7], [8, 1]], ONE) == (1 + 0.5) / 2
    assert followed([[5, 6, 7], [1, 9]], ONE) == 0.5
    assert followed([[5, 6, 7, 4], [8]], ONE) == (1 + 0.5) / 2
    assert followed([], []) == 1.0


def test_answers_that_are_missing_are_no_agreement():
    assert agreement([[1, 2]], [[1]]) == 0.5
    assert agreement([[1], [2]], [[1]]) == 0.5
    assert where([[1], [2]], [[1]]) == "2 answers against 1"
    assert where([[1, 2]], [[1]]) == "answer 0: 2 tokens against 1"


def test_quantised_answers_are_as_likely_to_the_other_engine():
    said = {"a": [ONE], "b": [[[1, 2, 3], [4, 5]]]}
    scores = {
        "a": {"a": [-2.0, -1.5], "b": [-2.04, -1.46]},
        "b": {"a": [-2.1, -1.0], "b": [-2.1, -1.0]},
    }
    assert judge("as likely", said, scores).holds
    scores["b"]["a"] = [-2.1, -4.0]
    faults = judge("as likely", said, scores).faults
    said_of = "answer 1 of b has a log-probability of -4.00 a token to a"
    assert faults == (f"{said_of}, and -1.00 to itself", f"{said_of}, whose own has -1.50")
    scores["b"]["a"] = [-2.1, float("nan")]
    assert not judge("as likely", said, scores).holds
