"""How tokens are chosen: the keywords of ``generate``, under the names transformers uses."""

import difflib
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any, Literal

from xattn.errors import UsageError, is_number, is_whole, require

DEFAULT_NEW_TOKENS = 256
"""New tokens at most, where neither the caller nor the checkpoint says."""

LEAST_TEMPERATURE = 1e-4
"""Below it a score divided by the temperature leaves float32."""

MOST_LENGTH_PENALTY = 32
"""Beyond it a length to that power leaves float64."""

MOST_GUESSES = 63
"""Tokens that the decoder checks in one step, beside the one that is certain."""

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")
LENGTHS = ("max_new_tokens", "max_length")
SEQUENCES = (
    "eos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_eos_token_id",
)

NOT_RUN: dict[str, tuple[object, ...]] = {
    "assistant_early_exit": (None,),
    "constraints": (None,),
    "diversity_penalty": (None, 0.0),
    "dola_layers": (None,),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "exponential_decay_length_penalty": (None,),
    "force_words_ids": (None,),
    "guidance_scale": (None, 1.0),
    "max_time": (None,),
    "num_beam_groups": (None, 1),
    "penalty_alpha": (None, 0.0),
    "sequence_bias": (None,),
    "token_healing": (None, False),
    "top_h": (None,),
    "watermarking_config": (None,),
}
"""Generation-config names that change the tokens and are not run here, with neutral values."""

WITHOUT_EFFECT: dict[str, tuple[object, ...]] = {
    "output_attentions": (None, False),
    "output_hidden_states": (None, False),
    "output_logits": (None, False),
    "output_scores": (None, False),
    "return_dict_in_generate": (None, False),
    "synced_gpus": (None, False),
    "use_cache": (None, True),
}
"""Names that change nothing here, with the values for which that is what was asked."""

