"""Marian and M2M100: SentencePiece cuts the text, a vocabulary of its own numbers the pieces.

Both follow transformers' Python tokenizers, which call the sentencepiece package itself.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from xattn.errors import CorruptCheckpointError, MissingExtraError, UsageError
from xattn.inputs.chat import render_chat
from xattn.inputs.decoders import CleanUp, Stage, StagedDecoder, SurroundingStrip, clean_up_spaces
from xattn.inputs.fast import Frame
from xattn.inputs.languages import unknown_language
from xattn.inputs.spm import MARK, fields
from xattn.inputs.text import Encoded, IncrementalDecoder
from xattn.inputs.tokenizer_config import Added
from xattn.memory import digest_of


class SentencePiece:
    """One ``.spm`` or ``.model`` file in the sentencepiece package."""

    def __init__(self, path: Path) -> None:
        try:
            import sentencepiece
        except ImportError as error:
            raise MissingExtraError("sentencepiece", "text", f"reading {path.name}") from error
        self.data = path.read_bytes()
        self.version = str(sentencepiece.__version__)
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(self.data)
        except RuntimeError as error:
            raise CorruptCheckpointError(
                f"{path} is not a SentencePiece model, or is cut off ({error}); fetch it again."
            ) from error

    def encode(self, text: str) -> list[tuple[str, int, int]]:
        """Pieces of ``text`` with the characters ``[start, end)`` each of them covers."""
        proto = self._processor.encode(text, out_type="serialized_proto")
        character_at = _character_places(text)
        pieces = []
        for number, value in fields(proto):
            if number == 2 and isinstance(value, bytes):
                piece: dict[int, Any] = dict(fields(value))
                spelling, start, end = piece.get(1, b""), piece.get(4, 0), piece.get(5, 0)
                pieces.append((spelling.decode(), character_at[start], character_at[end]))
        return pieces

    def decode(self, pieces: Sequence[str]) -> str:
        """Text of ``pieces``; those that the model does not know read as they are spelled."""
        text: str = self._processor.decode(list(pieces)) if pieces else ""
        return text.replace(MARK, " ")

    def inner_text(self, pieces: Sequence[str]) -> str:
        """What ``pieces`` add behind other text."""
        return self.decode(["x", *pieces]).removeprefix("x")

    def is_byte(self, piece: str) -> bool:
        """Whether ``piece`` stands for one byte of a character that has no piece."""
        found: bool = self._processor.is_byte(self._processor.piece_to_id(piece))
        return found


def _character_places(text: str) -> list[int]:
    """For each byte of the text's UTF-8 form, and for its end, the character it belongs to."""
    places: list[int] = []
    for place, character in enumerate(text):
        places += [place] * len(character.encode())
    places.append(len(text))
    return places


class _PieceText:
    """Pieces to text behind other text; a run of byte pieces waits for its end."""

    def __init__(self, model: SentencePiece) -> None:
        self._model = model
        self._run: list[str] = []

    def push(self, text: str) -> str:
        if self._model.is_byte(text):
            self._run.append(text)
            return ""
        return self.finish() + self._model.inner_text([text])

    def finish(self) -> str:
        run, self._run = self._run, []
        return self._model.inner_text(run) if run else ""


