"""Our log-mel frames against the ones Whisper's other implementations compute."""

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank

from xattn.errors import UsageError
from xattn.inputs.audio import (
    cut_window,
    file_log_mel,
    log_mel,
    mel_filters,
    window_log_mel,
)


def speech_like(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise and gliding tones with pauses, so that quiet frames meet the eight-decade floor."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * 16000)) / 16000
    envelope = np.clip(np.sin(2 * np.pi * 0.7 * time), 0, None) ** 2
    glide = np.sin(2 * np.pi * (200 * time + 30 * time**2))
    return (envelope * (0.3 * glide + 0.05 * rng.normal(size=len(time)))).astype(np.float32)


def faster_whisper_log_mel(samples: np.ndarray, mel_bins: int) -> np.ndarray:
    """faster-whisper's formula: one hop of zeros behind, numpy's FFT, floor of the whole file."""
    wave = np.pad(np.pad(samples, (0, 160)), (200, 200), mode="reflect")
    window = np.hanning(401)[:-1].astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(wave, 400)[::160] * window
    power = np.abs(np.fft.rfft(frames, axis=-1).astype(np.complex64).T[:, :-1]) ** 2
    filters = mel_filter_bank(201, mel_bins, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    log = np.log10(np.clip(filters.T.astype(np.float32) @ power, 1e-10, None))
    return (np.maximum(log, log.max() - 8.0) + 4.0) / 4.0


@pytest.mark.parametrize("mel_bins", [80, 128])
def test_mel_filters_equal_transformers(mel_bins: int) -> None:
    expected = mel_filter_bank(201, mel_bins, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    np.testing.assert_allclose(mel_filters(mel_bins).numpy(), expected.T, rtol=0, atol=1e-8)


@pytest.mark.parametrize("mel_bins", [80, 128])
@pytest.mark.parametrize("seconds", [0.01, 1.2345, 11.0, 30.0])
def test_a_window_equals_the_feature_extractor(mel_bins: int, seconds: float) -> None:
    samples = speech_like(seconds)
    extractor = WhisperFeatureExtractor(feature_size=mel_bins)
    expected = extractor(samples, sampling_rate=16000, return_tensors="pt").input_features[0]
    actual = window_log_mel(samples, mel_bins)
    assert actual.shape == (mel_bins, 3000)
    assert (actual - expected).abs().max() <= 1e-5


def test_silence_and_a_click() -> None:
    click = np.zeros(16000, np.float32)
    click[8000] = 1.0
    extractor = WhisperFeatureExtractor()
    for samples in (np.zeros(16000, np.float32), click):
        expected = extractor(samples, sampling_rate=16000, return_tensors="pt").input_features[0]
        assert (window_log_mel(samples, 80) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("mel_bins", [80, 128])
@pytest.mark.parametrize("seconds", [0.3, 29.999, 30.0, 71.23])
def test_a_file_equals_openai_and_faster_whisper(mel_bins: int, seconds: float) -> None:
    samples = speech_like(seconds, seed=2)
    actual = file_log_mel(samples, mel_bins)
    content = len(samples) // 160
    assert actual.shape == (mel_bins, content)
    # openai-whisper: 30 s of silence behind, one transform, the last 3000 frames are not content.
    extractor = WhisperFeatureExtractor(feature_size=mel_bins)
    padded = np.pad(samples, (0, 480_000))
    openai = extractor._torch_extract_fbank_features(padded)[:, :content]
    assert np.abs(actual.numpy() - openai).max() <= 1e-5
    faster = faster_whisper_log_mel(samples, mel_bins)[:, :content]
    # Which of the two is nearer to float64 depends on the processor; we are as near as they agree.
    assert np.abs(actual.numpy() - faster).max() <= np.abs(openai - faster).max() + 1e-5


def test_windows_are_cut_and_filled_with_zeros() -> None:
    mel = torch.arange(2 * 70.0).reshape(2, 70)
    torch.testing.assert_close(cut_window(mel, 0, 50, 50), mel[:, :50])
    last = cut_window(mel, 50, 50, 50)
    torch.testing.assert_close(last[:, :20], mel[:, 50:])
    assert not last[:, 20:].any()
    clipped = cut_window(mel, 10, 5, 50)
    torch.testing.assert_close(clipped[:, :5], mel[:, 10:15])
    assert not clipped[:, 5:].any()


def test_one_transform_in_blocks_equals_one_in_a_piece() -> None:
    samples = torch.from_numpy(speech_like(65.0))
    window = torch.hann_window(400)
    spectrum = torch.stft(samples, 400, 160, window=window, return_complex=True)[:, :-1]
    log = (mel_filters(80) @ spectrum.abs() ** 2).clamp(min=1e-10).log10()
    expected = (torch.maximum(log, log.max() - 8.0) + 4.0) / 4.0
    torch.testing.assert_close(log_mel(samples, 80), expected, rtol=0, atol=1e-6)


def test_audio_that_does_not_fit_one_window_is_refused() -> None:
    with pytest.raises(UsageError, match="480000 samples"):
        window_log_mel(np.zeros(480_001, np.float32), 80)


def test_too_few_samples_and_bins_are_refused() -> None:
    with pytest.raises(UsageError, match="T >= 201"):
        log_mel(np.zeros(200, np.float32), 80)
    with pytest.raises(UsageError, match="mel_bins"):
        mel_filters(0)