ELSEWHERE = {
    "attention_mask": "a memory carries its own mask",
    "decoder_input_ids": "here it is `prompt`",
    "encoder_outputs": "here it is `memory`",
    "generation_config": "give its entries as keywords",
    "input_features": "here it is `memory`: a path, samples, or what encode returned",
    "input_ids": "here it is `memory` for an encoder, `prompt` for a language model",
    "inputs": "here it is `memory` for an encoder, `prompt` for a language model",
    "output_attentions": "Model.cross_attention gives the weights",
    "output_scores": "`logprobs` gives the likeliest tokens of each step",
    "return_dict_in_generate": "generate always returns a Generation",
    "streamer": "here it is Model.stream",
    "use_cache": "the cache is always used",
}
"""Other keywords of transformers' ``generate``, and where xattn has what they are for."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How tokens are chosen. Raises :class:`UsageError` for a value out of its bounds."""

    num_beams: int = 1
    max_new_tokens: int | None = None
    """New tokens at most; None takes ``max_length``, or 256."""
    max_length: int | None = None
    """Tokens at most, the prompt included; ``max_new_tokens`` goes before it."""
    strict_length: bool = True
    """A length asked for that the decoder has no positions for is an error; if False, it is cut."""
    min_new_tokens: int = 0
    """No end-of-sequence token before this many new tokens."""
    min_length: int = 0
    """No end-of-sequence token before this many tokens, the prompt included.

    In a call of ``generate``, ``min_new_tokens`` goes before it.
    """

    do_sample: bool = False
    temperature: float = 1.0
    """Divides the logits (sampling only)."""
    top_k: int = 50
    """Sample among the likeliest ``top_k`` tokens; 0 means all (sampling only)."""
    top_p: float = 1.0
    """Sample among the likeliest tokens that hold this much probability (Holtzman et al. 2020)."""
    min_p: float | None = None
    """Sample among tokens at least ``min_p`` times as likely as the likeliest."""
    typical_p: float = 1.0
    """Sample among locally typical tokens that hold this much probability (Meister et al. 2023)."""
    seed: int | None = 0
    """Same seed, same samples, at any batch size; None draws a new one."""

    repetition_penalty: float = 1.0
    """Makes tokens that already occurred less likely, if above 1 (Keskar et al. 2019)."""
    no_repeat_ngram_size: int = 0
    """No n-gram of this size occurs twice; 0 means any may."""
    penalize_prompt: bool = True
    """Repetition is of prompt and new tokens (transformers); False: of new ones (CTranslate2)."""
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    """Sequences of tokens that never occur."""
    suppress_tokens: tuple[int, ...] = ()
    """Tokens that never occur."""
    begin_suppress_tokens: tuple[int, ...] = ()
    """Tokens that do not come first, after the prompt or after a forced first token."""
    forced_bos_token_id: int | None = None
    """First new token, where the prompt is the decoder start token alone."""
    forced_eos_token_id: tuple[int, ...] | None = None
    """Last token, where the length runs out."""
    prefix_allowed_tokens_fn: Callable[[int, Any], Sequence[int]] | None = None
    """Given the number of a request and a tensor of its tokens ``[T]``, the prompt included: the
    only ids that may come next (De Cao et al. 2021). Few are computed without the others."""
    renormalize_logits: bool = False
    """Make probabilities sum to 1 again after the constraints (of consequence for beams only)."""

    length_penalty: float = 1.0
    """Scores are divided by length to this power: above 0 favours long sequences."""
    early_stopping: bool | Literal["never"] = False
    """True: stop at ``num_beams`` finished hypotheses. False: when, besides, the best running one
    is no better than they are. "never": when it is not even with its last length's penalty."""
    patience: float | None = None
    """Given: search as CTranslate2 does, until ``round(num_beams * patience)`` hypotheses have
    finished (Kasai et al. 2022); ``early_stopping`` has no effect. None: as transformers does."""
    count_eos: bool | None = None
    """The end token counts for the length that scores are divided by; None: unless ``patience`` is
    given. transformers counts it, CTranslate2 does for translation and does not for Whisper."""
    num_return_sequences: int = 1

    prompt_lookup_num_tokens: int | None = None
    """Guess up to so many next tokens from where the latest ones occurred before, in the prompt,
    the answer or a text attended to, and check them all in one step of the decoder (Saxena 2023).
    The tokens stay the same. For one sequence at a time, without beams."""

    stop_strings: tuple[str, ...] = ()
    """Text that ends a sequence; it is cut from the text and kept in the tokens."""
    eos_token_id: tuple[int, ...] | None = None
    """Tokens that end a sequence; None takes the model's."""
    logprobs: bool | int = False
    """Candidates of each step to report besides the chosen token."""

    def __post_init__(self) -> None:
        for field in fields(self):  # numpy's whole numbers wrap where they are multiplied
            object.__setattr__(self, field.name, _of_python(getattr(self, field.name)))
        self._check_lengths()
        self._check_sampling()
        self._check_constraints()
        self._check_beams()

    def _check_lengths(self) -> None:
        for name in LENGTHS:
            value = getattr(self, name)
            require(value is None or is_whole(value, 1), name, "a whole number, at least 1", value)
        for name in ("min_new_tokens", "min_length"):
            value = getattr(self, name)
            require(is_whole(value, 0), name, "a whole number, at least 0", value)
        if self.max_new_tokens is not None:
            bound = f"at most max_new_tokens ({self.max_new_tokens})"
            require(
                self.min_new_tokens <= self.max_new_tokens,
                "min_new_tokens",
                bound,
                self.min_new_tokens,
            )

        guesses = self.prompt_lookup_num_tokens
        if guesses is not None:
            fits = is_whole(guesses, 1) and guesses <= MOST_GUESSES
            bound = f"a whole number from 1 to {MOST_GUESSES}, or None"
            require(fits, "prompt_lookup_num_tokens", bound, guesses)
            bound = "1 with prompt_lookup_num_tokens, which is for one sequence at a time"
            for name in ("num_beams", "num_return_sequences"):
                value = getattr(self, name)
                require(value == 1, name, bound, value)

    def _check_sampling(self) -> None:
        require(
            is_number(self.temperature) and self.temperature >= 0,
            "temperature",
            "at least 0",
            self.temperature,
        )
        if self.do_sample:
            bound = f"at least {LEAST_TEMPERATURE} when do_sample is True "
            bound += "(for the likeliest token set do_sample=False)"
            require(self.temperature >= LEAST_TEMPERATURE, "temperature", bound, self.temperature)
        require(
            is_whole(self.top_k, 0),
            "top_k",
            "a whole number, at least 0 (0 means all tokens)",
            self.top_k,
        )
        require(
            is_number(self.top_p) and 0 < self.top_p <= 1,
            "top_p",
            "above 0 and at most 1",
            self.top_p,
        )
        fits = self.min_p is None or (is_number(self.min_p) and 0 <= self.min_p <= 1)
        require(fits, "min_p", "between 0 and 1, or None", self.min_p)
        fits = is_number(self.typical_p) and 0 < self.typical_p <= 1
        require(fits, "typical_p", "above 0 and at most 1", self.typical_p)
        require(
            self.seed is None or is_whole(self.seed), "seed", "a whole number or None", self.seed
        )

    def _check_constraints(self) -> None:
        fits = is_number(self.repetition_penalty) and self.repetition_penalty > 0
        require(fits, "repetition_penalty", "above 0", self.repetition_penalty)
        fits = is_whole(self.no_repeat_ngram_size, 0)
        require(
            fits, "no_repeat_ngram_size", "a whole number, at least 0", self.no_repeat_ngram_size
        )
        for name in SEQUENCES:
            value = getattr(self, name)
            require(value is None or _are_tokens(value), name, "token ids, at least 0", value)
        bad: object = self.bad_words_ids
        fits = isinstance(bad, tuple) and all(words and _are_tokens(words) for words in bad)
        require(fits, "bad_words_ids", "non-empty sequences of token ids", bad)
        asked: object = self.prefix_allowed_tokens_fn
        bound = "a function of a request's number and its tokens, or None"
        require(asked is None or callable(asked), "prefix_allowed_tokens_fn", bound, asked)
        stops: object = self.stop_strings
        fits = isinstance(stops, tuple) and all(isinstance(s, str) and s != "" for s in stops)
        require(fits, "stop_strings", "non-empty strings", stops)
        fits = isinstance(self.logprobs, bool) or is_whole(self.logprobs, 0)
        require(fits, "logprobs", "True, False or a whole number, at least 0", self.logprobs)

    def _check_beams(self) -> None:
        require(
            is_whole(self.num_beams, 1), "num_beams", "a whole number, at least 1", self.num_beams
        )
        fits = is_number(self.length_penalty) and abs(self.length_penalty) <= MOST_LENGTH_PENALTY
        bound = f"a number between -{MOST_LENGTH_PENALTY} and {MOST_LENGTH_PENALTY}"
        require(fits, "length_penalty", bound, self.length_penalty)
        fits = isinstance(self.early_stopping, bool) or self.early_stopping == "never"
        require(fits, "early_stopping", "True, False or 'never'", self.early_stopping)
        fits = self.patience is None or (is_number(self.patience) and self.patience > 0)
        require(fits, "patience", "above 0, or None", self.patience)
        wanted = self.num_return_sequences
        require(is_whole(wanted, 1), "num_return_sequences", "a whole number, at least 1", wanted)
        if self.num_beams > 1 or not self.do_sample:
            bound = f"at most {self.max_hypotheses} where num_beams is {self.num_beams}"
            bound += "" if self.num_beams > 1 else " and do_sample is False"
            require(wanted <= self.max_hypotheses, "num_return_sequences", bound, wanted)

    @property
    def max_hypotheses(self) -> int:
        """Finished hypotheses of one beam search."""
        if self.patience is None or self.num_beams == 1:
            return self.num_beams
        return max(1, math.floor(self.num_beams * self.patience + 0.5))

    def scored_length(self, tokens: int, *, ended: bool) -> int:
        """Of ``tokens`` new tokens, the last of which may be an end token, those that count."""
        counts = self.patience is None if self.count_eos is None else self.count_eos
        return tokens if counts or not ended else tokens - 1

    @property
    def top_logprobs(self) -> int:
        """Candidates of each step to report."""
        return 0 if isinstance(self.logprobs, bool) else self.logprobs

    @classmethod
    def resolve(cls, defaults: Mapping[str, Any] | None = None, /, **overrides: Any) -> "Settings":
        """Settings of one call: its own keywords over a checkpoint's generation config.

        ``defaults`` may hold anything a ``generation_config.json`` does; names that are not about
        choosing tokens are passed over, and one that is but is not run here raises a warning. A
        length that only the checkpoint gives is cut where the decoder has no room for it. An
        override that is None switches the setting off.

        Raises :class:`UsageError` for an unknown keyword (with near names) or a bad value.
        """
        defaults = dict(defaults or {})
        known = {field.name for field in fields(cls)}
        given = {k: v for k, v in overrides.items() if not _is_neutral(k, v)}
        for name in given:
            if name not in known:
                raise UsageError(_unknown(name, known))
        _warn_about(defaults)
        values = {k: v for k, v in defaults.items() if v is not None}
        explicit = any(given.get(name) is not None for name in LENGTHS)
        if explicit:
            values = {k: v for k, v in values.items() if k not in LENGTHS}
        values = _without_conflicts({k: v for k, v in values.items() if k in known}, given) | given
        if values.get("min_new_tokens") is not None:
            values.pop("min_length", None)  # the same said twice; as in transformers
        values.setdefault("strict_length", explicit)
        settings = cls(**{k: _normal(k, v) for k, v in values.items() if not _means_default(k, v)})
        _warn_about_sampling(given, settings)
        return settings


