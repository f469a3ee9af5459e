"""Text: its canonical form, tokens with their places in it, and text as it is generated."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from xattn.errors import InvalidSourceError, require
from xattn.memory import SpanTable

Unit = Literal["words", "characters"]


class Encoded(NamedTuple):
    """Token ids and, for each, the ``[start, end)`` characters of the text it came from.

    Tokens that the tokenizer adds by itself have an empty span at the place where they stand.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]

    @property
    def spans(self) -> SpanTable:
        """The offsets as the spans of a memory, one per token."""
        return SpanTable(torch.tensor(self.offsets).reshape(-1, 2), "characters")


class IncrementalDecoder(Protocol):
    """Tokens in, one at a time; text out as soon as no later token can change it."""

    def push(self, token_id: int) -> str:
        """The text that ``token_id`` settled; often empty, never half a character."""
        ...

    def finish(self) -> str:
        """The text that was still waiting for more tokens."""
        ...


class Tokenizer(Protocol):
    """What the rest of xattn needs from a tokenizer."""

    @property
    def identity(self) -> str:
        """Digest of everything that can change the ids of a text."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of ids the tokenizer knows; the model's own vocabulary may be padded beyond it."""
        ...

    @property
    def languages(self) -> Mapping[str, int]:
        """Language code -> token id, where one model serves many languages; else empty."""
        ...

    @property
    def language_starts_decoding(self) -> bool:
        """The target language's token is the decoder start token (mBART), not the one after it."""
        ...

    def encode(self, text: str) -> Encoded:
        """Tokens of a source text with the special tokens that an encoder expects around them.

        ``text`` is taken as it stands; pass :func:`canonical_text` of what a person gave.
        """
        ...

    def encode_plain(self, text: str) -> Encoded:
        """Tokens of ``text`` and nothing else, as the decoder reads it.

        That is the target side: Marian and grapheme-to-phoneme models have one vocabulary per side.
        """
        ...

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of ``ids``, as transformers gives it for the same checkpoint."""
        ...

    def token_of(self, id: int) -> str:
        """Spelling of a token in the vocabulary. Raises :class:`UsageError` for an unknown id."""
        ...

    def id_of(self, token: str) -> int | None:
        """Id of a token spelled as in the vocabulary, or None."""
        ...

    def for_language(self, source: str) -> "Tokenizer":
        """The same tokenizer for another source language.

        Raises :class:`UsageError`, with near names, for a code the model does not know.
        """
        ...

    def chat_text(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A conversation by the checkpoint's template, up to the model's turn.

        It is for :meth:`encode_plain`; control tokens in the messages count as such.
        """
        ...

    @property
    def converses(self) -> bool:
        """Whether the checkpoint has a chat template."""
        ...

    @property
    def control_tokens(self) -> frozenset[str]:
        """Spellings that stand for a special token wherever a text has them."""
        ...

    def incremental(self) -> IncrementalDecoder:
        """A fresh decoder whose pieces add up to ``decode(ids)``."""
        ...


def canonical_text(text: str) -> str:
    """``text`` in Unicode normalisation form C (UAX #15): what is hashed, tokenised and cited.

    Raises :class:`InvalidSourceError` for half a surrogate pair, which no encoding can store.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidSourceError(
            f"the text holds half a surrogate pair at character {error.start}; "
            "decode the bytes it came from as UTF-8 before passing it."
        ) from error
    return unicodedata.normalize("NFC", text)


# Scripts written without spaces: Thai and Lao, Myanmar, Khmer, kana and Han, half and full width.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ua4cf"
    "\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)
# Marks, joiners and closing punctuation stay with the character before them.
_CLINGING = frozenset({"Mn", "Mc", "Me", "Cf", "Pe", "Pf", "Po", "Sk"})


def _begins_word(before: str, character: str) -> bool:
    """Whether a word begins at ``character``; white space belongs to the word after it."""
    if character.isspace():
        return not before.isspace()
    if before.isspace() or unicodedata.category(character) in _CLINGING or before == "\u200d":
        return False
    return bool(_UNSPACED.match(character) or _UNSPACED.match(before))


class TextStream:
    """Text of tokens as they are generated, in whole words or whole characters.

    The pieces of :meth:`push` and :meth:`finish` add up to ``tokenizer.decode`` of all tokens.
    ``unit="characters"`` gives a piece as soon as its bytes form complete characters that no later
    token can change; ``unit="words"`` gives a word, with the white space before it, once the next
    word begins. In scripts without spaces each character counts as a word.
    """

    def __init__(self, tokenizer: Tokenizer, unit: Unit = "words") -> None:
        require(unit in ("words", "characters"), "unit", "'words' or 'characters'", unit)
        self._decoder = tokenizer.incremental()
        self._unit = unit
        self._word: list[str] = []
        self._last = ""

    def push(self, token_id: int) -> str:
        """Take one token; return the text it completed, possibly empty."""
        text = self._decoder.push(token_id)
        return text if self._unit == "characters" else self._whole_words(text)

    def finish(self) -> str:
        """Return the text that was still held back. The stream is empty afterwards."""
        rest = "".join(self._word) + self._decoder.finish()
        self._word, self._last = [], ""
        return rest

    def _whole_words(self, text: str) -> str:
        if not text:
            return ""
        before = self._last + text[:-1] if self._last else " " + text[:-1]
        self._last = text[-1]
        cut = 0
        for place in range(len(text) - 1, -1, -1):
            # The very first character of a stream begins nothing that could be given out.
            if (self._word or place) and _begins_word(before[place], text[place]):
                cut = place
                break
        else:
            self._word.append(text)
            return ""
        ready = "".join(self._word) + text[:cut]
        self._word = [text[cut:]]
        return ready


def token_ids_of(value: object) -> list[int] | None:
    """``value`` as token ids; None where it is anything else. An empty sequence is no tokens.

    Arrays and tensors count as the lists that they stand for.
    """
    if isinstance(value, np.ndarray | Tensor):
        value = value.tolist()
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        return None
    whole = (isinstance(item, int | np.integer) and not isinstance(item, bool) for item in value)
    return [int(item) for item in value] if all(whole) else None
