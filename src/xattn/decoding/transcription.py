"""Transcription of recordings of any length with Whisper.

The recording is heard in windows of 30 s. Each window is encoded once, and that one memory serves
language detection, every temperature, and the alignment of words; the timestamps in its text say
where the next window begins (Radford et al. 2022, section 4.5). Behaviour and option names follow
openai-whisper and faster-whisper.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from xattn.decoding.alignment import token_times
from xattn.decoding.fallback import Attempt, HeardWindow, Prompt, decode_window, is_silent
from xattn.decoding.hallucinations import WindowSpan, judge
from xattn.decoding.segments import Segment, Word
from xattn.decoding.timestamps import cut_segments
from xattn.decoding.transcript import Transcript
from xattn.decoding.transcription_settings import TranscriptionSettings
from xattn.decoding.voice import Voiced, keep_voiced
from xattn.decoding.whisper_tokens import WhisperTokens
from xattn.decoding.words import Draft, Timing, finished, group, place_words
from xattn.errors import PromptError, UsageError, require
from xattn.inputs.audio import FRAMES_PER_SECOND, Audio, file_log_mel
from xattn.inputs.text import Tokenizer
from xattn.memory import Memory
from xattn.models.network import Network

UNDETERMINED = "und"
"""Language of a recording without any sound (ISO 639-2)."""


@dataclass(frozen=True, eq=False)
class Window:
    """What the encoder is to hear of a recording."""

    recording: Audio
    mel_MF: Tensor
    """Log-mel frames of all of it."""
    start: int
    """Frame that the window begins at."""
    frames: int
    """Frames of it that hold audio."""


Encode = Callable[[Window], Memory]
"""Makes the memory of a window: by an encoder pass, or from a store."""
Progress = Callable[[float, float], None]
"""Told the seconds done, and the seconds in all, after each window."""


class Transcription:
    """A transcription under way: iterating over it yields segments as they are found.

    Creating it checks the settings against the model, and detects the language if it is not given.
    Raises :class:`UsageError` where the model cannot do what is asked, :class:`PromptError` where
    ``prefix`` or ``hotwords`` leave no room.
    """

    def __init__(
        self,
        network: Network,
        tokenizer: Tokenizer,
        audio: Audio,
        settings: TranscriptionSettings,
        *,
        encode: Encode,
        progress: Progress | None = None,
    ) -> None:
        self.settings, self.duration_seconds = settings, audio.seconds
        self.encoder_passes = 0
        self._network, self._encode, self._progress = network, encode, progress
        if network.spec.encoder is None or network.spec.encoder.audio is None:
            raise UsageError("transcription needs a model that reads audio; this one does not.")
        self._tokens = WhisperTokens(tokenizer, network.spec.decoder.vocab_size)
        self._check()
        self._voiced = Voiced(audio.samples_T, ())
        if settings.vad_filter and settings.clip_timestamps == (0.0,):
            self._voiced = keep_voiced(audio.samples_T, settings.vad_parameters)
        self._stem = network.spec.encoder.audio
        self._recording = Audio(self._voiced.samples_T, audio.sample_rate, audio.label)
        self._mel_MF = file_log_mel(self._recording.samples_T, self._stem.mel_bins)
        self._total = self._mel_MF.shape[1]
        self._clips = _clips(settings.clip_timestamps, self._total)
        self._heard: dict[tuple[int, int], HeardWindow] = {}
        self.language, self.language_probability = self._detect_language()
        self._context = self._initial_context()
        self._forgotten = 0
        self._spoken_until = 0.0
        self._windows = 0
        self._segments: list[Segment] = []
        self._running = self._run()

    def __iter__(self) -> Iterator[Segment]:
        """Segments that are not yet found; those already found are in the transcript."""
        return self._running

    def finish(self) -> Transcript:
        """Transcribe what is left, and return all of it."""
        for _ in self._running:
            pass
        return Transcript(
            text="".join(segment.text for segment in self._segments).strip(),
            segments=tuple(self._segments),
            language=self.language,
            language_probability=self.language_probability,
            duration_seconds=self.duration_seconds,
            encoder_passes=self.encoder_passes,
        )

    # Checks

    def _check(self) -> None:
        settings, spec = self.settings, self._network.spec
        if settings.language is not None or not self._tokens.multilingual:
            self._tokens.require_language(settings.language or "en", settings.task)
        if settings.multilingual and not self._tokens.multilingual:
            raise UsageError(
                "multilingual=True needs a multilingual model; this one knows English."
            )
        if settings.word_timestamps and not spec.alignment_heads:
            raise UsageError(
                "word_timestamps=True needs the checkpoint's alignment heads, and it lists none "
                "(alignment_heads in its generation_config.json); leave word timestamps out."
            )
        vocab_size = spec.decoder.vocab_size
        for name in ("initial_prompt", "suppress_tokens"):
            tokens = getattr(settings, name)
            strange = isinstance(tokens, tuple) and any(t >= vocab_size for t in tokens)
            require(not strange, name, f"token ids below {vocab_size}", tokens)
        for name in ("prefix", "hotwords"):
            count = len(self._spoken(getattr(settings, name)))
            if count > self._room:
                raise PromptError(
                    f"`{name}` must have at most {self._room} tokens, but has {count}; shorten it."
                )

    @property
    def _room(self) -> int:
        """Tokens of context at most: half the decoder's positions, less the token before them."""
        return self._positions // 2 - 1

    @property
    def _positions(self) -> int:
        return self._network.spec.decoder.position.limit or 448

    def _spoken(self, text: str | None) -> list[int]:
        """Tokens of a text as it is transcribed, with a space before it."""
        return self._tokens.encode(f" {text.strip()}") if text and text.strip() else []

    # Windows

    def _run(self) -> Iterator[Segment]:
        for start, end in self._clips:
            seek = start
            while seek < end:
                frames = min(self._stem.frames, end - seek)
                found, following = self._transcribe_window(seek, frames)
                # A window that leads nowhere would be heard for ever.
                seek = max(following, seek + 1)
                self._windows += 1
                for segment in found:
                    self._segments.append(segment)
                    yield segment
                if self._progress is not None:
                    done = self._voiced.original(min(seek, end) / FRAMES_PER_SECOND, ends=True)
                    self._progress(done, self.duration_seconds)

    def _window(self, start: int, frames: int) -> HeardWindow:
        """The window's memory, by one encoder pass unless it has been heard for its language."""
        if (start, frames) in self._heard:
            return self._heard.pop((start, frames))
        before = self._network.counters.encoder_passes
        memory = self._encode(Window(self._recording, self._mel_MF, start, frames))
        self.encoder_passes += self._network.counters.encoder_passes - before
        return HeardWindow(self._network, memory)

    def _transcribe_window(self, seek: int, frames: int) -> tuple[list[Segment], int]:
        """The segments of one window, and the frame at which the next one begins."""
        settings, window = self.settings, self._window(seek, frames)
        language = self.language
        if settings.multilingual:
            language, _ = _likeliest(window.languages(self._tokens))
        prompt = self._prompt(language)
        before = prompt.context + prompt.start[:1]
        silence = 0.0
        if self._tokens.no_speech is not None:
            silence = float(window.probabilities_after(before)[self._tokens.no_speech])
        seed = settings.seed + self._windows
        attempt = decode_window(window, prompt, self._tokens, settings, silence, seed)
        if is_silent(attempt.avg_logprob, silence, settings):
            return [], seek + frames
        cuts = cut_segments(attempt.tokens, self._tokens.timestamp_begin, frames)
        offset = seek / FRAMES_PER_SECOND
        drafts = [
            Draft(round(offset + cut.start, 2), round(offset + cut.end, 2), cut.tokens)
            for cut in cuts.segments
        ]
        following = seek + cuts.frames
        if settings.word_timestamps:
            self._time_words(window, drafts, language, seek, frames)
            ending = _last_end(drafts)
            if not cuts.ends_with_silence and ending is not None and ending > offset:
                following = round(ending * FRAMES_PER_SECOND)
            drafts, following, heard = self._without_hallucinations(drafts, seek, frames, following)
            if not heard:
                return [], following
            self._spoken_until = _last_end(drafts) or self._spoken_until
        found = self._finished(drafts, attempt, seek, silence)
        if not settings.condition_on_previous_text or (
            attempt.temperature > settings.prompt_reset_on_temperature
        ):
            self._forgotten = len(self._context)
        return found, following

    # Language

    def _detect_language(self) -> tuple[str, float]:
        """The given language, or the one that the first windows are most probably in."""
        if self.settings.language is not None or not self._tokens.multilingual:
            return self.settings.language or "en", 1.0
        votes: dict[str, list[float]] = {}
        start, end = self._clips[0] if self._clips else (0, 0)
        for _ in range(self.settings.language_detection_segments):
            frames = min(self._stem.frames, end - start)
            if frames <= 0:
                break
            window = self._window(start, frames)
            self._heard[start, frames] = window
            language, probability = _likeliest(window.languages(self._tokens))
            votes.setdefault(language, []).append(probability)
            if probability > self.settings.language_detection_threshold:
                return language, probability
            start += frames
        if not votes:
            return UNDETERMINED, 0.0
        language = max(votes, key=lambda name: len(votes[name]))
        return language, max(votes[language])

    # Context

    def _initial_context(self) -> list[int]:
        prompt = self.settings.initial_prompt
        if isinstance(prompt, tuple):
            return list(prompt)
        return self._spoken(prompt)

    def _prompt(self, language: str) -> Prompt:
        """Context, start and prefix of the next window.

        Prefix and hotwords have the first claim on room, earlier text takes what they leave.
        """
        settings, tokens = self.settings, self._tokens
        start = tokens.start_sequence(language, settings.task)
        prefix = self._spoken(settings.prefix) if self._windows == 0 else []
        hotwords = [] if prefix else self._spoken(settings.hotwords)
        if settings.without_timestamps:
            start.append(tokens.no_timestamps)
        elif prefix:
            prefix = [tokens.timestamp_begin, *prefix]
        # One position for the token before the context, and one at least for a new token.
        beside = self._positions - len(start) - len(prefix) - 2
        room = min(self._room, beside) - len(hotwords)
        previous = self._context[self._forgotten :]
        previous = previous[max(0, len(previous) - room) :]
        context = [tokens.previous, *hotwords, *previous] if hotwords or previous else []
        return Prompt(tuple(context), tuple(start), tuple(prefix))

    # Words

    def _time_words(
        self, window: HeardWindow, drafts: Sequence[Draft], language: str, seek: int, frames: int
    ) -> None:
        settings = self.settings
        text = [t for draft in drafts for t in draft.tokens if t < self._tokens.end]
        start = self._tokens.start_sequence(language, settings.task)
        place_words(
            drafts,
            word_timings(window, self._tokens, start, text, language, frames),
            end_token=self._tokens.end,
            offset=seek / FRAMES_PER_SECOND,
            spoken_until=self._spoken_until,
            prepended=settings.prepend_punctuations,
            appended=settings.append_punctuations,
        )

    def _without_hallucinations(
        self, drafts: list[Draft], seek: int, frames: int, following: int
    ) -> tuple[list[Draft], int, bool]:
        """What is left, where to go on, and whether this counts as heard."""
        threshold = self.settings.hallucination_silence_threshold
        if threshold is None:
            return drafts, following, True
        span = WindowSpan(
            start=seek / FRAMES_PER_SECOND,
            audio_end=(seek + frames) / FRAMES_PER_SECOND,
            end=(seek + self._stem.frames) / FRAMES_PER_SECOND,
            recording_end=self._total / FRAMES_PER_SECOND,
        )
        verdict = judge(drafts, span, self._spoken_until, threshold)
        following = following if verdict.seek is None else verdict.seek
        return drafts[: verdict.kept], following, not verdict.discard_window

    # Segments

    def _finished(
        self, drafts: Sequence[Draft], attempt: Attempt, seek: int, silence: float
    ) -> list[Segment]:
        """Segments of what has text and length; they become context of the next window."""
        found: list[Segment] = []
        for draft in drafts:
            text = self._tokens.decode(draft.tokens)
            if draft.start == draft.end or not text.strip():
                continue
            self._context.extend(draft.tokens)
            segment = Segment(
                id=len(self._segments) + len(found),
                seek=seek,
                start=draft.start,
                end=draft.end,
                text=text,
                tokens=draft.tokens,
                temperature=attempt.temperature,
                avg_logprob=attempt.avg_logprob,
                compression_ratio=attempt.compression_ratio,
                no_speech_prob=silence,
                words=finished(draft.words) if self.settings.word_timestamps else None,
            )
            found.append(_restored(segment, self._voiced))
        return found


