"""Token spellings to text, one token at a time and without ever taking a character back.

Each stage takes the text that the stage before it settled and gives on what no later token can
change; what is still open waits inside. A chain of stages gives the same text as decoding all
tokens at once, and costs time in proportion to the text, not to its square.
"""

import codecs
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from xattn.errors import UnsupportedModelError


class Stage(Protocol):
    """One step from token spellings to text."""

    def push(self, text: str) -> str:
        """Take a token spelling (or text of the stage before); return the text that is settled."""
        ...

    def finish(self) -> str:
        """Return what was waiting."""
        ...


class StagedDecoder:
    """Ids to text through a chain of stages; ids that spell nothing (special ones) are skipped."""

    def __init__(self, spelling_of: Callable[[int], str | None], stages: Sequence[Stage]) -> None:
        self._spelling_of = spelling_of
        self._stages = stages

    def push(self, token_id: int) -> str:
        """The text that ``token_id`` settled."""
        text = self._spelling_of(token_id)
        if text is None:
            return ""
        for place, stage in enumerate(self._stages):
            if not text and place > 0:
                break
            text = stage.push(text)
        return text

    def finish(self) -> str:
        """The text that was still waiting for more tokens."""
        text = ""
        for stage in self._stages:
            text = (stage.push(text) if text else "") + stage.finish()
        return text


def byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    alphabet.update({chr(256 + place): byte for place, byte in enumerate(others)})
    return alphabet


_BYTE_OF = byte_alphabet()


class ByteLevel:
    """Byte-level BPE: spellings are bytes, and a character may be spread over several tokens."""

    def __init__(self) -> None:
        # Errors become U+FFFD, one for each maximal broken part (Unicode, section 3.9), which is
        # also what the `tokenizers` library does.
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, text: str) -> str:
        """The characters that the token's bytes complete."""
        try:
            data = bytes([_BYTE_OF[character] for character in text])
        except KeyError:  # an added token is spelled as it reads
            data = text.encode()
        return self._utf8.decode(data)

    def finish(self) -> str:
        """A sign for the bytes that never became a character."""
        return self._utf8.decode(b"", True)


class Replace:
    """Every ``old`` becomes ``new``; ``old`` is one character, so no match spans two tokens."""

    def __init__(self, old: str, new: str) -> None:
        self._old, self._new = old, new

    def push(self, text: str) -> str:
        """The text with every match replaced."""
        return text.replace(self._old, self._new)

    def finish(self) -> str:
        """Nothing: no match waits."""
        return ""


class Metaspace:
    """SentencePiece spellings: ``mark`` is a space, except in front of the whole text."""

    def __init__(self, mark: str, *, strips_first: bool) -> None:
        self._mark = mark
        self._at_first = strips_first

    def push(self, text: str) -> str:
        """The token with its marks read."""
        text = text.replace(self._mark, "" if self._at_first else " ")
        self._at_first = False
        return text

    def finish(self) -> str:
        """Nothing: no token waits."""
        return ""


_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class ByteRuns:
    """Byte fallback: a run of ``<0xE2>`` tokens is UTF-8, or as a whole becomes U+FFFD signs.

    Since one broken byte at the end of a run spoils all of it, a run waits for its end.
    """

    def __init__(self, decode_run: Callable[[bytes], str] | None = None) -> None:
        self._decode_run = decode_run or _utf8_or_signs
        self._run = bytearray()

    def push(self, text: str) -> str:
        """The token, behind the run of bytes that it ends."""
        byte = _BYTE_TOKEN.fullmatch(text)
        if byte:
            self._run.append(int(byte[1], 16))
            return ""
        return self.finish() + text

    def finish(self) -> str:
        """The run of bytes at the end."""
        run, self._run = bytes(self._run), bytearray()
        return self._decode_run(run) if run else ""


def _utf8_or_signs(run: bytes) -> str:
    try:
        return run.decode()
    except UnicodeDecodeError:
        return "\ufffd" * len(run)


class LeadingStrip:
    """Drop up to ``count`` of ``character`` in front of the whole text."""

    def __init__(self, character: str, count: int) -> None:
        self._character, self._left = character, count

    def push(self, text: str) -> str:
        """The text without what is stripped."""
        while self._left and text:
            if text[0] != self._character:
                self._left = 0
                break
            text, self._left = text[1:], self._left - 1
        return text

    def finish(self) -> str:
        """Nothing: no text waits."""
        return ""


