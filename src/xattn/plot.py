"""Pictures of what a decoder read: words against time.

Axes: A heads, T tokens, S positions, W words.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xattn.errors import MissingExtraError, UsageError
from xattn.generation import Generation
from xattn.memory import Memory
from xattn.model import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class WordAttention:
    """Where in the recording each word was read from."""

    words: tuple[str, ...]
    weights_WS: NDArray[np.float32]
    """Mean attention of the alignment heads over a word's tokens; each row's largest value is 1."""
    seconds: float
    """Time that the S positions cover."""


def word_attention(model: Model, memory: Memory, answer: Generation) -> WordAttention:
    """Attention of the alignment heads (or all heads), word by word, cut to what holds audio.

    ``answer`` is what the model generated from ``memory``, a recording. Costs one decoder pass.
    Raises :class:`UsageError` for a memory that is not audio, or an answer without words.
    """
    if memory.modality != "audio":
        raise UsageError(f"the picture needs a memory of audio, but this is {memory.modality}.")
    special = {*model.spec.tokens.eos}
    tokens = [token for token in answer.tokens if token not in special]
    groups = _words(model, tokens)
    if not groups:
        raise UsageError("the answer has no words to draw.")
    weights_ATS = model.cross_attention(memory, [*answer.prompt, *tokens])
    seconds = float(memory.details.get("seconds", memory.spans[-1].end))
    positions = max(1, sum(span.start < seconds for span in memory.spans))
    mean_TS = weights_ATS.mean(dim=0)[:, :positions].cpu().numpy()
    # A token is chosen by the row before it: what the decoder looked at when it wrote the token.
    rows = mean_TS[len(answer.prompt) - 1 : -1]
    weights_WS = np.stack([rows[first:last].mean(axis=0) for _, first, last in groups])
    weights_WS /= weights_WS.max(axis=1, keepdims=True)
    return WordAttention(
        words=tuple(word for word, _, _ in groups), weights_WS=weights_WS, seconds=seconds
    )


def draw_word_attention(
    attention: WordAttention,
    answer: Generation,
    path: str | Path,
    *,
    samples_T: NDArray[np.float32] | None = None,
    title: str = "What the decoder heard when it wrote each word",
) -> Path:
    """Draw words against time as a PNG, SVG or PDF (by the suffix of ``path``); returns the path.

    ``samples_T`` is the recording, drawn above; words with times (``word_timestamps=True``) get
    the bars that the times come from.
    """
    figure = _figure(attention, answer, samples_T, title)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    return path


def _words(model: Model, tokens: list[int]) -> list[tuple[str, int, int]]:
    """(word, first token, last token + 1); a word begins at a space."""
    words: list[tuple[str, int, int]] = []
    for index in range(len(tokens)):
        piece = model.tokenizer.decode([tokens[index]])
        if words and not piece.startswith(" "):
            word, first, _ = words[-1]
            words[-1] = (word + piece, first, index + 1)
        else:
            words.append((piece, index, index + 1))
    return [(word.strip(), first, last) for word, first, last in words if word.strip()]


def _figure(
    attention: WordAttention,
    answer: Generation,
    samples_T: NDArray[np.float32] | None,
    title: str,
) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot", "drawing a picture") from error
    count, seconds = len(attention.words), attention.seconds
    figure = Figure(figsize=(12, 1.9 + 0.26 * count), layout="constrained", facecolor="white")
    heights = [1.1, 0.26 * count] if samples_T is not None else [0.26 * count]
    axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    if samples_T is not None:
        times = np.arange(len(samples_T)) * (seconds / len(samples_T))
        axes[0].plot(times, samples_T, color="#3b4a6b", linewidth=0.4)
        axes[0].set_axis_off()
    picture = axes[-1]
    picture.imshow(
        attention.weights_WS**0.75,
        aspect="auto",
        extent=(0.0, seconds, count - 0.5, -0.5),
        cmap="magma_r",
        interpolation="nearest",
        vmin=0.0,
        vmax=1.0,
    )
    timed = [word for word in answer.words if word.word.strip()]
    if len(timed) == count:
        for row, word in enumerate(timed):
            picture.plot([word.start, word.end], [row + 0.42] * 2, color="#1677b3", linewidth=2.2)
    picture.set_yticks(range(count), attention.words, fontsize=10)
    picture.set_xlim(0.0, seconds)
    picture.set_xlabel("seconds of the recording", fontsize=11)
    picture.spines[:].set_visible(False)
    picture.tick_params(length=0)
    axes[0].set_title(title, fontsize=14, loc="left", pad=8)
    return figure
