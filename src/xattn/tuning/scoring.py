"""How good answers are, by the measures of their field: WER, BLEU, chrF, exact match."""

import re
from collections.abc import Sequence
from typing import Any, Literal, get_args

from xattn.errors import MissingExtraError, require

Metric = Literal["wer", "bleu", "chrf", "exact"]
METRICS: tuple[Metric, ...] = get_args(Metric)
LOWER_IS_BETTER = ("wer",)


def score(
    metric: Metric, answers: Sequence[str], references: Sequence[str], *, tokenize: str = "13a"
) -> float:
    """Of a corpus, in percent.

    ``wer`` is the word error rate (jiwer) of words without case and punctuation; ``bleu`` and
    ``chrf`` are sacrebleu's, with its defaults but for how BLEU cuts words (``tokenize``);
    ``exact`` is the share of answers that are their reference. Raises :class:`MissingExtraError`.
    """
    require(metric in METRICS, "metric", f"one of {', '.join(METRICS)}", metric)
    require(len(answers) == len(references) > 0, "answers", "one for each reference", len(answers))
    if metric == "exact":
        same = sum(a.strip() == r.strip() for a, r in zip(answers, references, strict=True))
        return 100 * same / len(answers)
    if metric == "wer":
        jiwer = _imported("jiwer", "word error rates")
        plain = [[_words(text) for text in texts] for texts in (references, answers)]
        return 100 * float(jiwer.wer(*plain))
    sacrebleu = _imported("sacrebleu", "BLEU and chrF")
    if metric == "chrf":
        return float(sacrebleu.corpus_chrf(list(answers), [list(references)]).score)
    # Forced: it warns of texts whose words stand apart, where `tokenize` says that they do.
    made = sacrebleu.corpus_bleu(
        list(answers), [list(references)], tokenize=tokenize, force=tokenize == "none"
    )
    return float(made.score)


def better(metric: Metric, one: float, other: float) -> bool:
    """Whether ``one`` is better than ``other``."""
    return one < other if metric in LOWER_IS_BETTER else one > other


def _words(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s']", " ", text.lower()).split())


def _imported(name: str, purpose: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(name, "training", purpose) from error
