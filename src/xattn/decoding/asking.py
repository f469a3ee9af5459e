"""From what a caller asks of a model to a request: prompts, languages and tasks become tokens."""

from dataclasses import dataclass, replace
from functools import cached_property

from xattn.decoding.prompts import Prompt, target_prefix, whole_prompt
from xattn.decoding.request import Request
from xattn.decoding.settings import Settings
from xattn.decoding.speech import speech_start
from xattn.decoding.whisper_tokens import WhisperTokens
from xattn.errors import UsageError, require
from xattn.inputs.text import Tokenizer
from xattn.memory import Memory
from xattn.models.network import Attended, Network
from xattn.models.parallel import Parallel


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a caller asks, beside memories and settings."""

    prompt: Prompt | None = None
    language: str | None = None
    """Spoken language (Whisper); detected where None."""
    target_language: str | None = None
    """Language to translate into."""
    task: str = "transcribe"
    parallel: Parallel | None = None
    """How a decoder-only model reads several memories."""
    adapter: str | None = None
    """What it is computed with."""


class Asker:
    """Makes the requests of one model. ``name`` is what error messages call it."""

    def __init__(self, network: Network, tokenizer: Tokenizer | None, name: str) -> None:
        self._network, self._tokenizer, self._name = network, tokenizer, name
        self._spec = network.spec

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; :class:`UsageError` where it has none."""
        if self._tokenizer is None:
            raise UsageError(f"{self._name} has no tokenizer; work with token ids instead of text.")
        return self._tokenizer

    @property
    def known_tokenizer(self) -> Tokenizer | None:
        """The same; None where it has none."""
        return self._tokenizer

    @cached_property
    def whisper(self) -> WhisperTokens:
        """Whisper's special tokens; :class:`UsageError` for another model."""
        return WhisperTokens(self.tokenizer, self._spec.decoder.vocab_size)

    @property
    def reads_audio(self) -> bool:
        """Whether the encoder hears."""
        return self._spec.encoder is not None and self._spec.encoder.modality == "audio"

    def request(
        self, memories: tuple[Memory, ...], question: Question, settings: Settings
    ) -> tuple[Request, Settings]:
        """What to decode, and how. Raises :class:`UsageError` for what the model does not know."""
        heard = memories[0] if memories else None
        prompt, settings = self.prompt(len(memories), question, settings, heard)
        how = question.parallel or Parallel()
        return Request(prompt, memories, parallel=how, adapter=question.adapter), settings

    def prompt(
        self, memories: int, question: Question, settings: Settings, heard: Attended | None
    ) -> tuple[tuple[int, ...], Settings]:
        """The decoder's tokens of a request that attends to so many memories, and its settings.

        A language that is not given is detected on ``heard``. Raises as :meth:`request` does.
        """
        if self._spec.decoder.cross_attention is None:
            return self._continuation(memories, question.prompt), settings
        bound = "left out for cross-attention, to which memories have no order"
        require(question.parallel is None, "parallel", bound, question.parallel)
        if self._spec.encoder is None:  # a language model that reads encoders lent to it
            vocab_size = self._spec.decoder.vocab_size
            return tuple(whole_prompt(question.prompt, self._tokenizer, vocab_size)), settings
        if not memories:
            raise UsageError(f"{self._name} is an encoder-decoder: `memory` must be given.")
        ids: list[int] = []
        if question.prompt is not None:
            vocab_size = self._spec.decoder.vocab_size
            ids = target_prefix(question.prompt, self._tokenizer, vocab_size)
        if self.reads_audio:
            if ids and ids[0] == self._spec.tokens.decoder_start:
                return tuple(ids), settings
            start = self.start_tokens(heard, question.language, question.task)
            return (*start, *ids), settings
        return self._translation(ids, question.target_language, settings)

    def detects(self, question: Question) -> bool:
        """Whether the language of a request has to be heard first."""
        spoken = self.reads_audio and question.language is None
        return spoken and self.whisper.multilingual

    def start_tokens(
        self, heard: Attended | None, language: str | None, task: str
    ) -> tuple[int, ...]:
        """Decoder tokens before a transcript or a translation."""
        if self.reads_audio:
            return speech_start(self._network, self.whisper, heard, language, task).tokens
        return (self._decoder_start,)

    def _continuation(self, memories: int, prompt: Prompt | None) -> tuple[int, ...]:
        """What a decoder-only model goes on from: a prompt, alone or after memories."""
        vocab_size = self._spec.decoder.vocab_size
        if not memories or prompt is None:
            return tuple(whole_prompt(prompt, self._tokenizer, vocab_size))
        return tuple(target_prefix(prompt, self._tokenizer, vocab_size))

    def _translation(
        self, ids: list[int], language: str | None, settings: Settings
    ) -> tuple[tuple[int, ...], Settings]:
        begun = bool(ids) and ids[0] == self._spec.tokens.decoder_start
        if begun and language is None:
            return tuple(ids), settings
        prefix = ids[1:] if begun else ids
        if language is None:
            return (self._decoder_start, *prefix), settings
        token = self._language_token(language)
        if self.tokenizer.language_starts_decoding:
            return (token, *prefix), settings
        if prefix:
            # The language comes before the prefix, and so can no longer be forced after it.
            settings = replace(settings, forced_bos_token_id=None)
            return (self._decoder_start, token, *prefix), settings
        settings = replace(settings, forced_bos_token_id=token)
        return (self._decoder_start,), settings

    @property
    def _decoder_start(self) -> int:
        start = self._spec.tokens.decoder_start
        if start is None:
            raise UsageError(
                f"{self._name} names no decoder start token: give `target_language`, whose token "
                "it begins with, or decode with a checkpoint that names one."
            )
        return start

    def _language_token(self, language: str) -> int:
        languages = self.tokenizer.languages
        if not languages:
            raise UsageError(
                f"{self._name} has no language tokens, so `target_language` must be left out; "
                "its language is fixed, or named in the source text."
            )
        bound = f"one of {', '.join(languages)}"
        require(language in languages, "target_language", bound, language)
        return languages[language]
