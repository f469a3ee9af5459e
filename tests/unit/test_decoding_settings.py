"""Settings: bounds, names, and what a checkpoint's generation config turns into."""

import pytest

from xattn.decoding import Settings
from xattn.errors import UsageError


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_beams": 0}, "`num_beams` must be .*at least 1, but is 0"),
        ({"num_beams": 2.0}, "`num_beams`"),
        ({"num_beams": True}, "`num_beams`"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be .*at least 1, but is 0"),
        ({"max_length": -3}, "`max_length`"),
        ({"min_new_tokens": -1}, "`min_new_tokens`"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, r"at most max_new_tokens \(8\), but is 9"),
        ({"min_length": -1}, "`min_length`"),
        ({"temperature": -1}, "`temperature` must be at least 0, but is -1"),
        ({"temperature": float("nan")}, "`temperature`"),
        ({"temperature": 0, "do_sample": True}, "`temperature` must be at least 0.0001 .*=False"),
        (
            {"temperature": 1e-9, "do_sample": True},
            "`temperature` must be at least 0.0001 .*=False",
        ),
        ({"top_k": -1}, "`top_k`"),
        ({"top_p": 2}, "`top_p` must be above 0 and at most 1, but is 2"),
        ({"top_p": 0}, "`top_p`"),
        ({"min_p": 1.5}, "`min_p`"),
        ({"typical_p": 0.0}, "`typical_p`"),
        ({"seed": "x"}, "`seed`"),
        ({"repetition_penalty": 0.0}, "`repetition_penalty`"),
        ({"no_repeat_ngram_size": -2}, "`no_repeat_ngram_size`"),
        ({"bad_words_ids": ((),)}, "`bad_words_ids`"),
        ({"bad_words_ids": [5]}, "`bad_words_ids`"),
        ({"stop_strings": ("",)}, "`stop_strings`"),
        ({"stop_strings": 5}, "`stop_strings`"),
        ({"suppress_tokens": ["a"]}, "`suppress_tokens`"),
        ({"eos_token_id": 1.5}, "`eos_token_id`"),
        ({"logprobs": -1}, "`logprobs`"),
        ({"length_penalty": float("inf")}, "`length_penalty`"),
        ({"length_penalty": -33}, "`length_penalty` must be a number between -32 and 32"),
        ({"early_stopping": "soon"}, "`early_stopping` must be True, False or 'never'"),
        ({"patience": 0}, "`patience`"),
        ({"num_return_sequences": 0}, "`num_return_sequences`"),
        ({"num_return_sequences": 2}, "at most 1 where num_beams is 1 and do_sample is False"),
        ({"num_return_sequences": 5, "num_beams": 4}, "at most 4 where num_beams is 4, but is 5"),
    ],
)
def test_bounds(settings, words):
    with pytest.raises(UsageError, match=words):
        Settings(**settings)
    with pytest.raises(UsageError, match=words):
        Settings.resolve({}, **settings)


def test_keywords_that_ask_for_what_is_done_anyway_are_taken():
    neutral = {"use_cache": True, "output_scores": False, "num_beam_groups": 1, "pad_token_id": 0}
    assert Settings.resolve({}, **neutral, num_beams=2) == Settings.resolve({}, num_beams=2)


def test_values_at_their_bounds():
    Settings(temperature=0, top_p=1, min_p=0, top_k=0, seed=None)
    Settings(do_sample=True, num_return_sequences=9)
    Settings(num_beams=4, patience=2.0, num_return_sequences=8)


def test_unknown_names_get_near_ones():
    with pytest.raises(UsageError, match=r"`num_beam` is not a setting.*did you mean `num_beams`"):
        Settings.resolve({}, num_beam=4)
    with pytest.raises(UsageError, match=r"`zzz` is not a setting.*num_beams"):
        Settings.resolve({}, zzz=1)
    with pytest.raises(UsageError, match=r"`use_cache` is not a setting.*the cache is always used"):
        Settings.resolve({}, use_cache=False)
    with pytest.raises(UsageError, match="`penalty_alpha` is a setting of transformers that"):
        Settings.resolve({}, penalty_alpha=0.6)


