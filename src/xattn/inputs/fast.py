"""Tokenizers that run in the ``tokenizers`` library: everything with a tokenizer.json, and more."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from xattn.errors import CorruptCheckpointError, UnsupportedModelError, UsageError
from xattn.inputs.chat import render_chat
from xattn.inputs.decoders import (
    CleanUp,
    DropTimestamps,
    Stage,
    StagedDecoder,
    clean_up_spaces,
    drop_timestamps,
    stages_of,
)
from xattn.inputs.languages import LanguageRule, unknown_language
from xattn.inputs.text import Encoded, IncrementalDecoder
from xattn.inputs.tokenizer_config import Added, TokenizerConfig
from xattn.memory import digest_of

if TYPE_CHECKING:
    import tokenizers


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Special tokens around a text."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class FastTokenizer:
    """A pipeline of the ``tokenizers`` library, with what a checkpoint's other files add to it."""

    backend: "tokenizers.Tokenizer"
    content: str
    """Digest of all files that the tokenizer was built from."""
    frame: Frame | None = None
    """Special tokens around an encoder's text; None leaves it to the pipeline's own template."""
    rule: LanguageRule | None = None
    eos: int | None = None
    chat_template: str | None = None
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    """Names a chat template may use -> token."""
    clean_up: bool = False

    @cached_property
    def identity(self) -> str:
        """Digest of the files, the settings, the frame and the library's version."""
        import tokenizers

        frame, version = repr(self.frame).encode(), tokenizers.__version__.encode()
        return digest_of(b"fast-1", self.content.encode(), frame, version)

    @cached_property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @cached_property
    def languages(self) -> Mapping[str, int]:
        """Language code -> token id for mBART and NLLB; empty for others."""
        if self.rule is None:
            return {}
        tokens = {token.content: id for id, token in self._added.items()}
        return {code: id for code, id in tokens.items() if self.rule.codes.fullmatch(code)}

    @property
    def language_starts_decoding(self) -> bool:
        """Whether a target language's token takes the place of the decoder start token."""
        return self.rule is not None and self.rule.starts_decoding

    def encode(self, text: str) -> Encoded:
        """Tokens with the special tokens that the checkpoint puts around a text."""
        if self.frame is not None:
            ids, offsets = self.encode_plain(text)
            before, after, end = self.frame.before, self.frame.after, (len(text), len(text))
            return Encoded(
                [*before, *ids, *after], [*[(0, 0)] * len(before), *offsets, *[end] * len(after)]
            )
        found = _run(self.backend.encode, text)
        return Encoded(found.ids, _placed(found, len(text)))

    def encode_plain(self, text: str) -> Encoded:
        """Tokens of the text alone."""
        found = _run(self.backend.encode, text, add_special_tokens=False)
        return Encoded(found.ids, found.offsets)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of ``ids``; ids beyond the vocabulary spell nothing."""
        kept = self._after_prompt(ids) if skip_special else list(ids)
        text: str = _run(self.backend.decode, kept, skip_special_tokens=skip_special)
        if self._has_timestamps:
            text = drop_timestamps(text)
        return clean_up_spaces(text) if self.clean_up else text

    def token_of(self, id: int) -> str:
        """Spelling of ``id`` in the vocabulary."""
        token: str | None = self.backend.id_to_token(id) if id >= 0 else None
        if token is None:
            raise UsageError(
                f"`id` must be one of the tokenizer's {self.vocab_size} ids, but is {id!r} instead."
            )
        return token

    def id_of(self, token: str) -> int | None:
        """Id of the token spelled ``token``, or None."""
        found: int | None = self.backend.token_to_id(token)
        return found

    def for_language(self, source: str) -> "FastTokenizer":
        """The same pipeline with another language code around the text."""
        if self.rule is None or self.eos is None or source not in self.languages:
            raise unknown_language(source, self.languages)
        return replace(self, frame=language_frame(self.rule, self.languages[source], self.eos))

    def chat_text(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A prompt by the chat template, if the checkpoint has one."""
        return render_chat(self.chat_template, messages, self.special_tokens)

    @property
    def converses(self) -> bool:
        """Whether the checkpoint has a chat template."""
        return self.chat_template is not None

    @property
    def control_tokens(self) -> frozenset[str]:
        """Special tokens as they are spelled."""
        return frozenset(token.content for token in self._added.values() if token.special)

    def incremental(self) -> IncrementalDecoder:
        """A decoder for tokens as they are generated; special tokens are skipped."""
        decoder = self.backend.decoder
        stages: list[Stage] = stages_of(
            None if decoder is None else json.loads(decoder.__getstate__())
        )
        if self._has_timestamps:
            stages.append(DropTimestamps())
        if self.clean_up:
            stages.append(CleanUp())
        staged = StagedDecoder(self._spelling, stages)
        return _PromptSkipper(self, staged) if self._has_timestamps else staged

    @cached_property
    def _added(self) -> dict[int, Any]:
        added: dict[int, Any] = self.backend.get_added_tokens_decoder()
        return added

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(id for id, token in self._added.items() if token.special)

    @cached_property
    def _has_timestamps(self) -> bool:
        return self.id_of("<|startoftranscript|>") is not None

    def _spelling(self, token_id: int) -> str | None:
        if token_id in self._special_ids:
            return None
        spelling: str | None = self.backend.id_to_token(token_id)
        return spelling

    def _after_prompt(self, ids: Sequence[int]) -> list[int]:
        """Whisper's tokens without the previous text that a ``<|startofprev|>`` introduces."""
        kept = list(ids)
        previous = self.id_of("<|startofprev|>") if self._has_timestamps else None
        if previous is None or not kept or kept[0] != previous:
            return kept
        start = self.id_of("<|startoftranscript|>")
        return kept[kept.index(start) :] if start in kept else []


