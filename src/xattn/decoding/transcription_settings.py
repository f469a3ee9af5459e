"""How a recording is transcribed: the keywords of ``transcribe``, under faster-whisper's names."""

import difflib
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from xattn.decoding.voice import VoiceSettings
from xattn.decoding.whisper_tokens import TASKS
from xattn.errors import UsageError, is_number, is_whole, require

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


TEXTS = (
    *("language", "task", "prefix", "hotwords", "prepend_punctuations", "append_punctuations"),
)
FLAGS = (
    *("condition_on_previous_text", "suppress_blank", "without_timestamps", "word_timestamps"),
    *("multilingual", "vad_filter"),
)


@dataclass(frozen=True, kw_only=True)
class TranscriptionSettings:
    """How a recording is transcribed. Raises :class:`UsageError` for a value out of its bounds."""

    language: str | None = None
    """Code of the language that is spoken; None detects it from the first window."""
    task: str = "transcribe"
    """"transcribe", or "translate" into English."""
    beam_size: int = 5
    """Beams at temperature 0; 1 is greedy."""
    best_of: int = 5
    """Samples drawn at a temperature above 0, of which the likeliest is kept."""
    patience: float = 1.0
    """Beams end at ``round(beam_size * patience)`` finished hypotheses (Kasai et al. 2022)."""
    length_penalty: float = 1.0
    """Hypotheses are ranked by log-probability over length to this power."""
    repetition_penalty: float = 1.0
    """Makes tokens that the window already has less likely, if above 1."""
    no_repeat_ngram_size: int = 0
    """No n-gram of this size occurs twice in a window; 0 means any may."""
    temperature: tuple[float, ...] = TEMPERATURES
    """Tried in turn until the text of a window passes both thresholds below."""
    compression_ratio_threshold: float | None = 2.4
    """A window whose text compresses better than this repeats itself: next temperature."""
    log_prob_threshold: float | None = -1.0
    """A window whose tokens are less likely than this on average is a guess: next temperature."""
    no_speech_threshold: float | None = 0.6
    """A window is silent if its no-speech probability is higher, and its text is such a guess."""
    condition_on_previous_text: bool = True
    """Show the text so far to the decoder as context of the next window."""
    prompt_reset_on_temperature: float = 0.5
    """Context is dropped after a window that needed a higher temperature."""
    initial_prompt: str | tuple[int, ...] | None = None
    """Text (or tokens) that the first window takes for what was said before; its end counts."""
    prefix: str | None = None
    """Text that the first window's transcript begins with."""
    hotwords: str | None = None
    """Words to expect, put before the context of every window; without effect beside a prefix."""
    suppress_blank: bool = True
    """A window's text does not begin with a space token or end at once."""
    suppress_tokens: tuple[int, ...] = (-1,)
    """Tokens that never occur; -1 stands for symbols that nobody pronounces."""
    without_timestamps: bool = False
    """One segment per window, without times of its own."""
    max_initial_timestamp: float = 1.0
    """A window's first segment begins at most this many seconds into it."""
    word_timestamps: bool = False
    """Find out when each word was spoken."""
    prepend_punctuations: str = "\"'“¿([{-"
    """Marks that belong to the word after them."""
    append_punctuations: str = "\"'.。,，!！?？:：”)]}、"
    """Marks that belong to the word before them."""
    multilingual: bool = False
    """Detect the language of every window anew."""
    max_new_tokens: int | None = None
    """Tokens of one window at most; None means half the decoder's positions."""
    clip_timestamps: tuple[float, ...] = (0.0,)
    """Start, end, start, end ... in seconds of what to transcribe; the last end may be left out."""
    hallucination_silence_threshold: float | None = None
    """Skip silence longer than this many seconds around implausible text (needs word times)."""
    language_detection_threshold: float = 0.5
    """A language at least this probable is settled on without looking at further windows."""
    language_detection_segments: int = 1
    """Windows to look at for the language at most."""
    vad_filter: bool = False
    """Leave out stretches without sound before transcribing (an energy gate: ``voice.py``)."""
    vad_parameters: VoiceSettings = field(default_factory=VoiceSettings)
    """Settings of that gate."""
    seed: int = 0
    """Same seed, same samples."""

    def __post_init__(self) -> None:
        for name in ("temperature", "suppress_tokens", "initial_prompt"):
            value = getattr(self, name)
            plain = value if isinstance(value, str | None) else _tuple(value)
            if name == "suppress_tokens" and value is None:
                plain = ()
            object.__setattr__(self, name, plain)
        object.__setattr__(self, "clip_timestamps", _clips(self.clip_timestamps))
        if self.vad_parameters is None:
            object.__setattr__(self, "vad_parameters", VoiceSettings())
        if isinstance(self.vad_parameters, Mapping):
            object.__setattr__(self, "vad_parameters", VoiceSettings.resolve(self.vad_parameters))
        self._check_kinds()
        self._check_search()
        self._check_gates()
        self._check_times()
        if self.vad_parameters != VoiceSettings() and not self.vad_filter:
            warnings.warn(
                "`vad_parameters` without vad_filter=True changes nothing.",
                UserWarning,
                stacklevel=4,
            )
        if self.vad_filter and self.clip_timestamps != (0.0,):
            warnings.warn(
                "`vad_filter` leaves recordings alone that `clip_timestamps` cuts.",
                UserWarning,
                stacklevel=4,
            )

    @classmethod
    def resolve(cls, **options: Any) -> "TranscriptionSettings":
        """Settings from keywords; :class:`UsageError` for an unknown one, with near names."""
        known = [f.name for f in fields(cls)]
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=3)
                hint = (
                    f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}."
                )
                raise UsageError(f"transcription has no option {name!r}; {hint}")
        return cls(**options)

    def _check_kinds(self) -> None:
        for name in TEXTS:
            value = getattr(self, name)
            optional = name not in ("task", "prepend_punctuations", "append_punctuations")
            fits = isinstance(value, str) or (optional and value is None)
            require(fits, name, "text, or None" if optional else "text", value)
        for name in FLAGS:
            require(
                isinstance(getattr(self, name), bool), name, "True or False", getattr(self, name)
            )
        for name in ("suppress_tokens", "initial_prompt"):
            value = getattr(self, name)
            tokens = value if isinstance(value, tuple) else ()
            text = name == "initial_prompt" and (value is None or isinstance(value, str))
            least = -1 if name == "suppress_tokens" else 0
            fits = isinstance(value, tuple) and all(is_whole(token, least) for token in tokens)
            bound = "token ids" if name == "suppress_tokens" else "text, or token ids"
            require(text or fits, name, bound, value)
        fits = isinstance(self.vad_parameters, VoiceSettings)
        require(fits, "vad_parameters", "settings of the silence gate", self.vad_parameters)

    def _check_search(self) -> None:
        require(self.task in TASKS, "task", f"one of {', '.join(TASKS)}", self.task)
        for name in ("beam_size", "best_of", "language_detection_segments"):
            _whole(name, getattr(self, name), 1)
        _whole("no_repeat_ngram_size", self.no_repeat_ngram_size, 0)
        if self.max_new_tokens is not None:
            _whole("max_new_tokens", self.max_new_tokens, 1)
        for name in ("patience", "repetition_penalty"):
            value = getattr(self, name)
            require(is_number(value) and value > 0, name, "above 0", value)
        _number("length_penalty", self.length_penalty, 0.0)
        require(len(self.temperature) > 0, "temperature", "at least one number", self.temperature)
        for value in self.temperature:
            _number("temperature", value, 0.0)
        _whole("seed", self.seed, 0)

    def _check_gates(self) -> None:
        for name, least in (
            ("compression_ratio_threshold", 0.0),
            ("log_prob_threshold", -math.inf),
            ("no_speech_threshold", 0.0),
            ("hallucination_silence_threshold", 0.0),
        ):
            value = getattr(self, name)
            if value is not None:
                _number(name, value, least)
        _number("prompt_reset_on_temperature", self.prompt_reset_on_temperature, 0.0)
        _number("language_detection_threshold", self.language_detection_threshold, 0.0)
        if self.hallucination_silence_threshold is not None:
            bound = "True with hallucination_silence_threshold, which looks at words"
            require(self.word_timestamps, "word_timestamps", bound, self.word_timestamps)

    def _check_times(self) -> None:
        value = self.max_initial_timestamp
        require(
            is_number(value) and 0 <= value <= 30, "max_initial_timestamp", "0 to 30 seconds", value
        )
        clips = self.clip_timestamps
        fits = all(is_number(t) and t >= 0 for t in clips) and list(clips) == sorted(clips)
        require(fits, "clip_timestamps", "seconds in ascending order, from 0", clips)


def _number(name: str, value: Any, least: float) -> None:
    bound = "a finite number" if least == -math.inf else f"a finite number, at least {least:g}"
    require(is_number(value) and value >= least, name, bound, value)


def _whole(name: str, value: Any, least: int) -> None:
    require(is_whole(value, least), name, f"a whole number, at least {least}", value)


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _clips(value: Any) -> tuple[float, ...]:
    """Numbers, or faster-whisper's text ``"start,end,start"``."""
    if not isinstance(value, str):
        return _tuple(value) or (0.0,)
    try:
        return tuple(float(part) for part in value.split(",")) if value else (0.0,)
    except ValueError:
        bound = "seconds, or text like '0,12.5,30'"
        raise UsageError(f"`clip_timestamps` must be {bound}, but is {value!r} instead.") from None