def _warn_about_sampling(given: Mapping[str, Any], settings: Settings) -> None:
    """Say so where the caller asks for a way to sample and for no sampling."""
    idle = [name for name in SAMPLING if given.get(name) is not None]
    if idle and not settings.do_sample:
        warnings.warn(
            f"{' and '.join(f'`{name}`' for name in idle)} without do_sample=True changes nothing: "
            "the likeliest token is taken.",
            UserWarning,
            stacklevel=4,
        )


def _without_conflicts(defaults: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's settings without those that the caller's own leave no room for."""
    kept = dict(defaults)
    most, least = given.get("max_new_tokens"), kept.get("min_new_tokens")
    if isinstance(most, int) and isinstance(least, int) and least > most:
        kept["min_new_tokens"] = most
    if "num_beams" in given and "num_return_sequences" not in given:
        kept.pop("num_return_sequences", None)
    return kept


def _means_default(name: str, value: object) -> bool:
    """None stands for the field's own default, which is neutral for all but ``top_k``."""
    return value is None and name not in ("top_k", "seed")


def _normal(name: str, value: Any) -> Any:
    """Lists become tuples, and single values the sequences that the fields hold."""
    if name == "top_k" and value is None:
        return 0
    if name == "stop_strings" and isinstance(value, str):
        return (value,)
    if name in SEQUENCES and is_whole(value):
        return (value,)
    if name == "bad_words_ids" and isinstance(value, Iterable):
        return tuple(_tuple(words) for words in value)
    return _tuple(value)


def _of_python(value: Any) -> Any:
    """Whole numbers, also those of tuples, as Python's own."""
    if isinstance(value, tuple):
        return tuple(map(_of_python, value))
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | set) else value


