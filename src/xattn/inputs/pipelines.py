"""Pipelines of the ``tokenizers`` library for checkpoints that bring a bare vocabulary.

Each function here is what transformers' class of that family builds (or what the family's own
tokenizer.json says): normaliser, splitting, model, decoder, special tokens.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from xattn.errors import UnsupportedModelError
from xattn.inputs.spm import BPE, CONTROL, MARK, UNIGRAM, UNKNOWN, USER_DEFINED, SentencePieceFile

if TYPE_CHECKING:
    import tokenizers
    from tokenizers import models, pre_tokenizers

GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT4_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{DIGITS}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = GPT4_SPLIT.replace("{DIGITS}", "{1,3}")
QWEN2_SPLIT = GPT4_SPLIT.replace("{DIGITS}", "")
TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

FAIRSEQ_FRONT = ("<s>", "<pad>", "</s>", "<unk>")


def byte_level_pipeline(
    model: "models.BPE",
    splits: Sequence["pre_tokenizers.PreTokenizer"] = (),
    *,
    prefix_space: bool = False,
) -> "tokenizers.Tokenizer":
    """Byte-level BPE (Radford et al. 2019): bytes are spelled by printable characters.

    ``splits`` cut the text first; without them GPT-2's own pattern does. ``prefix_space`` puts a
    space in front of a text that has none.
    """
    import tokenizers
    from tokenizers import decoders, pre_tokenizers

    backend = tokenizers.Tokenizer(model)
    if splits:
        in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, in_bytes])
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    backend.decoder = decoders.ByteLevel()
    return backend


def split_by(pattern: str) -> "pre_tokenizers.PreTokenizer":
    """A cut that keeps each match of ``pattern`` as a piece of its own."""
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


def digits_then_words() -> list["pre_tokenizers.PreTokenizer"]:
    """StarCoder's and SmolLM's cut: every digit alone, the rest by GPT-2's pattern."""
    from tokenizers import pre_tokenizers

    return [pre_tokenizers.Digits(individual_digits=True), split_by(GPT2_SPLIT)]


def t5_pipeline(file: SentencePieceFile, *, extra_ids: int) -> "tokenizers.Tokenizer":
    """T5: SentencePiece's own ids, then the sentinels ``<extra_id_99>`` … ``<extra_id_0>``."""
    import tokenizers
    from tokenizers import models, normalizers

    if file.algorithm != UNIGRAM:
        raise UnsupportedModelError(
            f"T5 vocabularies are SentencePiece unigram models (kind {UNIGRAM}), but this one is "
            f"of kind {file.algorithm}."
        )
    sentinels = [f"<extra_id_{place}>" for place in range(extra_ids - 1, -1, -1)]
    scored = [(piece.text, piece.score) for piece in file.pieces]
    scored += [(sentinel, 0.0) for sentinel in sentinels]
    unknown = next((i for i, piece in enumerate(file.pieces) if piece.kind == UNKNOWN), None)
    backend = tokenizers.Tokenizer(models.Unigram(scored, unk_id=unknown, byte_fallback=False))
    if file.charsmap:
        backend.normalizer = normalizers.Precompiled(file.charsmap)
    _set_metaspace(backend, splits_whitespace=True)
    mark_pieces(backend, file)
    mark_special(backend, sentinels)
    return backend


def fairseq_pipeline(
    file: SentencePieceFile, languages: Sequence[str], *, splits_whitespace: bool
) -> "tokenizers.Tokenizer":
    """mBART and NLLB: fairseq's four special tokens in front, languages and ``<mask>`` behind.

    fairseq has ``<s> <pad> </s> <unk>`` where SentencePiece has ``<unk> <s> </s>``, so every other
    id is one higher than SentencePiece's.
    """
    import tokenizers
    from tokenizers import Regex, normalizers

    backend = tokenizers.Tokenizer(_fairseq_model(file, languages))
    steps: list[normalizers.Normalizer] = []
    if file.charsmap:
        steps.append(normalizers.Precompiled(file.charsmap))
    if not splits_whitespace:
        steps.append(normalizers.Replace(Regex(r" {2,}"), " "))
    if steps:
        backend.normalizer = normalizers.Sequence(steps)
    _set_metaspace(backend, splits_whitespace=splits_whitespace)
    mark_pieces(backend, file)
    mark_special(backend, [*FAIRSEQ_FRONT, *languages])
    backend.add_special_tokens(
        [tokenizers.AddedToken("<mask>", lstrip=True, normalized=False, special=True)]
    )
    return backend


