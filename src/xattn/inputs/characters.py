"""One token per character: the vocabulary of small grapheme-to-phoneme models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from xattn.errors import UsageError, require
from xattn.inputs.decoders import StagedDecoder
from xattn.inputs.text import Encoded, IncrementalDecoder
from xattn.memory import digest_of

SPECIAL_NAMES = {"pad": "<pad>", "bos": "<s>", "eos": "</s>", "unk": "<unk>"}


@dataclass(frozen=True, kw_only=True, eq=False)
class CharacterTokenizer:
    """A character's id is its place in a list; the source and the target have lists of their own.

    Ids of special tokens are places whose characters are placeholders.
    """

    source_characters: tuple[str, ...]
    target_characters: tuple[str, ...]
    bos: int
    eos: int
    pad: int
    unk: int

    def __post_init__(self) -> None:
        size = min(len(self.source_characters), len(self.target_characters))
        for name, token in self._special.items():
            require(0 <= token < size, name, f"between 0 and {size - 1}", token)

    @cached_property
    def _special(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in SPECIAL_NAMES}

    @cached_property
    def _source_ids(self) -> dict[str, int]:
        special = set(self._special.values())
        return {c: i for i, c in enumerate(self.source_characters) if i not in special}

    @cached_property
    def _target_ids(self) -> dict[str, int]:
        ordinary = {c: i for i, c in enumerate(self.target_characters) if self._spelling(i)}
        return ordinary | {SPECIAL_NAMES[name]: token for name, token in self._special.items()}

    @cached_property
    def identity(self) -> str:
        """Digest of both lists and the special ids."""
        lists = ("\0".join(self.source_characters), "\0".join(self.target_characters))
        return digest_of(
            b"characters-1", *(part.encode() for part in lists), repr(self._special).encode()
        )

    @property
    def vocab_size(self) -> int:
        """The longer list's length."""
        return max(len(self.source_characters), len(self.target_characters))

    @property
    def languages(self) -> Mapping[str, int]:
        """Empty: there are no language tokens."""
        return {}

    @property
    def language_starts_decoding(self) -> bool:
        """False: there are no language tokens."""
        return False

    def encode(self, text: str) -> Encoded:
        """Ids of the characters between ``bos`` and ``eos``; unknown characters become ``unk``."""
        ids = [self._source_ids.get(character, self.unk) for character in text]
        end = (len(text), len(text))
        return Encoded([self.bos, *ids, self.eos], [(0, 0), *_each_place(text), end])

    def encode_plain(self, text: str) -> Encoded:
        """Ids of target characters alone."""
        return Encoded([self._target_ids.get(c, self.unk) for c in text], _each_place(text))

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Target characters of ``ids``; special tokens are left out, or spelled ``<s>``."""
        spell = self._spelling if skip_special else self.token_of
        return "".join(spell(token) or "" for token in ids)

    def token_of(self, id: int) -> str:
        """The target character of ``id``, or the name of a special token."""
        for name, token in self._special.items():
            if token == id:
                return SPECIAL_NAMES[name]
        spelling = self._spelling(id)
        if spelling is None:
            bound = len(self.target_characters) - 1
            raise UsageError(f"`id` must be between 0 and {bound}, but is {id!r} instead.")
        return spelling

    def id_of(self, token: str) -> int | None:
        """The id of a target character or of a special token's name."""
        return self._target_ids.get(token)

    def for_language(self, source: str) -> "CharacterTokenizer":
        """Refused: the model reads one language."""
        raise UsageError(
            f"this model reads one language only; leave the source language out (found {source!r})."
        )

    def chat_text(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Refused: the model does not converse."""
        raise UsageError("this model has no chat template; pass the word as text.")

    @property
    def converses(self) -> bool:
        """It does not."""
        return False

    @property
    def control_tokens(self) -> frozenset[str]:
        """None: every character is one."""
        return frozenset()

    def incremental(self) -> IncrementalDecoder:
        """A decoder that gives each character at once."""
        return StagedDecoder(self._spelling, ())

    def _spelling(self, token: int) -> str | None:
        known = 0 <= token < len(self.target_characters) and token not in self._special.values()
        return self.target_characters[token] if known else None


def _each_place(text: str) -> list[tuple[int, int]]:
    return [(place, place + 1) for place in range(len(text))]


def character_tokenizer(
    source_characters: Sequence[str],
    target_characters: Sequence[str],
    *,
    bos: int,
    eos: int,
    pad: int,
    unk: int,
) -> CharacterTokenizer:
    """A tokenizer with one token per character; a character's id is its index in the sequence.

    Plain strings are sequences of characters. Characters at the special ids are placeholders.
    """
    return CharacterTokenizer(
        source_characters=tuple(source_characters),
        target_characters=tuple(target_characters),
        bos=bos,
        eos=eos,
        pad=pad,
        unk=unk,
    )
