"""Audio sources: any recording to 16 kHz mono samples, and samples to Whisper's log-mel frames.

Two ways to make log-mel frames, because Whisper implementations differ in where they pad and over
what they normalise (the loudest point of the recording sets the floor, eight decades below):

- :func:`window_log_mel`: one window of 30 s. Samples are padded with silence, and the floor is
  that of the window, as transformers does. A memory of one recording is made from this.
- :func:`file_log_mel` and :func:`cut_window`: the whole file is transformed once and windows are
  cut from it; the floor is that of the file, and a window that ends before its 30 s is filled with
  zeros of the normalised scale, as openai-whisper and faster-whisper do. Transcription uses this.

Axes: T samples, C channels, M mel bins, B frequency bins, F frames.
"""

import io
import os
import re
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xattn.errors import (
    InvalidSourceError,
    MissingExtraError,
    SourceNotFoundError,
    UnreadableSourceError,
    UsageError,
    require,
)
from xattn.memory import Hash, digest_of

SAMPLE_RATE = 16_000
FFT_SAMPLES = 400
HOP_SAMPLES = 160
FRAMES_PER_SECOND = SAMPLE_RATE // HOP_SAMPLES
WINDOW_FRAMES = 3000
MAX_CHANNELS = 64
LOUDEST = 16.0
"""Recordings that clip go a little beyond 1, and none goes this far."""
UNKNOWN_FRAMES = 2**62
"""libsndfile answers a larger number where a stream does not say its length."""
PREPROCESSING = "log-mel/1"
"""Name and version of the transform; part of a memory's key."""

Samples: TypeAlias = NDArray[np.float32]
_FileSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO
AudioSource: TypeAlias = _FileSource | NDArray[Any] | Tensor

# Half the range of each integer format: what a full-scale sample is divided by.
_INTEGER_SCALE = {"int8": 2.0**7, "uint8": 2.0**7, "int16": 2.0**15, "int32": 2.0**31}


@dataclass(frozen=True, eq=False)
class Audio:
    """A recording: mono float32 samples, nominally in [-1, 1]."""

    samples_T: Samples
    sample_rate: int
    label: str
    """The file's name, or what kind of object the samples came from."""
    _digests: dict[Hash, str] = field(default_factory=dict, repr=False)

    @property
    def seconds(self) -> float:
        """Length of the recording."""
        return len(self.samples_T) / self.sample_rate

    @property
    def canonical_bytes(self) -> bytes:
        """What a memory's key digests: rate (uint32), then samples (float32), little endian."""
        return struct.pack("<I", self.sample_rate) + self.samples_T.astype("<f4").tobytes()

    def digest(self, hash: Hash = "blake3") -> str:
        """64 hexadecimal characters over :attr:`canonical_bytes`, taken once."""
        if hash not in self._digests:
            self._digests[hash] = digest_of(self.canonical_bytes, hash=hash)
        return self._digests[hash]


def read_audio(source: AudioSource, *, sample_rate: int | None = None) -> Audio:
    """Read a recording as 16 kHz mono.

    ``source`` is a path, the bytes of a file, a binary file object (read from where it stands), or
    an array or tensor of samples: ``[T]``, or two-dimensional with its shorter axis as channels.
    Float arrays are taken as they are, integer arrays (8, 16, 32 bits) are divided by their range.
    Channels are averaged; other rates are resampled by soxr at high quality. Files are read by
    soundfile, and by PyAV (the audio track of a video, say) where soundfile does not know them.

    ``sample_rate`` in Hz belongs to arrays (default 16000); files say theirs.

    Raises :class:`SourceNotFoundError`, :class:`UnreadableSourceError` (no reader understands it),
    :class:`InvalidSourceError` (no samples, or NaN or infinite ones), :class:`UsageError` (shape,
    dtype or rate of an array), :class:`MissingExtraError`.
    """
    if isinstance(source, np.ndarray | Tensor):
        rate = SAMPLE_RATE if sample_rate is None else sample_rate
        require(_is_rate(rate), "sample_rate", "a whole number from 1000 to 768000 (Hz)", rate)
        label, samples_CT = "audio array", _from_array(source)
    else:
        require(
            sample_rate is None, "sample_rate", "left out for files, which say theirs", sample_rate
        )
        label, file = _open(source)
        with file:
            samples_CT, rate = _decode(file, label)
    _check(samples_CT, int(rate), label)
    mono_T = samples_CT[0] if len(samples_CT) == 1 else samples_CT.mean(axis=0, dtype=np.float32)
    return Audio(_resample(mono_T, int(rate), label), SAMPLE_RATE, label)