class _PromptSkipper:
    """Whisper: the previous text in front of ``<|startoftranscript|>`` is no part of the text."""

    def __init__(self, tokenizer: FastTokenizer, decoder: IncrementalDecoder) -> None:
        self._previous = tokenizer.id_of("<|startofprev|>")
        self._start = tokenizer.id_of("<|startoftranscript|>")
        self._decoder = decoder
        self._at_first, self._inside = True, False

    def push(self, token_id: int) -> str:
        if self._at_first:
            self._at_first, self._inside = False, token_id == self._previous
        if self._inside:
            self._inside = token_id != self._start
            return ""
        return self._decoder.push(token_id)

    def finish(self) -> str:
        return self._decoder.finish()


def _run(call: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
    """Call the library; a panic in it, which is no Exception, names the files as damaged."""
    try:
        return call(*arguments, **more)
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise CorruptCheckpointError(
            f"the tokenizer's files are damaged: the `tokenizers` library fails on them ({error}); "
            "fetch the checkpoint again."
        ) from error


def _placed(found: Any, length: int) -> list[tuple[int, int]]:
    """Offsets in which the special tokens after the text stand at its end, not at 0."""
    offsets: list[tuple[int, int]] = list(found.offsets)
    ordinary = [place for place, special in enumerate(found.special_tokens_mask) if not special]
    for place in range(ordinary[-1] + 1 if ordinary else len(offsets), len(offsets)):
        if offsets[place] == (0, 0):
            offsets[place] = (length, length)
    return offsets


def language_frame(rule: LanguageRule, language: int, eos: int) -> Frame:
    """The special tokens around a text in the language whose token is ``language``."""
    if rule.place == "before":
        return Frame(before=(language,), after=(eos,))
    return Frame(after=(eos, language))


def add_tokens(backend: "tokenizers.Tokenizer", config: TokenizerConfig) -> None:
    """Add the tokens that the small files name and the pipeline does not mark yet.

    Raises :class:`CorruptCheckpointError` where a token would not get the id that the files say.
    """
    marked = backend.get_added_tokens_decoder()
    known = {token.content for token in marked.values()}
    special = {token.content for token in marked.values() if token.special}
    for place, token in sorted(config.added.items()):
        if token.content not in known:
            _add(backend, token)
            found = backend.token_to_id(token.content)
            if found != place:
                raise CorruptCheckpointError(
                    f"the tokenizer's files say that {token.content!r} is token {place}, but its "
                    f"vocabulary makes it {found}; fetch the checkpoint again."
                )
    declared = {token.content for token in config.added.values() if token.special}
    for token in [*config.named.values(), *config.extra]:
        if token.content not in special | declared:
            _add(backend, replace(token, special=True))
            special.add(token.content)


def _add(backend: "tokenizers.Tokenizer", token: Added) -> None:
    import tokenizers

    added = tokenizers.AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=token.special,
    )
    if token.special:
        backend.add_special_tokens([added])
    else:
        backend.add_tokens([added])


def finish_fast(
    backend: "tokenizers.Tokenizer",
    config: TokenizerConfig,
    *,
    content: str,
    rule: LanguageRule | None = None,
    frame: Frame | None = None,
) -> FastTokenizer:
    """A tokenizer from a pipeline and the checkpoint's small files.

    ``content`` is a digest of what the pipeline was built from: the vocabulary files, the family.
    Raises :class:`UnsupportedModelError` for a multilingual vocabulary without its own source
    language.
    """
    import tokenizers.models

    add_tokens(backend, config)
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = config.flag("split_special_tokens")
    # The clean-up is made for word pieces and spoils BPE text; transformers leaves BPE alone too.
    forced = config.flag("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output")
    bpe = isinstance(backend.model, tokenizers.models.BPE)
    tokenizer = FastTokenizer(
        backend=backend,
        content=digest_of(content.encode(), config.content),
        frame=frame,
        rule=rule,
        eos=backend.token_to_id(config.token("eos_token", "</s>") or "</s>"),
        chat_template=config.chat_template,
        special_tokens=config.special_tokens,
        clean_up=config.flag("clean_up_tokenization_spaces") and (forced or not bpe),
    )
    if rule is None:
        return tokenizer
    language = config.source_language or rule.default
    if language not in tokenizer.languages or tokenizer.eos is None:
        raise UnsupportedModelError(
            f"the tokenizer's source language is {language!r}, but its vocabulary has no such "
            "token (or no end-of-sequence token); set `src_lang` in tokenizer_config.json."
        )
    return tokenizer.for_language(language)
