"""Tokenizers of checkpoints: one loader, whatever files a checkpoint brings."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xattn.errors import CorruptCheckpointError, UnsupportedModelError, is_whole
from xattn.inputs.characters import CharacterTokenizer, character_tokenizer
from xattn.inputs.fast import FastTokenizer, Frame, finish_fast
from xattn.inputs.gguf_vocabulary import tokenizer_from_gguf
from xattn.inputs.json_files import read_json
from xattn.inputs.languages import M2M100, MBART, MBART50, NLLB, RULES, WMT21, LanguageRule
from xattn.inputs.pieces import PieceTokenizer, SentencePiece
from xattn.inputs.pipelines import (
    QWEN2_SPLIT,
    byte_level_pipeline,
    derived_merges,
    fairseq_pipeline,
    llama_pipeline,
    mark_pieces,
    split_by,
    t5_pipeline,
)
from xattn.inputs.spm import read_sentencepiece, require_sound_charsmap
from xattn.inputs.text import Tokenizer
from xattn.inputs.tokenizer_config import (
    Added,
    TokenizerConfig,
    read_object,
    read_tokenizer_config,
)
from xattn.memory import digest_of

if TYPE_CHECKING:
    import tokenizers

__all__ = [
    "CharacterTokenizer",
    "FastTokenizer",
    "PieceTokenizer",
    "Tokenizer",
    "character_tokenizer",
    "load_tokenizer",
    "tokenizer_from_gguf",
]

MOST_SENTINELS = 10_000
"""T5 has 100."""
_MARIAN_CODE = re.compile(r">>(?:(?!<<).)*<<", re.DOTALL)


def load_tokenizer(directory: Path, config: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer of a checkpoint directory, or None where it has no files of one.

    ``config`` is the checkpoint's config.json; its ``model_type`` decides between families whose
    files have the same names, and may be missing otherwise. The files win in this order: Marian's
    ``source.spm``, ``tokenizer.json``, a SentencePiece model, ``vocab.json`` with ``merges.txt``.
    Raises :class:`CorruptCheckpointError` for a malformed file and :class:`UnsupportedModelError`
    for a vocabulary of an unknown kind.
    """
    small = read_tokenizer_config(directory)
    if (directory / "source.spm").is_file():
        return _marian(directory, small)
    if (directory / "tokenizer.json").is_file():
        return _from_tokenizer_json(directory, config, small)
    family = _family(config, small)
    if (directory / "sentencepiece.bpe.model").is_file():
        if family == "m2m_100" and _vocabulary_file(directory) is not None:
            return _m2m100(directory, small)
        return _fairseq(directory / "sentencepiece.bpe.model", family, small)
    for name in ("spiece.model", "tokenizer.model"):
        if (directory / name).is_file():
            return _plain_sentencepiece(directory / name, family, small)
    if (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        return _from_merges(directory, family, small)
    return None


_CLASSES = {
    "NllbTokenizer": "nllb",
    "MBartTokenizer": "mbart",
    "MBart50Tokenizer": "mbart50",
    "M2M100Tokenizer": "m2m_100",
    "T5Tokenizer": "t5",
    "LlamaTokenizer": "llama",
    "BartTokenizer": "bart",
    "RobertaTokenizer": "bart",
    "WhisperTokenizer": "whisper",
    "GPT2Tokenizer": "gpt2",
    "Qwen2Tokenizer": "qwen2",
}


def _family(config: Mapping[str, Any], small: TokenizerConfig) -> str:
    """The tokenizer's family; a model's own type may share files with another family's."""
    return _CLASSES.get(small.class_name) or str(config.get("model_type") or "")


def _from_tokenizer_json(
    directory: Path, config: Mapping[str, Any], small: TokenizerConfig
) -> FastTokenizer:
    import tokenizers

    path = directory / "tokenizer.json"
    data = path.read_bytes()
    for charsmap in re.findall(rb'"precompiled_charsmap"\s*:\s*"([^"]*)"', data):
        require_sound_charsmap(charsmap, path)
    try:
        backend = tokenizers.Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises Exception itself
        raise CorruptCheckpointError(
            f"{path} is not a tokenizer that the `tokenizers` library reads ({error}); fetch it "
            "again, or update `tokenizers`."
        ) from error
    rule = _rule(_family(config, small), backend, small)
    return finish_fast(backend, small, content=digest_of(data), rule=rule)


def _rule(
    family: str, backend: "tokenizers.Tokenizer", small: TokenizerConfig
) -> LanguageRule | None:
    """How the source language is written, for the families that share one vocabulary."""
    if family in ("nllb", "nllb-moe", "m2m_100"):
        if backend.token_to_id(RULES["nllb"].default) is None and family == "m2m_100":
            return None
        if small.flag("legacy_behaviour"):
            return LanguageRule(
                codes=RULES["nllb"].codes, default=RULES["nllb"].default, place="after"
            )
        return RULES["nllb"]
    if family == "mbart" and not small.class_name and backend.token_to_id("af_ZA") is not None:
        return RULES["mbart50"]  # both have the model type mbart
    return RULES.get(family)


def _fairseq(path: Path, family: str, small: TokenizerConfig) -> FastTokenizer:
    """mBART, mBART-50 and NLLB from their SentencePiece model alone."""
    languages = {"mbart": MBART, "mbart50": MBART50}.get(family, NLLB)
    if family not in ("mbart", "mbart50", "nllb", "nllb-moe", "m2m_100"):
        raise UnsupportedModelError(
            f"{path} is a vocabulary in fairseq's layout, which xattn knows for mBART and NLLB, "
            f"but the checkpoint is of type {family!r}; save its tokenizer.json beside it."
        )
    backend = fairseq_pipeline(
        read_sentencepiece(path), languages, splits_whitespace=family == "mbart"
    )
    rule = _rule(family, backend, small)
    return finish_fast(backend, small, content=_digest(family, path), rule=rule)


def _plain_sentencepiece(path: Path, family: str, small: TokenizerConfig) -> FastTokenizer:
    """T5 or Llama from its SentencePiece model alone."""
    file = read_sentencepiece(path)
    content = _digest(family, path)
    if family == "llama" or (family != "t5" and path.name == "tokenizer.model"):
        tokens = {piece.text: place for place, piece in enumerate(file.pieces)}
        backend = llama_pipeline(
            tokens,
            derived_merges(tokens),
            prefix_space=small.flag("add_prefix_space", True),
            every_part=small.flag("legacy"),
        )
        mark_pieces(backend, file)
        bos, eos = small.token("bos_token", "<s>"), small.token("eos_token", "</s>")
        frame = Frame(
            before=_ids(backend, bos) if small.flag("add_bos_token", True) else (),
            after=_ids(backend, eos) if small.flag("add_eos_token") else (),
        )
    else:
        sentinels = small.values.get("extra_ids", 100)
        if not is_whole(sentinels, 0) or sentinels > MOST_SENTINELS:
            raise CorruptCheckpointError(
                f"{path.parent / 'tokenizer_config.json'}: 'extra_ids' must be a whole number up "
                f"to {MOST_SENTINELS}, but is {str(sentinels)[:40]!r} instead."
            )
        backend = t5_pipeline(file, extra_ids=sentinels)
        frame = Frame(after=_ids(backend, small.token("eos_token", "</s>")))
    return finish_fast(backend, small, content=content, frame=frame)


def _from_merges(directory: Path, family: str, small: TokenizerConfig) -> FastTokenizer:
    """Byte-level BPE from ``vocab.json`` and ``merges.txt``: BART, Whisper, GPT-2, Qwen."""
    from tokenizers import models, normalizers

    vocabulary, merges = directory / "vocab.json", directory / "merges.txt"
    try:
        model = models.BPE.from_file(str(vocabulary), str(merges))
    except Exception as error:  # the library raises Exception itself
        raise CorruptCheckpointError(
            f"{vocabulary} and {merges} do not make a BPE vocabulary ({error}); fetch them again."
        ) from error
    if family.startswith("qwen"):
        family = "qwen2"
        backend = byte_level_pipeline(model, [split_by(QWEN2_SPLIT)])
        backend.normalizer = normalizers.NFC()
    else:
        backend = byte_level_pipeline(model, prefix_space=small.flag("add_prefix_space"))
    defaults = _BPE_DEFAULTS.get(family, {})
    named = {name: Added(content=token) for name, token in defaults.items()}
    small = replace(small, named={**named, **small.named})
    tokenizer = finish_fast(backend, small, content=_digest(family, vocabulary, merges))
    before, after = _BPE_FRAMES.get(family, ((), ()))
    ids = {name: _ids(backend, small.token(name, name)) for name in (*before, *after)}
    frame = Frame(
        before=tuple(id for name in before for id in ids[name]),
        after=tuple(id for name in after for id in ids[name]),
    )
    return replace(tokenizer, frame=frame)


_BPE_DEFAULTS: Mapping[str, Mapping[str, str]] = {
    "bart": {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "cls_token": "<s>",
        "mask_token": "<mask>",
    },
    "whisper": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
    "gpt2": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
    "qwen2": dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
}
"""Special tokens of a family where the checkpoint's files name none."""

_BPE_FRAMES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "bart": (("cls_token",), ("sep_token",)),
    "whisper": (("<|startoftranscript|>", "<|notimestamps|>"), ("eos_token",)),
}
"""Special tokens before and after a text: names of :data:`_BPE_DEFAULTS`, or tokens."""