def _is_rate(value: Any) -> bool:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole and 1000 <= value <= 768_000


def _from_array(source: NDArray[Any] | Tensor) -> Samples:
    if isinstance(source, Tensor):
        source = source.detach().cpu()
        source = (source.float() if source.dtype == torch.bfloat16 else source).numpy()
    dtype = source.dtype
    if dtype.name in _INTEGER_SCALE:
        centre = _INTEGER_SCALE["uint8"] if dtype.name == "uint8" else 0.0
        # In float64, so that int32 keeps all its bits until the division.
        samples = ((source.astype(np.float64) - centre) / _INTEGER_SCALE[dtype.name]).astype(
            np.float32
        )
    elif dtype.kind == "f":
        # A float64 beyond float32's range becomes infinite here and is reported by `_check`.
        with np.errstate(over="ignore"):
            samples = source.astype(np.float32)
    else:
        bound = f"floating point or one of {', '.join(_INTEGER_SCALE)}"
        raise UsageError(f"the audio array's dtype must be {bound}, but is {dtype.name} instead.")
    if samples.ndim == 1:
        return samples[None, :]
    if samples.size == 0 and samples.ndim == 2:
        return samples.reshape(1, 0)
    if (
        samples.ndim != 2
        or samples.shape[0] == samples.shape[1]
        or min(samples.shape) > MAX_CHANNELS
    ):
        raise UsageError(
            "the audio array's shape must be [samples], [channels, samples] or [samples, channels] "
            f"with at most {MAX_CHANNELS} channels, but is {list(samples.shape)} instead."
        )
    return samples if samples.shape[0] < samples.shape[1] else samples.T


def _open(source: _FileSource) -> tuple[str, BinaryIO]:
    """A label and a seekable file; the caller closes it."""
    if isinstance(source, bytes | bytearray | memoryview):
        return "the audio", io.BytesIO(bytes(source))
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.is_dir():
            raise UnreadableSourceError(f"{str(path)!r} is a directory; name an audio file.")
        try:
            return path.name, path.open("rb")
        except FileNotFoundError:
            raise SourceNotFoundError(f"there is no file {str(path)!r}.") from None
        except OSError as error:
            raise UnreadableSourceError(
                f"{str(path)!r} cannot be opened: {error.strerror}."
            ) from error
    if not hasattr(source, "read"):
        kinds = "a path, bytes, a binary file object, a numpy array or a torch tensor"
        raise UsageError(f"`source` must be {kinds}, but is a {type(source).__name__} instead.")
    content = source.read()
    if not isinstance(content, bytes):
        raise UsageError("`source` must be a file opened in binary mode, but gives text instead.")
    name = getattr(source, "name", None)
    return Path(name).name if isinstance(name, str) else "audio file", io.BytesIO(content)