@dataclass(frozen=True, kw_only=True, eq=False)
class PieceTokenizer:
    """A SentencePiece model for the source, one for the target, and a vocabulary over both."""

    source: SentencePiece
    target: SentencePiece
    encoder: Mapping[str, int]
    """Source piece -> id."""
    spellings: Mapping[int, str]
    """Target id -> piece."""
    unknown: int
    eos: int
    added: Mapping[str, tuple[int, Added]]
    """Tokens that are found whole in a text, with their ids."""
    special: frozenset[int]
    """Ids that decoding leaves out."""
    frame: Frame
    languages: Mapping[str, int] = field(default_factory=dict)
    language_starts_decoding: bool = False
    code: re.Pattern[str] | None = None
    """A token in front of a text that names the target language (Marian's ``>>fra<<``)."""
    special_gap: str = ""
    """What stands behind a special token in a text that keeps them."""
    clean_up: bool = False
    settings: bytes = b""
    """Content of the small files that the fields here were read from."""
    chat_template: str | None = None
    special_tokens: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def identity(self) -> str:
        """Digest of both models, the vocabulary, the settings and the package's version."""
        encoder = repr(sorted(self.encoder.items())).encode()
        spellings = repr(sorted(self.spellings.items())).encode()
        models = (self.source.data, self.target.data, self.source.version.encode())
        frame = repr(self.frame).encode()
        return digest_of(b"pieces-1", *models, encoder, spellings, self.settings, frame)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest id."""
        return max(*self._tokens, *self.encoder.values()) + 1

    def encode(self, text: str) -> Encoded:
        """Tokens with the end of sequence and, for M2M100, the language around them."""
        ids, offsets = self._encode(text, self.source, self.encoder)
        before, after, end = self.frame.before, self.frame.after, (len(text), len(text))
        return Encoded(
            [*before, *ids, *after], [*[(0, 0)] * len(before), *offsets, *[end] * len(after)]
        )

    def encode_plain(self, text: str) -> Encoded:
        """Tokens of a target text alone."""
        return self._encode(text, self.target, self._ids)

    def _encode(self, text: str, model: SentencePiece, numbers: Mapping[str, int]) -> Encoded:
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for start, end, token in self._parts(text):
            if token is not None:
                ids.append(token)
                offsets.append((start, end))
                continue
            for piece, first, last in model.encode(text[start:end]):
                ids.append(numbers.get(piece, self.unknown))
                offsets.append((start + first, start + last))
        return Encoded(ids, offsets)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Target text of ``ids``; ids without a token count as unknown."""
        text, pieces = "", []
        for token in ids:
            if token not in self.special and token in self._tokens:
                pieces.append(self._tokens[token])
            elif not skip_special:
                spelling = self._tokens.get(token, self._tokens.get(self.unknown, ""))
                text += self.target.decode(pieces) + spelling + self.special_gap
                pieces = []
        text = (text + self.target.decode(pieces)).strip()
        return clean_up_spaces(text) if self.clean_up else text

    def token_of(self, id: int) -> str:
        """Spelling of ``id`` in the target vocabulary."""
        if id not in self._tokens:
            raise UsageError(
                f"`id` must be one of the tokenizer's {self.vocab_size} ids, but is {id!r} instead."
            )
        return self._tokens[id]

    def id_of(self, token: str) -> int | None:
        """Id of the token spelled ``token``, or None."""
        return self._ids.get(token)

    def for_language(self, source: str) -> "PieceTokenizer":
        """The same tokenizer with another language token in front of the text."""
        if source not in self.languages:
            raise unknown_language(source, self.languages)
        return replace(self, frame=Frame(before=(self.languages[source],), after=(self.eos,)))

    def chat_text(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A prompt by the chat template, if the checkpoint has one."""
        return render_chat(self.chat_template, messages, self.special_tokens)

    @property
    def converses(self) -> bool:
        """Whether the checkpoint has a chat template."""
        return self.chat_template is not None

    @property
    def control_tokens(self) -> frozenset[str]:
        """Special tokens that are found whole in a text."""
        return frozenset(token for token, (id, _) in self.added.items() if id in self.special)

    def incremental(self) -> IncrementalDecoder:
        """A decoder for tokens as they are generated; special tokens are skipped."""
        stages: list[Stage] = [_PieceText(self.target), SurroundingStrip()]
        if self.clean_up:
            stages.append(CleanUp())
        return StagedDecoder(
            lambda token: None if token in self.special else self._tokens.get(token), stages
        )

    @cached_property
    def _tokens(self) -> dict[int, str]:
        added = {id: token.content for id, token in self.added.values()}
        return {**self.spellings, **added}

    @cached_property
    def _ids(self) -> dict[str, int]:
        added = {content: id for content, (id, _) in self.added.items()}
        return {**{token: id for id, token in self.spellings.items()}, **added}

    @cached_property
    def _whole(self) -> re.Pattern[str] | None:
        # The longest of the tokens that begin at one place wins.
        longest_first = sorted(filter(None, self.added), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def _parts(self, text: str) -> Iterator[tuple[int, int, int | None]]:
        """Places of whole tokens, with their ids, and of the stretches between them."""
        start = 0
        swallow = False
        for match in self._whole.finditer(text) if self._whole else ():
            id, token = self.added[match[0]]
            end = match.start()
            stretch = text[start:end]
            if swallow:
                start += len(stretch) - len(stretch.lstrip())
            if token.lstrip:
                end = start + len(text[start:end].rstrip())
            yield from self._stretch(text, start, end)
            yield match.start(), match.end(), id
            start, swallow = match.end(), token.rstrip
        if swallow:
            start += len(text[start:]) - len(text[start:].lstrip())
        yield from self._stretch(text, start, len(text))

    def _stretch(self, text: str, start: int, end: int) -> Iterator[tuple[int, int, int | None]]:
        code = self.code.match(text, start, end) if self.code else None
        if code:
            yield start, code.end(), self.encoder.get(code[0], self.unknown)
            start = code.end()
        if start < end:
            yield start, end, None