def _ids(backend: "tokenizers.Tokenizer", token: str | None) -> tuple[int, ...]:
    found = None if token is None else backend.token_to_id(token)
    return () if found is None else (found,)


def _digest(family: str, *paths: Path) -> str:
    return digest_of(family.encode(), *(path.read_bytes() for path in paths))


def _marian(directory: Path, small: TokenizerConfig) -> PieceTokenizer:
    """Marian (OPUS-MT): one SentencePiece model per side, one vocabulary or one per side."""
    source = SentencePiece(directory / "source.spm")
    target_file = directory / "target.spm"
    target = SentencePiece(target_file) if target_file.is_file() else source
    encoder = _read_vocabulary(directory)
    decoder = encoder
    if small.flag("separate_vocabs"):
        path = directory / "target_vocab.json"
        decoder = _numbered(path, read_object(path))
    defaults = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"}
    added, special = _added_tokens(small, defaults, encoder)
    unknown, eos = (
        _required(encoder, small.token(name, defaults[name]), directory)
        for name in ("unk_token", "eos_token")
    )
    return PieceTokenizer(
        source=source,
        target=target,
        encoder=encoder,
        spellings={id: token for token, id in decoder.items()},
        unknown=unknown,
        eos=eos,
        added=added,
        special=special,
        frame=Frame(after=(eos,)),
        code=_MARIAN_CODE,
        special_gap=" ",
        clean_up=small.flag("clean_up_tokenization_spaces"),
        settings=small.content,
        chat_template=small.chat_template,
        special_tokens={**defaults, **small.special_tokens},
    )