def _decode(file: BinaryIO, label: str) -> tuple[Samples, int]:
    """Samples ``[C, T]`` and their rate, by the first reader that knows the format."""
    if not file.read(1):
        raise InvalidSourceError(f"{label!r} is empty (0 bytes); give a recording.")
    file.seek(0)
    try:
        import soundfile
    except ImportError:
        refusal = "soundfile is not installed"
    else:
        try:
            # A reader is asked to look at the bytes, not at the name: hence the nameless wrapper.
            with soundfile.SoundFile(_Nameless(file)) as sound:
                samples_TC = sound.read(dtype="float32", always_2d=True)
                lost = _frames_lost(sound, len(samples_TC))
                if lost > 0:
                    _warn_of_loss(label, lost, sound.samplerate)
                return np.ascontiguousarray(samples_TC.T), sound.samplerate
        except soundfile.LibsndfileError as error:
            refusal = f"soundfile: {error.error_string}"
    try:
        import av
    except ImportError:
        raise MissingExtraError("av", "audio", f"reading {label!r} ({refusal})") from None
    file.seek(0)
    try:
        with av.open(file, mode="r", metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise UnreadableSourceError(f"{label!r} has no audio track ({refusal}).")
            pieces_CT, rate = list(_frames(container, label)), container.streams.audio[0].rate
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UnreadableSourceError(
            f"{label!r} is not audio that can be read ({refusal}; PyAV: {reason}); "
            "check the file, or convert it to wav or flac."
        ) from error
    return (np.concatenate(pieces_CT, axis=1) if pieces_CT else np.empty((1, 0), np.float32)), rate


def _frames_lost(sound: Any, read: int) -> int:
    """Frames that the file's header promises and the file does not hold."""
    if read < sound.frames < UNKNOWN_FRAMES:
        return int(sound.frames - read)
    # libsndfile believes the size of a WAV file and not its header, and notes the difference.
    sizes = re.search(r"^data : (\d+) \(should be (\d+)\)", sound.extra_info, re.MULTILINE)
    if sizes is None or read == 0:
        return 0
    said, found = int(sizes[1]), int(sizes[2])
    # A recorder that was streaming writes the largest size there is.
    return round(read * (said - found) / found) if found < said < 2**31 - 2**16 else 0


def _warn_of_loss(label: str, frames: int, rate: int) -> None:
    warnings.warn(
        f"{label!r} is cut short: its last {frames / rate:.2f} s could not be read.",
        UserWarning,
        stacklevel=2,
    )


def _frames(container: Any, label: str) -> Iterator[Samples]:
    """The first audio track as float32 planes ``[C, T]`` at its own rate."""
    import av

    stream = container.streams.audio[0]
    resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
    damaged = 0
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.InvalidDataError:
            # One damaged packet costs its own few milliseconds, as in every FFmpeg-based player.
            damaged += 1
            continue
        for frame in frames:
            frame.pts = None
            yield from (_plane(piece) for piece in resampler.resample(frame))
    yield from (_plane(piece) for piece in resampler.resample(None))
    if damaged:
        warnings.warn(
            f"{label!r} is damaged: {damaged} of its packets could not be read, and what was said "
            "in them is missing.",
            UserWarning,
            stacklevel=2,
        )


def _plane(frame: Any) -> Samples:
    samples_CT: Samples = frame.to_ndarray()
    return samples_CT


class _Nameless:
    """A binary file without its name: soundfile takes ``.raw`` in a name as headerless PCM."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell
        self.readinto = getattr(file, "readinto")  # noqa: B009 - BinaryIO does not declare it


def _check(samples_CT: Samples, rate: int, label: str) -> None:
    if samples_CT.size == 0:
        raise InvalidSourceError(f"{label!r} holds no samples; give a recording.")
    bad = np.flatnonzero(~np.isfinite(samples_CT).all(axis=0))
    if len(bad):
        first = int(bad[0])
        raise InvalidSourceError(
            f"{label!r} must have finite samples, but {len(bad)} of {samples_CT.shape[1]} are NaN "
            f"or infinite, the first at {first / rate:.3f} s (sample {first}); repair the file."
        )
    peak = float(np.abs(samples_CT).max())
    if peak > LOUDEST:
        warnings.warn(
            f"{label!r} has samples up to {peak:g}, and full scale is 1: divide what was read as "
            "16-bit integers by 32768.",
            UserWarning,
            stacklevel=2,
        )


def _resample(samples_T: Samples, rate: int, label: str) -> Samples:
    if rate == SAMPLE_RATE:
        return np.ascontiguousarray(samples_T)
    try:
        import soxr
    except ImportError:
        purpose = f"resampling {label!r} from {rate} Hz to {SAMPLE_RATE} Hz"
        raise MissingExtraError("soxr", "audio", purpose) from None
    resampled_T: Samples = soxr.resample(
        np.ascontiguousarray(samples_T), rate, SAMPLE_RATE, quality="HQ"
    )
    if len(resampled_T) == 0:
        raise InvalidSourceError(f"{label!r} is too short: {len(samples_T)} samples at {rate} Hz.")
    return resampled_T


@lru_cache(maxsize=4)
def mel_filters(mel_bins: int) -> Tensor:
    """Triangular mel filters ``[M, B]``, float32, of area 1 (Slaney's Auditory Toolbox, 1998).

    The scale is linear below 1 kHz (15 mels) and logarithmic above, from 0 to 8 kHz, as librosa's
    default and all Whisper models have it.
    """
    require(1 <= mel_bins <= FFT_SAMPLES // 2, "mel_bins", f"1 to {FFT_SAMPLES // 2}", mel_bins)
    bins_B = np.arange(FFT_SAMPLES // 2 + 1) * (SAMPLE_RATE / FFT_SAMPLES)
    log_step = np.log(6.4) / 27.0
    top = 15.0 + np.log(SAMPLE_RATE / 2 / 1000.0) / log_step
    mels = np.linspace(0.0, top, mel_bins + 2)
    edges = np.where(mels < 15.0, mels * 200.0 / 3.0, 1000.0 * np.exp(log_step * (mels - 15.0)))
    widths = np.diff(edges)
    rising_MB = (bins_B - edges[:-2, None]) / widths[:-1, None]
    falling_MB = (edges[2:, None] - bins_B) / widths[1:, None]
    triangles_MB = np.clip(np.minimum(rising_MB, falling_MB), 0.0, None)
    areas_M = (edges[2:] - edges[:-2]) / 2.0
    return torch.from_numpy((triangles_MB / areas_M[:, None]).astype(np.float32))


def log_mel(samples_T: Samples | Tensor, mel_bins: int) -> Tensor:
    """Whisper's log-mel frames ``[M, F]``, float32, ``F = T // 160``; one frame is 10 ms.

    Power spectrum of 25 ms Hann windows, mel filters, log10 clamped at 1e-10, then raised to at
    least eight decades below the loudest value and mapped by ``(x + 4) / 4`` (Radford et al. 2022).
    Raises :class:`UsageError` under 201 samples, which is too few to mirror at the ends.
    """
    wave_T = torch.as_tensor(samples_T, dtype=torch.float32)
    need = FFT_SAMPLES // 2 + 1
    require(
        wave_T.dim() == 1 and len(wave_T) >= need,
        "samples_T",
        f"[T], T >= {need}",
        tuple(wave_T.shape),
    )
    edge = FFT_SAMPLES // 2
    padded_T = torch.nn.functional.pad(wave_T[None], (edge, edge), mode="reflect")[0]
    window = torch.hann_window(FFT_SAMPLES)
    filters_MB = mel_filters(mel_bins)
    frames = len(wave_T) // HOP_SAMPLES
    log_MF = torch.empty(mel_bins, frames)
    # In blocks, so that hours of audio never hold their complex spectrum at once.
    for start in range(0, frames, WINDOW_FRAMES):
        stop = min(start + WINDOW_FRAMES, frames)
        block_T = padded_T[start * HOP_SAMPLES : (stop - 1) * HOP_SAMPLES + FFT_SAMPLES]
        # As a batch of short transforms: torch.stft is several times slower at these.
        pieces_FT = block_T.unfold(0, FFT_SAMPLES, HOP_SAMPLES) * window
        parts_FB2 = torch.view_as_real(torch.fft.rfft(pieces_FT)).square()
        power_FB = parts_FB2[..., 0] + parts_FB2[..., 1]
        log_MF[:, start:stop] = (filters_MB @ power_FB.T).clamp_(min=1e-10).log10_()
    if frames:
        log_MF.clamp_(min=float(log_MF.max()) - 8.0)
    return log_MF.add_(4.0).div_(4.0)


def window_log_mel(
    samples_T: Samples | Tensor, mel_bins: int, frames: int = WINDOW_FRAMES
) -> Tensor:
    """Log-mel ``[M, frames]`` of one window, its samples padded with silence (as transformers).

    Raises :class:`UsageError` where the samples do not fit: cutting would lose audio unseen.
    """
    wave_T = torch.as_tensor(samples_T, dtype=torch.float32)
    room = frames * HOP_SAMPLES
    require(len(wave_T) <= room, "samples_T", f"at most {room} samples (one window)", len(wave_T))
    return log_mel(torch.nn.functional.pad(wave_T, (0, room - len(wave_T))), mel_bins)


def file_log_mel(samples_T: Samples | Tensor, mel_bins: int) -> Tensor:
    """Log-mel ``[M, T // 160]`` of a whole file, for :func:`cut_window` (as openai-whisper).

    openai-whisper appends 30 s of silence before the transform, and never reads the frames past the
    end of the recording. Only the last frame's 25 ms reach into the silence: that much is appended.
    """
    wave_T = torch.as_tensor(samples_T, dtype=torch.float32)
    padded_T = torch.nn.functional.pad(wave_T, (0, FFT_SAMPLES))
    return log_mel(padded_T, mel_bins)[:, : file_frames(wave_T)]


def file_frames(samples_T: Samples | Tensor) -> int:
    """Frames that :func:`file_log_mel` makes."""
    return len(samples_T) // HOP_SAMPLES


def cut_window(mel_MF: Tensor, start: int, frames: int, window: int = WINDOW_FRAMES) -> Tensor:
    """``frames`` frames from ``start``, filled up with zeros to ``[M, window]``."""
    cut_MF = mel_MF[:, start : start + min(frames, window)]
    return torch.nn.functional.pad(cut_MF, (0, window - cut_MF.shape[1]))