def _are_tokens(value: object) -> bool:
    return isinstance(value, tuple) and all(is_whole(token, 0) for token in value)


def _is_neutral(name: str, value: object) -> bool:
    """Whether a keyword of transformers asks for nothing but what is done anyway."""
    if name == "pad_token_id":
        return True  # what fills a batch is never seen
    neutral = {**NOT_RUN, **WITHOUT_EFFECT}.get(name, ())
    return any(value is one or value == one for one in neutral)


def _unknown(name: str, known: set[str]) -> str:
    if name in NOT_RUN:
        return f"`{name}` is a setting of transformers that xattn does not run."
    if name in ELSEWHERE:
        return f"`{name}` is not a setting of generate: {ELSEWHERE[name]}."
    near = difflib.get_close_matches(name, sorted(known), n=3)
    hint = (
        f"did you mean {' or '.join(f'`{n}`' for n in near)}?"
        if near
        else ("the settings are " + ", ".join(sorted(known)) + ".")
    )
    return f"`{name}` is not a setting of generate; {hint}"


def _warn_about(defaults: Mapping[str, Any]) -> None:
    ignored = {k: v for k, v in defaults.items() if k in NOT_RUN and v not in NOT_RUN[k]}
    if ignored:
        asked = ", ".join(f"{k}={v!r}" for k, v in ignored.items())
        warnings.warn(
            f"the checkpoint's generation config asks for {asked}, which xattn does not run; "
            "its output will differ from the one the authors intended.",
            stacklevel=3,
        )