class SurroundingStrip:
    """``str.strip`` of the whole text: white space waits until something follows it."""

    def __init__(self) -> None:
        self._started = False
        self._space = ""

    def push(self, text: str) -> str:
        """The text up to its trailing white space."""
        if not self._started:
            text = text.lstrip()
            if not text:
                return ""
            self._started = True
        text = self._space + text
        settled = text.rstrip()
        self._space = text[len(settled) :]
        return settled

    def finish(self) -> str:
        """Nothing: trailing white space is dropped."""
        self._space = ""
        return ""


class Spaced:
    """No decoder at all: spellings are joined by single spaces."""

    def __init__(self) -> None:
        self._separator = ""

    def push(self, text: str) -> str:
        """The token behind a space."""
        text, self._separator = self._separator + text, " "
        return text

    def finish(self) -> str:
        """Nothing: no token waits."""
        return ""


_CLEANED = (" .", " ?", " !", " ,", " n't", " 'm", " 's", " 've", " 're")


def clean_up_spaces(text: str) -> str:
    """Drop the space before punctuation and English contractions, as transformers does when the
    checkpoint's ``clean_up_tokenization_spaces`` asks for it."""
    for pattern in _CLEANED[:4]:
        text = text.replace(pattern, pattern[1:])
    text = text.replace(" ' ", "'")
    for pattern in _CLEANED[4:]:
        text = text.replace(pattern, pattern[1:])
    return text


class CleanUp:
    """:func:`clean_up_spaces` of the whole text, cut only where no replacement can reach across."""

    def __init__(self) -> None:
        self._open = ""

    def push(self, text: str) -> str:
        """The text up to the last safe cut, cleaned."""
        self._open += text
        cut = _clean_up_cut(self._open)
        settled, self._open = self._open[:cut], self._open[cut:]
        return clean_up_spaces(settled)

    def finish(self) -> str:
        """The rest, cleaned."""
        settled, self._open = self._open, ""
        return clean_up_spaces(settled)


def _clean_up_cut(text: str) -> int:
    """The last place where ``text`` may be cut.

    Every pattern starts with a space and has at most four characters. So none reaches over a place
    with three other characters before it. Nor over a place in front of a space, unless dropping
    that space would bring an opened pattern (`` ``, `` n``, `` '``) next to what follows it.
    """
    for place in range(len(text), 0, -1):
        if place >= 3 and " " not in text[place - 3 : place]:
            return place
        if text[place : place + 1] == " " and not text[:place].endswith((" ", " n", " '")):
            return place
    return 0


_TIMESTAMP = re.compile(r"<\|\d+\.\d+\|>")
_OPEN_TIMESTAMP = re.compile(r"<(\|(\d+(\.(\d+(\|)?)?)?)?)?\Z")


def drop_timestamps(text: str) -> str:
    """Whisper's ``<|1.08|>`` marks are no part of the text."""
    return _TIMESTAMP.sub("", text)


class DropTimestamps:
    """:func:`drop_timestamps` of the whole text; a mark that has begun waits for its end."""

    def __init__(self) -> None:
        self._open = ""

    def push(self, text: str) -> str:
        """The text without marks, up to one that has begun."""
        text = self._open + text
        begun = _OPEN_TIMESTAMP.search(text)
        cut = begun.start() if begun else len(text)
        self._open = text[cut:]
        return drop_timestamps(text[:cut])

    def finish(self) -> str:
        """A mark that never ended."""
        settled, self._open = self._open, ""
        return drop_timestamps(settled)


def stages_of(decoder: Mapping[str, Any] | None) -> list[Stage]:
    """The stages of a decoder as tokenizer.json describes it; None joins by spaces.

    Raises :class:`UnsupportedModelError` for a decoder that cannot be run one token at a time here.
    """
    if decoder is None:
        return [Spaced()]
    steps = list(decoder["decoders"]) if decoder["type"] == "Sequence" else [decoder]
    stages: list[Stage] = []
    fused = False
    for step in steps:
        kind = step["type"]
        pattern = step.get("pattern", {}).get("String", "") if kind == "Replace" else ""
        if kind == "ByteLevel":
            stages.append(ByteLevel())
        elif kind == "Metaspace":
            strips = step.get("prepend_scheme", "always") != "never"
            stages.append(Metaspace(step["replacement"], strips_first=strips))
        elif kind == "Replace" and len(pattern) == 1:
            stages.append(Replace(pattern, step["content"]))
        elif kind == "ByteFallback":
            stages.append(ByteRuns())
        elif kind == "Fuse":
            fused = True
        elif kind == "Strip" and fused and not step["stop"]:
            stages.append(LeadingStrip(step["content"], step["start"]))
        else:
            raise UnsupportedModelError(
                f"the tokenizer's decoder has the step {step!r}, which cannot be streamed; use "
                "decode() on all tokens at once."
            )
    return stages
