"""Recordings in, 16 kHz mono samples out; and one clear line where that is impossible."""

import io
import struct
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch

from xattn.errors import (
    InvalidSourceError,
    MissingExtraError,
    SourceNotFoundError,
    UnreadableSourceError,
    UsageError,
)
from xattn.inputs.audio import read_audio


def tone(rate: int, seconds: float = 1.0, hertz: float = 440.0) -> np.ndarray:
    time = np.arange(int(rate * seconds)) / rate
    return (0.5 * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def loudest_hertz(samples: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax() * 16000 / len(samples))


def encode_with_pyav(path: Path, codec: str, rate: int, *, video: bool = False) -> None:
    with av.open(str(path), "w") as container:
        picture = container.add_stream("mpeg4", rate=10) if video else None
        stream = container.add_stream(codec, rate=rate, layout="stereo")
        if picture is not None:
            picture.width, picture.height, picture.pix_fmt = 64, 64, "yuv420p"
            for _ in range(10):
                image = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
                container.mux(picture.encode(image))
            container.mux(picture.encode(None))
        samples = np.stack([tone(rate), tone(rate)])
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
        frame.rate = rate
        converter = av.AudioResampler(
            format=stream.format, layout="stereo", rate=rate, frame_size=stream.frame_size
        )
        for piece in [*converter.resample(frame), *converter.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("suffix", "subtype"),
    [
        ("wav", "PCM_16"),
        ("wav", "PCM_24"),
        ("wav", "PCM_U8"),
        ("wav", "ULAW"),
        ("wav", "FLOAT"),
        ("flac", "PCM_16"),
        ("ogg", "VORBIS"),
        ("mp3", "MPEG_LAYER_III"),
        ("aiff", "PCM_16"),
    ],
)
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_a_tone_survives_every_format_and_rate(
    tmp_path: Path, suffix: str, subtype: str, rate: int
) -> None:
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, np.stack([tone(rate), tone(rate)], axis=1), rate, subtype=subtype)
    audio = read_audio(path)
    assert audio.sample_rate == 16000
    assert audio.samples_T.dtype == np.float32
    assert audio.label == path.name
    # mp3 frames are whole: its decoders may leave up to two frames of padding.
    assert audio.seconds == pytest.approx(1.0, abs=0.15 if suffix == "mp3" else 1e-3)
    assert loudest_hertz(audio.samples_T) == pytest.approx(440.0, abs=2.0)
    assert np.abs(audio.samples_T).max() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("name", "codec", "rate", "video"),
    [
        ("talk.m4a", "aac", 44100, False),
        ("talk.webm", "libopus", 48000, False),
        ("film.mp4", "aac", 48000, True),
        ("talk.mka", "ac3", 44100, False),
    ],
)
def test_formats_that_only_pyav_knows(
    tmp_path: Path, name: str, codec: str, rate: int, video: bool
) -> None:
    path = tmp_path / name
    encode_with_pyav(path, codec, rate, video=video)
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.read(path)
    audio = read_audio(path)
    assert audio.seconds == pytest.approx(1.0, abs=0.15)
    assert loudest_hertz(audio.samples_T) == pytest.approx(440.0, abs=2.0)
    assert np.abs(audio.samples_T[4000:12000]).max() == pytest.approx(0.5, abs=0.05)


def test_resampling_agrees_with_ffmpeg(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    # Band-limited noise: below 3 kHz the two filters must agree, at the band edge they may differ.
    spectrum = np.fft.rfft(rng.normal(size=44100))
    spectrum[3000:] = 0
    noise = np.fft.irfft(spectrum)
    noise = (noise / np.abs(noise).max()).astype(np.float32)
    frame = av.AudioFrame.from_ndarray(noise[None], format="flt", layout="mono")
    frame.rate = 44100
    resampler = av.AudioResampler(format="flt", layout="mono", rate=16000)
    pieces = [piece.to_ndarray()[0] for piece in resampler.resample(frame)]
    pieces += [piece.to_ndarray()[0] for piece in resampler.resample(None)]
    expected = np.concatenate(pieces)
    actual = read_audio(noise, sample_rate=44100).samples_T
    assert len(actual) == 16000
    middle = slice(1000, 15000)
    assert np.abs(actual[middle] - expected[middle]).max() < 2e-3


def test_every_kind_of_source_gives_the_same_samples(tmp_path: Path) -> None:
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(16000), 16000, subtype="FLOAT")
    content = path.read_bytes()
    expected = tone(16000)
    with path.open("rb") as file:
        sources = [path, str(path), content, bytearray(content), memoryview(content), file]
        sources += [io.BytesIO(content), expected, torch.from_numpy(expected)]
        audios = [read_audio(source) for source in sources]
    for audio in audios:
        np.testing.assert_array_equal(audio.samples_T, expected)
    assert len({audio.digest() for audio in audios}) == 1


def test_a_pipe_that_cannot_seek_is_read(tmp_path: Path) -> None:
    content = io.BytesIO()
    soundfile.write(content, tone(16000), 16000, format="FLAC")

    class Pipe(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            return content.getvalue()

        def seekable(self) -> bool:
            return False

    assert read_audio(Pipe()).seconds == 1.0


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        ("int8", 64, 0.5),
        ("uint8", 192, 0.5),
        ("int16", -16384, -0.5),
        ("int32", 2**30, 0.5),
        ("float16", 0.5, 0.5),
        ("float64", 0.5, 0.5),
    ],
)
def test_integer_arrays_are_scaled_by_their_range(
    dtype: str, value: float, expected: float
) -> None:
    assert read_audio(np.full(400, value, dtype=dtype)).samples_T[0] == expected
    tensor = torch.full((400,), value, dtype=getattr(torch, dtype))
    assert read_audio(tensor).samples_T[0] == expected