def word_timings(
    window: HeardWindow,
    tokens: WhisperTokens,
    start: Sequence[int],
    text: Sequence[int],
    language: str,
    frames: int,
) -> list[Timing]:
    """When each word of ``text`` was spoken, in seconds from the window's beginning.

    ``start`` is the start sequence that the text was decoded after, and ``frames`` the part of the
    window that holds audio. Punctuation is still apart: see :mod:`xattn.decoding.words`.
    """
    positions = frames // 2
    if not text or positions == 0:
        return []
    times, probabilities = token_times(
        window.network,
        window.projection,
        start,
        text,
        no_timestamps=tokens.no_timestamps,
        end=tokens.end,
        positions=positions,
    )
    return group(tokens.split_words(text, language), times, probabilities)


def _clips(seconds: Sequence[float], total: int) -> list[tuple[int, int]]:
    """``[start, end)`` frames of what to transcribe, within the recording."""
    points = [round(value * FRAMES_PER_SECOND) for value in seconds]
    if len(points) % 2 == 1:
        points.append(total)
    pairs = zip(points[::2], points[1::2], strict=True)
    return [(start, min(end, total)) for start, end in pairs if start < min(end, total)]


def _likeliest(probabilities: dict[str, float]) -> tuple[str, float]:
    return max(probabilities.items(), key=lambda item: item[1])


def _last_end(drafts: Sequence[Draft]) -> float | None:
    """End of the last word, or of the last segment where there is none."""
    words = (draft.words[-1].end for draft in reversed(drafts) if draft.words)
    return next(words, drafts[-1].end if drafts else None)


def _restored(segment: Segment, voiced: Voiced) -> Segment:
    """The segment with the times of the recording that silence was taken out of."""
    if not voiced.spans:
        return segment
    if not segment.words:
        start = voiced.original(segment.start)
        return replace(segment, start=start, end=voiced.original(segment.end, ends=True))
    words = []
    for word in segment.words:
        middle = (word.start + word.end) / 2
        start, end = (voiced.original(t, beside=middle) for t in (word.start, word.end))
        words.append(Word(word.word, start, end, word.probability))
    return replace(segment, start=words[0].start, end=words[-1].end, words=tuple(words))
