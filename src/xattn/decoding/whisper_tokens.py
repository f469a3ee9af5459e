"""Whisper's vocabulary: special tokens, prompts, and words made of tokens."""

import string
from collections.abc import Sequence
from functools import cached_property

from xattn.errors import UsageError, require
from xattn.inputs.text import Tokenizer

MULTILINGUAL_VOCABULARY = 51_865
"""Vocabularies below this size are those of the English-only models."""

TASKS = ("transcribe", "translate")

_CODES = (
    "en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th "
    "ur hr bg lt la mi ml cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr "
    "pa si km sn yo so af oc ka be tg sd gu am yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt "
    "haw ln ha ba jw su yue"
)
LANGUAGES = tuple(_CODES.split())
"""Codes of the languages Whisper was trained on, in the order of its tokens (``yue`` since v3)."""

_WITHOUT_SPACES = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
_REPLACEMENT = "\ufffd"

_SYMBOLS = '"#()*+/:;<=>@[\\]^_`{|}~「」『』'
_RUNS = "<< >> <<< >>> -- --- -( -[ (' (\" (( )) ((( ))) [[ ]] {{ }} ♪♪ ♪♪♪"
_MUSIC = "♩♪♫♬♭♮♯"


class WhisperTokens:
    """A tokenizer with Whisper's special tokens.

    Raises :class:`UsageError` where the tokenizer lacks them: it is not a Whisper model's.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.tokenizer, self.vocab_size = tokenizer, vocab_size
        self.end = self._special("<|endoftext|>")
        self.start = self._special("<|startoftranscript|>")
        self.previous = self._special("<|startofprev|>")
        self.no_timestamps = self._special("<|notimestamps|>")
        self.timestamp_begin = self.no_timestamps + 1
        self.multilingual = vocab_size >= MULTILINGUAL_VOCABULARY
        found = {code: tokenizer.id_of(f"<|{code}|>") for code in LANGUAGES}
        self.languages = {
            code: id for code, id in found.items() if id is not None and self.multilingual
        }
        """Token of each language that the model knows; empty for English-only models."""
        names = ("<|nospeech|>", "<|nocaptions|>")
        self.no_speech = next((id for n in names if (id := tokenizer.id_of(n)) is not None), None)

    def _special(self, token: str) -> int:
        id = self.tokenizer.id_of(token)
        if id is None:
            raise UsageError(
                f"transcription needs a Whisper model: this one's tokenizer has no {token}."
            )
        return id

    def require_language(self, language: str, task: str) -> None:
        """Raise :class:`UsageError` unless the model can do this."""
        if self.multilingual:
            bound = f"one of {', '.join(self.languages)}"
            require(language in self.languages, "language", bound, language)
        else:
            require(language == "en", "language", "'en' for an English-only model", language)
            bound = "'transcribe' for an English-only model"
            require(task == "transcribe", "task", bound, task)

    def start_sequence(self, language: str, task: str) -> list[int]:
        """Start of transcript, and for multilingual models the language and the task."""
        if not self.multilingual:
            return [self.start]
        return [self.start, self.languages[language], self._special(f"<|{task}|>")]

    def encode(self, text: str) -> list[int]:
        """Text to tokens, none of them special."""
        return self.tokenizer.encode_plain(text).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of the text tokens; special tokens and timestamps are passed over."""
        return self.tokenizer.decode([token for token in tokens if token < self.end])

    @cached_property
    def non_speech(self) -> tuple[int, ...]:
        """Tokens of brackets, speaker tags, music and the like, which nobody pronounces.

        A dash and an apostrophe are among them only where they would begin a word.
        """
        found = {self.encode(" -")[0], self.encode(" '")[0]}
        for symbol in (*_SYMBOLS, *_RUNS.split(), *_MUSIC):
            for tokens in (self.encode(symbol), self.encode(f" {symbol}")):
                # The musical signs share their first bytes, and nothing spoken begins with these.
                if len(tokens) == 1 or symbol in _MUSIC:
                    found.add(tokens[0])
        return tuple(sorted(found))

    def suppressed(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """``tokens`` that may not be generated, where -1 stands for :attr:`non_speech`.

        The tokens that only ever stand in a prompt are always among them.
        """
        given = {token for token in tokens if token >= 0}
        if -1 in tokens:
            given.update(self.non_speech)
        names = ("<|transcribe|>", "<|translate|>", "<|startoflm|>")
        prompting = {self.tokenizer.id_of(name) for name in names}
        prompting |= {self.start, self.previous, self.no_speech}
        return tuple(sorted(given | {id for id in prompting if id is not None}))

    def split_words(self, tokens: Sequence[int], language: str) -> list[tuple[str, list[int]]]:
        """Words with their tokens: at spaces, or at characters where a language writes none."""
        characters = self._split_characters(tokens)
        if language in _WITHOUT_SPACES:
            return characters
        words: list[tuple[str, list[int]]] = []
        for text, ids in characters:
            # `in` is meant: runs of marks that stand in this order count, and so does a lone space.
            mark = text.strip() in string.punctuation
            if not words or text.startswith(" ") or mark or ids[0] >= self.end:
                words.append((text, ids))
            else:
                words[-1] = (words[-1][0] + text, words[-1][1] + ids)
        return words

    def _split_characters(self, tokens: Sequence[int]) -> list[tuple[str, list[int]]]:
        """The shortest runs of tokens that decode to whole characters."""
        full = self.tokenizer.decode(tokens, skip_special=False)
        runs: list[tuple[str, list[int]]] = []
        run: list[int] = []
        done = 0
        for token in tokens:
            run.append(token)
            text = self.tokenizer.decode(run, skip_special=False)
            at = text.find(_REPLACEMENT)
            # A replacement character that stands in the full text as well is really there.
            if at < 0 or full[done + at : done + at + 1] == _REPLACEMENT:
                runs.append((text, run))
                done += len(text)
                run = []
        return runs