def test_a_generation_config_as_transformers_writes_it():
    import transformers

    config = transformers.GenerationConfig(
        max_length=200,
        min_length=10,
        num_beams=4,
        early_stopping=True,
        length_penalty=2.0,
        no_repeat_ngram_size=3,
        forced_bos_token_id=0,
        forced_eos_token_id=2,
        eos_token_id=[2, 5],
        decoder_start_token_id=2,
        bad_words_ids=[[7], [8, 9]],
        suppress_tokens=[3, 4],
        begin_suppress_tokens=[6],
        renormalize_logits=True,
        stop_strings="###",
    )
    settings = Settings.resolve(config.to_diff_dict())
    assert settings == Settings(
        max_length=200,
        strict_length=False,
        min_length=10,
        num_beams=4,
        early_stopping=True,
        length_penalty=2.0,
        no_repeat_ngram_size=3,
        forced_bos_token_id=0,
        forced_eos_token_id=(2,),
        eos_token_id=(2, 5),
        bad_words_ids=((7,), (8, 9)),
        suppress_tokens=(3, 4),
        begin_suppress_tokens=(6,),
        renormalize_logits=True,
        stop_strings=("###",),
    )
    assert Settings.resolve(config.to_dict()) == settings


def test_keywords_go_before_the_checkpoint():
    defaults = {"num_beams": 4, "max_length": 50, "top_k": 10, "forced_bos_token_id": 7}
    assert Settings.resolve(defaults, num_beams=2).num_beams == 2
    assert Settings.resolve(defaults, forced_bos_token_id=None).forced_bos_token_id is None
    assert Settings.resolve(defaults, top_k=None).top_k == 0
    assert Settings.resolve(defaults, num_beams=None).num_beams == 1
    asked = Settings.resolve(defaults, max_new_tokens=9)
    assert (asked.max_new_tokens, asked.max_length, asked.strict_length) == (9, None, True)
    assert Settings.resolve(defaults, eos_token_id=5, stop_strings="a").eos_token_id == (5,)
    assert not Settings.resolve(defaults).strict_length


def test_a_checkpoint_that_asks_for_more_than_is_run_is_heard():
    with pytest.warns(UserWarning, match=r"diversity_penalty=0\.5"):
        Settings.resolve({"diversity_penalty": 0.5, "num_beam_groups": 1, "guidance_scale": None})


@pytest.mark.parametrize(
    ("checkpoint", "call", "want"),
    [
        ({"min_length": 30}, {"min_new_tokens": 3}, {"min_length": 0, "min_new_tokens": 3}),
        ({}, {"min_new_tokens": 3, "min_length": 9}, {"min_length": 0, "min_new_tokens": 3}),
        ({"min_new_tokens": 20}, {"max_new_tokens": 5}, {"min_new_tokens": 5}),
        (
            {"num_beams": 4, "num_return_sequences": 3},
            {"num_beams": 1},
            {"num_beams": 1, "num_return_sequences": 1},
        ),
    ],
)
def test_a_checkpoints_setting_gives_way_to_the_callers(checkpoint, call, want):
    settings = Settings.resolve(checkpoint, **call)
    assert {name: getattr(settings, name) for name in want} == want


def test_early_stopping_is_a_truth_value_or_never():
    with pytest.raises(UsageError, match="early_stopping"):
        Settings(num_beams=2, early_stopping=1)


def test_asking_for_samples_without_sampling_warns():
    with pytest.warns(UserWarning, match=r"`temperature` and `top_p` without do_sample=True"):
        Settings.resolve({}, temperature=0.7, top_p=0.9)
    Settings.resolve({"do_sample": True}, temperature=0.7)
    Settings.resolve({"temperature": 0.6})