def test_bfloat16_and_leaf_tensors() -> None:
    assert read_audio(torch.full((400,), 0.5, dtype=torch.bfloat16)).samples_T[0] == 0.5
    assert read_audio(torch.full((400,), 0.5, requires_grad=True)).samples_T[0] == 0.5


def test_channels_are_averaged_whichever_axis_they_are() -> None:
    left, right = np.full(400, 0.5, np.float32), np.full(400, -0.25, np.float32)
    for stereo in (np.stack([left, right]), np.stack([left, right], axis=1)):
        np.testing.assert_array_equal(read_audio(stereo).samples_T, np.full(400, 0.125))


def test_the_digest_tells_rates_and_samples_apart() -> None:
    samples = tone(16000)
    digests = {read_audio(samples, sample_rate=rate).digest() for rate in (8000, 16000, 22050)}
    digests.add(read_audio(samples[:-1]).digest())
    assert len(digests) == 4
    canonical = read_audio(samples).canonical_bytes
    assert struct.unpack("<I", canonical[:4]) == (16000,)
    np.testing.assert_array_equal(np.frombuffer(canonical[4:], "<f4"), samples)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match=r"no-such\.wav"):
        read_audio(tmp_path / "no-such.wav")


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableSourceError, match="is a directory"):
        read_audio(tmp_path)


@pytest.mark.parametrize("name", ["notes.wav", "notes.mp3", "notes.raw", "notes"])
def test_text_is_not_audio_whatever_its_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("Dear all, please find the minutes attached.\n" * 50)
    with pytest.raises(UnreadableSourceError, match=name):
        read_audio(path)


def test_a_video_without_sound_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "silent.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(5):
            image = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(image))
        container.mux(stream.encode(None))
    with pytest.raises(UnreadableSourceError, match="no audio track"):
        read_audio(path)


def test_empty_sources_are_refused(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.wav"
    nothing.touch()
    header = tmp_path / "header.wav"
    soundfile.write(header, np.empty(0, np.float32), 16000)
    for source in (nothing, header, b"", np.empty(0, np.float32), np.empty((2, 0)), torch.empty(0)):
        with pytest.raises(InvalidSourceError, match=r"empty|no samples"):
            read_audio(source)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_counted_and_placed(tmp_path: Path, value: float) -> None:
    samples = tone(16000)
    samples[[4000, 8000, 8001]] = value
    message = r"3 of 16000 are NaN or infinite, the first at 0\.250 s \(sample 4000\)"
    path = tmp_path / "bad.wav"
    soundfile.write(path, samples, 16000, subtype="FLOAT")
    for source in (samples, torch.from_numpy(samples), path):
        with pytest.raises(InvalidSourceError, match=message):
            read_audio(source)


def test_a_float64_beyond_float32_is_reported_not_turned_into_infinity() -> None:
    with pytest.raises(InvalidSourceError, match="1 of 400"):
        read_audio(np.r_[np.zeros(399), 1e300])


@pytest.mark.parametrize("shape", [(), (2, 3, 4), (400, 400), (100, 200)])
def test_arrays_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="shape"):
        read_audio(np.zeros(shape, np.float32))


@pytest.mark.parametrize("dtype", ["int64", "uint16", "bool", "complex64", "U1"])
def test_arrays_of_other_dtypes_are_refused(dtype: str) -> None:
    with pytest.raises(UsageError, match="dtype"):
        read_audio(np.zeros(400, dtype))


@pytest.mark.parametrize("rate", [0, -16000, 999, 10**7, 16000.0, "16k", True])
def test_a_wrong_rate_is_refused(rate: object) -> None:
    with pytest.raises(UsageError, match="sample_rate"):
        read_audio(tone(16000), sample_rate=rate)  # type: ignore[arg-type]


def test_a_rate_beside_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="left out for files"):
        read_audio(tmp_path / "talk.wav", sample_rate=8000)


@pytest.mark.parametrize("source", [None, 3, [0.0, 0.1], io.StringIO("text")])
def test_other_objects_are_refused(source: object) -> None:
    with pytest.raises(UsageError, match="source"):
        read_audio(source)  # type: ignore[arg-type]


def test_a_truncated_file_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "cut.wav"
    soundfile.write(path, tone(16000), 16000)
    path.write_bytes(path.read_bytes()[:16044])
    with pytest.warns(UserWarning, match=r"'cut.wav' is cut short: its last 0\.50 s"):
        assert read_audio(path).seconds == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("suffix", ["flac", "mp3"])
def test_a_compressed_file_that_is_cut_says_so(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut.{suffix}"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16000 * 3).astype(np.float32)
    soundfile.write(path, noise, 16000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.warns(UserWarning, match="is cut short|is damaged"):
        assert read_audio(path).seconds < 2.5


def test_missing_packages_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(8000), 8000)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    assert loudest_hertz(read_audio(path).samples_T) == pytest.approx(440.0, abs=2.0)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"xattn\[audio\]"):
        read_audio(path)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "soxr", None)
    with pytest.raises(MissingExtraError, match=r"8000 Hz .*xattn\[audio\]"):
        read_audio(path)


def test_samples_of_another_scale_are_remarked_on() -> None:
    integers = (tone(16000) * 32767).astype(np.float32)
    with pytest.warns(UserWarning, match="full scale is 1: divide .* by 32768"):
        read_audio(integers)
