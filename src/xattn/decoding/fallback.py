"""One window decoded: attempts at rising temperatures, all on the one memory of the window."""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from xattn.decoding.request import Hypothesis, Request
from xattn.decoding.search import decode
from xattn.decoding.settings import Settings
from xattn.decoding.timestamps import SECONDS_PER_TIMESTAMP, TimestampRules
from xattn.decoding.transcription_settings import TranscriptionSettings
from xattn.decoding.whisper_tokens import WhisperTokens
from xattn.memory import Memory
from xattn.models.network import Attended, Network
from xattn.models.state import Projection
from xattn.spec import ModelSpec


class HeardWindow:
    """A window's memory, as one decoder reads it.

    It is projected when it is first needed, and once: beams, samples, retries, language detection
    and alignment all attend to the same segments.
    """

    def __init__(self, network: Network, heard: Attended) -> None:
        self.network, self._heard = network, heard

    @property
    def memory(self) -> Memory:
        """What is heard."""
        heard = self._heard
        return heard if isinstance(heard, Memory) else heard.memories[0]

    @cached_property
    def projection(self) -> Projection:
        """The memory's segments."""
        heard = self._heard
        return heard if isinstance(heard, Projection) else self.network.project(heard)

    def probabilities_after(self, tokens: Sequence[int]) -> Tensor:
        """Probability of each token ``[V]`` after ``tokens``, without any constraint."""
        state = self.network.start([[self.projection]])
        return self.network.step(torch.tensor([list(tokens)]), state)[0].softmax(-1)

    def languages(self, tokens: WhisperTokens) -> dict[str, float]:
        """Probability of each language the model knows, by the token after the start."""
        ids = list(tokens.languages.values())
        heard = self.probabilities_after([tokens.start])[ids]
        return dict(zip(tokens.languages, (heard / heard.sum()).tolist(), strict=True))


@dataclass(frozen=True)
class Prompt:
    """Decoder tokens of one window."""

    context: tuple[int, ...]
    """Start of previous, hotwords and previous text; empty for none."""
    start: tuple[int, ...]
    """Start of transcript, language, task, and whether there are no timestamps."""
    prefix: tuple[int, ...] = ()
    """What the transcript begins with."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """All of it."""
        return self.context + self.start + self.prefix


@dataclass(frozen=True)
class Attempt:
    """What one temperature gave."""

    tokens: tuple[int, ...]
    """Prefix, text and timestamps, without the end token."""
    text: str
    avg_logprob: float
    temperature: float

    @property
    def compression_ratio(self) -> float:
        """How much the text repeats itself."""
        return compression_ratio(self.text)


def compression_ratio(text: str) -> float:
    """UTF-8 bytes over their zlib size; 2.4 and more means the text goes in circles."""
    content = text.encode()
    return len(content) / len(zlib.compress(content))


def decode_window(
    window: HeardWindow,
    prompt: Prompt,
    tokens: WhisperTokens,
    settings: TranscriptionSettings,
    no_speech_probability: float,
    seed: int,
) -> Attempt:
    """Try the temperatures in turn until the text neither repeats itself nor is a mere guess.

    Where none does, the temperature is the last one, so that the text becomes nobody's context.
    """
    attempts: list[Attempt] = []
    for temperature in settings.temperature:
        attempt = _attempt(window, prompt, tokens, settings, temperature, seed)
        attempts.append(attempt)
        if not needs_retry(attempt, no_speech_probability, settings):
            return attempt
    return replace(least_bad(attempts, settings), temperature=settings.temperature[-1])


def least_bad(attempts: Sequence[Attempt], settings: TranscriptionSettings) -> Attempt:
    """The likeliest attempt that does not repeat itself, or the likeliest of all."""
    limit = settings.compression_ratio_threshold
    varied = [a for a in attempts if limit is not None and a.compression_ratio <= limit]
    return max(varied or attempts, key=lambda attempt: attempt.avg_logprob)


def needs_retry(
    attempt: Attempt, no_speech_probability: float, settings: TranscriptionSettings
) -> bool:
    """The text repeats itself, or is a guess although there is speech."""
    ratio_limit, logprob_limit = (
        settings.compression_ratio_threshold,
        settings.log_prob_threshold,
    )
    repeats = ratio_limit is not None and attempt.compression_ratio > ratio_limit
    guesses = logprob_limit is not None and attempt.avg_logprob < logprob_limit
    limit = settings.no_speech_threshold
    silent = guesses and limit is not None and no_speech_probability > limit
    return (repeats or guesses) and not silent


def is_silent(
    avg_logprob: float, no_speech_probability: float, settings: TranscriptionSettings
) -> bool:
    """The window holds no speech, and its text is not good enough to say otherwise."""
    if (
        settings.no_speech_threshold is None
        or no_speech_probability <= settings.no_speech_threshold
    ):
        return False
    return settings.log_prob_threshold is None or avg_logprob <= settings.log_prob_threshold


def _attempt(
    window: HeardWindow,
    prompt: Prompt,
    tokens: WhisperTokens,
    settings: TranscriptionSettings,
    temperature: float,
    seed: int,
) -> Attempt:
    rules = []
    if not settings.without_timestamps:
        latest = round(settings.max_initial_timestamp / SECONDS_PER_TIMESTAMP)
        rules = [TimestampRules(tokens=tokens, max_initial=latest, prefix=prompt.prefix)]
    request = Request(prompt=prompt.tokens, memories=(window.projection,), seed=seed)
    chosen = _search_settings(window.network.spec, prompt, tokens, settings, temperature)
    hypotheses = decode(window.network, [request], chosen, processors=rules)[0]
    best = max(hypotheses, key=lambda h: _score(h, tokens.end, settings.length_penalty))
    text_tokens = prompt.prefix + tuple(t for t in best.tokens if t != tokens.end)
    logprob = sum(best.logprobs) / (_length(best, tokens.end) + 1)
    return Attempt(text_tokens, tokens.decode(text_tokens).strip(), logprob, temperature)


def _search_settings(
    spec: ModelSpec,
    prompt: Prompt,
    tokens: WhisperTokens,
    settings: TranscriptionSettings,
    temperature: float,
) -> Settings:
    positions = spec.decoder.position.limit or math.inf
    most = settings.max_new_tokens or positions // 2
    search: dict[str, object] = {"num_beams": settings.beam_size, "patience": settings.patience}
    if temperature > 0:
        search = {
            "do_sample": True,
            "temperature": temperature,
            "top_k": 0,
            "num_return_sequences": settings.best_of,
        }
    blank = (*tokens.encode(" "), tokens.end) if settings.suppress_blank else ()
    return Settings.resolve(
        max_new_tokens=int(min(most, positions - len(prompt.tokens))),
        length_penalty=settings.length_penalty,
        repetition_penalty=settings.repetition_penalty,
        no_repeat_ngram_size=settings.no_repeat_ngram_size,
        penalize_prompt=False,
        suppress_tokens=tokens.suppressed(settings.suppress_tokens),
        begin_suppress_tokens=blank,
        eos_token_id=(tokens.end,),
        **search,
    )


def _length(hypothesis: Hypothesis, end: int) -> int:
    return len(hypothesis.tokens) - (hypothesis.tokens[-1:] == (end,))


def _score(hypothesis: Hypothesis, end: int, length_penalty: float) -> float:
    length = float(max(1, _length(hypothesis, end)))
    return sum(hypothesis.logprobs) / math.pow(length, length_penalty)