def _fairseq_model(file: SentencePieceFile, languages: Sequence[str]) -> "models.Model":
    from tokenizers import models

    ordinary = file.pieces[3:]
    behind = [*languages, "<mask>"]
    if file.algorithm == UNIGRAM:
        scored = [(token, 0.0) for token in FAIRSEQ_FRONT]
        scored += [(piece.text, piece.score) for piece in ordinary]
        scored += [(token, 0.0) for token in behind]
        unknown = FAIRSEQ_FRONT.index("<unk>")
        return models.Unigram(scored, unk_id=unknown, byte_fallback=False)
    if file.algorithm == BPE:
        tokens = [*FAIRSEQ_FRONT, *(piece.text for piece in ordinary), *behind]
        vocabulary = {token: place for place, token in enumerate(tokens)}
        merges = derived_merges({piece.text: place for place, piece in enumerate(file.pieces)})
        return models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True)
    raise UnsupportedModelError(
        f"mBART and NLLB vocabularies are SentencePiece unigram or BPE models (kind {UNIGRAM} or "
        f"{BPE}), but this one is of kind {file.algorithm}."
    )


def llama_pipeline(
    vocabulary: Mapping[str, int],
    merges: list[tuple[str, str]],
    *,
    prefix_space: bool,
    every_part: bool = False,
) -> "tokenizers.Tokenizer":
    """Llama 1 and 2: SentencePiece BPE in which unknown characters fall back to bytes.

    ``prefix_space`` puts a space in front of the text, and with ``every_part`` also behind every
    special token in it.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    model = models.BPE(vocab=dict(vocabulary), merges=merges, fuse_unk=True, byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    scheme = ("always" if every_part else "first") if prefix_space else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement=MARK, prepend_scheme=scheme, split=False
    )
    steps: list[decoders.Decoder] = [
        decoders.Replace(MARK, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if prefix_space:
        steps.append(decoders.Strip(content=" ", left=1))
    backend.decoder = decoders.Sequence(steps)
    return backend


def derived_merges(
    vocabulary: Mapping[str, int], scores: Mapping[str, float] | None = None
) -> list[tuple[str, str]]:
    """The BPE merges that a vocabulary implies, best first.

    SentencePiece BPE stores no merges: of all neighbours it joins the two whose joint piece is
    best, which is to have a merge for each way to cut a piece in two. Best is the highest score,
    or without scores the lowest id.
    """
    cuts = (
        (piece, piece[:place], piece[place:])
        for piece in (vocabulary if scores is None else scores)
        for place in range(1, len(piece))
    )
    known = [cut for cut in cuts if cut[1] in vocabulary and cut[2] in vocabulary]
    if scores is None:
        known.sort(key=lambda cut: (vocabulary[cut[0]], len(cut[1])))
    else:
        known.sort(key=lambda cut: (-scores[cut[0]], -len(cut[1]), -len(cut[2])))
    return [(left, right) for _, left, right in known]


def mark_special(backend: "tokenizers.Tokenizer", tokens: Iterable[str]) -> None:
    """Make tokens of the vocabulary special: found whole in a text, skipped in decoding."""
    import tokenizers

    backend.add_special_tokens(
        [tokenizers.AddedToken(token, normalized=False, special=True) for token in tokens]
    )


def mark_pieces(backend: "tokenizers.Tokenizer", file: SentencePieceFile) -> None:
    """Control pieces and the unknown one are special; the user's own symbols are only never cut."""
    import tokenizers

    special = (CONTROL, UNKNOWN)
    mark_special(backend, [piece.text for piece in file.pieces if piece.kind in special])
    backend.add_tokens(
        [
            tokenizers.AddedToken(piece.text, normalized=False, special=False)
            for piece in file.pieces
            if piece.kind == USER_DEFINED
        ]
    )


def _set_metaspace(backend: "tokenizers.Tokenizer", *, splits_whitespace: bool) -> None:
    from tokenizers import decoders, pre_tokenizers

    metaspace = pre_tokenizers.Metaspace(replacement=MARK, prepend_scheme="always", split=True)
    backend.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
        if splits_whitespace
        else metaspace
    )
    backend.decoder = decoders.Metaspace(replacement=MARK, prepend_scheme="always", split=True)
