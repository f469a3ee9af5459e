"""Whisper on a memory that is already there: how decoding begins, and when words were spoken."""

from collections.abc import Sequence
from dataclasses import dataclass

from xattn.decoding.fallback import HeardWindow
from xattn.decoding.segments import Word
from xattn.decoding.transcription import word_timings
from xattn.decoding.transcription_settings import TranscriptionSettings
from xattn.decoding.whisper_tokens import WhisperTokens
from xattn.decoding.words import Draft, finished, place_words
from xattn.inputs.audio import FRAMES_PER_SECOND
from xattn.memory import Memory
from xattn.models.network import Attended, Network


@dataclass(frozen=True, kw_only=True)
class SpeechStart:
    """What a transcript without timestamps begins with."""

    language: str
    tokens: tuple[int, ...]
    """Start of transcript, language and task (multilingual models), no timestamps."""


def speech_start(
    network: Network, tokens: WhisperTokens, heard: Attended | None, language: str | None, task: str
) -> SpeechStart:
    """Where decoding begins; the language is detected on what is heard where it is not given.

    Raises :class:`UsageError` for a language or task that the model does not know.
    """
    if language is not None or not tokens.multilingual:
        tokens.require_language(language or "en", task)
    if language is None:
        likely = {}
        if tokens.multilingual:
            assert heard is not None
            likely = HeardWindow(network, heard).languages(tokens)
        language = max(likely, key=lambda code: likely[code]) if likely else "en"
    start = tokens.start_sequence(language, task)
    return SpeechStart(language=language, tokens=(*start, tokens.no_timestamps))


def spoken_words(
    network: Network,
    tokens: WhisperTokens,
    memory: Memory,
    start: SpeechStart,
    prompt: Sequence[int],
    text: Sequence[int],
) -> tuple[Word, ...]:
    """When each word of the decoded ``text`` tokens was spoken, in seconds of the recording.

    Text in the ``prompt`` that they continue is aligned with them. Two decoder passes over the
    text, for its probabilities and for the alignment heads' weights.
    """
    defaults = TranscriptionSettings()
    # What stands before the start of transcript was said earlier, if at all.
    begun = prompt[prompt.index(tokens.start) + 1 :] if tokens.start in prompt else prompt
    told = tuple(token for token in begun if token < tokens.end)
    spoken = tuple(token for token in text if token < tokens.end)
    seconds = float(memory.details.get("seconds", memory.spans[-1].end))
    drafts = [Draft(0.0, seconds, told)] if told else []
    drafts.append(Draft(0.0, seconds, spoken))
    timings = word_timings(
        HeardWindow(network, memory),
        tokens,
        start.tokens[:-1],
        told + spoken,
        start.language,
        int(seconds * FRAMES_PER_SECOND),
    )
    place_words(
        drafts,
        timings,
        end_token=tokens.end,
        offset=0.0,
        spoken_until=0.0,
        prepended=defaults.prepend_punctuations,
        appended=defaults.append_punctuations,
    )
    return finished(drafts[-1].words)


def words_within(words: Sequence[Word], text: str) -> tuple[Word, ...]:
    """The words that ``text`` begins with: a stop string may have cut what was decoded."""
    kept, length = [], 0
    for word in words:
        length += len(word.word)
        if length > len(text):
            break
        kept.append(word)
    return tuple(kept)