def _m2m100(directory: Path, small: TokenizerConfig) -> PieceTokenizer:
    """M2M100: one SentencePiece model, a vocabulary, and language tokens behind it."""
    model = SentencePiece(directory / "sentencepiece.bpe.model")
    encoder = _read_vocabulary(directory)
    codes = WMT21 if small.values.get("language_codes") == "wmt21" else M2M100
    languages = {
        code: encoder.get(f"__{code}__", len(encoder) + place) for place, code in enumerate(codes)
    }
    defaults = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    added, special = _added_tokens(small, defaults, encoder)
    unknown, eos = (
        _required(encoder, small.token(name, defaults[name]), directory)
        for name in ("unk_token", "eos_token")
    )
    tokenizer = PieceTokenizer(
        source=model,
        target=model,
        encoder=encoder,
        spellings={
            **{id: token for token, id in encoder.items()},
            **{id: f"__{code}__" for code, id in languages.items()},
        },
        unknown=unknown,
        eos=eos,
        added=added,
        special=special,
        frame=Frame(),
        languages=languages,
        clean_up=small.flag("clean_up_tokenization_spaces"),
        settings=small.content,
        chat_template=small.chat_template,
        special_tokens={**defaults, **small.special_tokens},
    )
    return tokenizer.for_language(small.source_language or "en")


def _added_tokens(
    small: TokenizerConfig, defaults: Mapping[str, str], vocabulary: Mapping[str, int]
) -> tuple[dict[str, tuple[int, Added]], frozenset[int]]:
    """Whole tokens with their ids, and the ids that decoding leaves out.

    A token that neither the files nor the vocabulary number gets the next free id.
    """
    added = {token.content: (id, token) for id, token in small.added.items()}
    named = {name: Added(content=token) for name, token in defaults.items()} | dict(small.named)
    following = len({*vocabulary, *added})
    special = []
    for token in [*named.values(), *small.extra]:
        if token.single_word:
            raise UnsupportedModelError(
                f"the added token {token.content!r} counts as a single word only, which xattn does "
                "not run for SentencePiece vocabularies."
            )
        if token.content not in added:
            id = vocabulary.get(token.content)
            if id is None:
                id, following = following, following + 1
            added[token.content] = (id, token)
        special.append(added[token.content][0])
    return added, frozenset(special)


def _required(vocabulary: Mapping[str, int], token: str | None, directory: Path) -> int:
    if token is None or token not in vocabulary:
        raise CorruptCheckpointError(
            f"the vocabulary in {directory} has no {token!r} token; fetch the checkpoint again."
        )
    return vocabulary[token]


def _vocabulary_file(directory: Path) -> Path | None:
    """``vocab.json``, or the list that CTranslate2's converter writes instead of it."""
    for name in ("vocab.json", "shared_vocabulary.json"):
        if (directory / name).is_file():
            return directory / name
    return None


def _read_vocabulary(directory: Path) -> dict[str, int]:
    path = _vocabulary_file(directory)
    if path is None:
        raise CorruptCheckpointError(
            f"{directory} has SentencePiece models but neither vocab.json nor "
            "shared_vocabulary.json; fetch the checkpoint again."
        )
    value = read_json(path)
    if isinstance(value, list):
        return {str(token): place for place, token in enumerate(value)}
    if isinstance(value, dict):
        return _numbered(path, value)
    raise CorruptCheckpointError(f"{path} must hold a JSON object or list of tokens.")


def _numbered(path: Path, value: Mapping[str, Any]) -> dict[str, int]:
    """``value`` as token -> id; :class:`CorruptCheckpointError` where one is no id."""
    strange = next((item for item in value.items() if not is_whole(item[1], 0)), None)
    if strange is not None:
        raise CorruptCheckpointError(
            f"{path}: the id of {strange[0]!r} must be a whole number, at least 0, "
            f"but is {str(strange[1])[:40]!r} instead."
        )
    return dict(value)
