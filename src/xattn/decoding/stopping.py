"""Stop strings: text that ends a sequence wherever token boundaries fall."""

from collections.abc import Sequence
from typing import Protocol

from xattn.decoding.settings import Settings
from xattn.errors import UsageError, require

TOKENS_PER_CHARACTER = 4
"""Byte-level tokens that one character takes at most."""


class Detokenizer(Protocol):
    """The one thing stop strings need of a tokenizer."""

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of ``ids``."""


class StopStrings:
    """Finds the first of some stop strings in the text of generated tokens.

    Special tokens count as their text, so that ``"<|im_end|>"`` can be a stop string.
    """

    def __init__(self, strings: Sequence[str], tokenizer: Detokenizer) -> None:
        self.strings, self._tokenizer = tuple(strings), tokenizer
        longest = max(map(len, self.strings))
        self._window = TOKENS_PER_CHARACTER * (longest + 1)

    def find(self, tokens: Sequence[int]) -> str | None:
        """The text before the stop string that the last of ``tokens`` completes; None if none."""
        # The whole text is made only where its end has a match, which may be a false one: the
        # window can begin in the middle of a character.
        if not self._occurs(tokens[-self._window :]):
            return None
        plain = self._tokenizer.decode(tokens)
        cut = first_of(self.strings, plain)
        if cut is not None:
            return plain[:cut]
        return self._before_special(tokens)

    def _occurs(self, tokens: Sequence[int]) -> bool:
        """In the text with special tokens, or in the one without."""
        texts = (self._tokenizer.decode(tokens, skip_special=skip) for skip in (True, False))
        return any(first_of(self.strings, text) is not None for text in texts)

    def _before_special(self, tokens: Sequence[int]) -> str | None:
        """The same for a stop string that needs the text of special tokens."""
        full = self._tokenizer.decode(tokens, skip_special=False)
        cut = first_of(self.strings, full)
        if cut is None:
            return None
        end = len(tokens)
        before = full
        while len(before) > cut:
            end -= 1
            before = self._tokenizer.decode(tokens[:end], skip_special=False)
        return self._tokenizer.decode(tokens[:end]) + full[len(before) : cut]


class StopFilter:
    """Cuts a stream of text before the first stop string; the pieces it passes on are final.

    ::

        pieces = (stop.push(text.push(token)) for token in stream(...))
    """

    def __init__(self, strings: Sequence[str]) -> None:
        require(all(strings), "strings", "non-empty", strings)
        self.strings, self.stopped = tuple(strings), False
        self._held = ""

    def push(self, piece: str) -> str:
        """What can be shown after ``piece``: text that may begin a stop string is held back."""
        if self.stopped:
            return ""
        text = self._held + piece
        cut = first_of(self.strings, text)
        if cut is not None:
            self.stopped, self._held = True, ""
            return text[:cut]
        keep = max((_overlap(text, stop) for stop in self.strings), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back and turned out to begin no stop string."""
        held, self._held = self._held, ""
        return held


def stop_strings_of(settings: Settings, tokenizer: Detokenizer | None) -> StopStrings | None:
    """What finds the stop strings of ``settings``; None without any."""
    if not settings.stop_strings:
        return None
    if tokenizer is None:
        raise UsageError(
            f"`stop_strings` {settings.stop_strings!r} are text, and there is no tokenizer to make "
            "text of tokens; give one, or set `eos_token_id` to token ids instead."
        )
    return StopStrings(settings.stop_strings, tokenizer)


def first_of(strings: Sequence[str], text: str) -> int | None:
    """Where the first of ``strings`` begins in ``text``."""
    found = [at for string in strings if (at := text.find(string)) >= 0]
    return min(found, default=None)


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of ``text`` that begin ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
