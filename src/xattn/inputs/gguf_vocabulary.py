"""The tokenizer inside a GGUF file (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).

A GGUF has no tokenizer.json: its metadata lists tokens, merges and types, and names the way the
text is cut first, by the names of llama.cpp.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xattn.errors import CorruptCheckpointError, UnsupportedModelError
from xattn.inputs.decoders import byte_alphabet
from xattn.inputs.fast import FastTokenizer, Frame
from xattn.inputs.pipelines import (
    LLAMA3_SPLIT,
    QWEN2_SPLIT,
    TEKKEN_SPLIT,
    byte_level_pipeline,
    derived_merges,
    digits_then_words,
    llama_pipeline,
    mark_special,
    split_by,
)
from xattn.memory import digest_of

if TYPE_CHECKING:
    import tokenizers
    from tokenizers import models, pre_tokenizers

_NORMAL, _USER_DEFINED = 1, 4
_SPECIAL = (2, 3)
"""Token types: unknown and control."""
_NAMES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


@dataclass(frozen=True, kw_only=True)
class _Cut:
    """How a vocabulary's texts are cut before BPE, and llama.cpp's defaults that go with it."""

    splits: Callable[[], list["pre_tokenizers.PreTokenizer"]]
    whole_words: bool = False
    """A piece that is a token as it stands is not merged from its bytes."""
    adds_bos: bool = False


_GPT2 = _Cut(splits=list)
_DIGITS = _Cut(splits=digits_then_words)
_LLAMA3 = _Cut(splits=lambda: [split_by(LLAMA3_SPLIT)], whole_words=True, adds_bos=True)
_LLAMA3_PLAIN = _Cut(splits=lambda: [split_by(LLAMA3_SPLIT)])
_QWEN2 = _Cut(splits=lambda: [split_by(QWEN2_SPLIT)])
_TEKKEN = _Cut(splits=lambda: [split_by(TEKKEN_SPLIT)], whole_words=True, adds_bos=True)

_CUTS: Mapping[str, _Cut] = {
    **dict.fromkeys(("default", "gpt-2", "mpt", "olmo", "jais", "trillion", "exaone4"), _GPT2),
    **dict.fromkeys(("phi-2", "gigachat", "a.x-4.0", "mellum", "granite-docling"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), _DIGITS),
    **dict.fromkeys(("exaone", "minerva-7b"), _DIGITS),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral"), _LLAMA3),
    **dict.fromkeys(("midm-2.0", "lfm2", "falcon-h1"), _LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe"), _LLAMA3_PLAIN),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "kormo", "megrez", "stablelm2"), _QWEN2),
    "tekken": _TEKKEN,
}


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> FastTokenizer:
    """The tokenizer that a GGUF file's metadata describes.

    ``metadata``: plain Python values by GGUF key, as ``{field.name: field.contents()}`` gives them;
    keys that start with ``tokenizer.`` are read and others ignored. Raises
    :class:`UnsupportedModelError` for a vocabulary or a pre-tokenizer that is not known here, and
    :class:`CorruptCheckpointError` where the lists do not fit together.
    """
    import tokenizers

    kind = metadata.get("tokenizer.ggml.model")
    tokens = _list(metadata, "tokens")
    types = _numbers(metadata, "token_type", len(tokens))
    if kind == "gpt2":
        backend, adds_bos = _byte_level(metadata, tokens, types)
    elif kind == "llama":
        backend, adds_bos = _sentencepiece(metadata, tokens), True
    else:
        raise UnsupportedModelError(
            f"the GGUF file has a vocabulary of kind {kind!r}; xattn reads 'gpt2' (byte-level BPE) "
            "and 'llama' (SentencePiece BPE)."
        )
    named = {
        name: tokens[int(metadata[f"tokenizer.ggml.{key}"])]
        for name, key in _NAMES.items()
        if 0 <= int(metadata.get(f"tokenizer.ggml.{key}", -1)) < len(tokens)
    }
    special = [token for token, type in zip(tokens, types, strict=True) if type in _SPECIAL]
    mark_special(backend, [*special, *named.values()])
    backend.add_tokens(
        [
            tokenizers.AddedToken(token, normalized=False, special=False)
            for token, type in zip(tokens, types, strict=True)
            if type == _USER_DEFINED
        ]
    )
    template = metadata.get("tokenizer.chat_template")
    return FastTokenizer(
        backend=backend,
        content=_content(metadata),
        frame=_frame(metadata, backend, named, adds_bos=adds_bos),
        chat_template=None if template is None else str(template),
        special_tokens=named,
    )


def _byte_level(
    metadata: Mapping[str, Any], tokens: list[str], types: list[int]
) -> tuple["tokenizers.Tokenizer", bool]:
    """The pipeline of a byte-level vocabulary, and whether it starts texts with ``bos``."""
    name = str(metadata.get("tokenizer.ggml.pre") or "default")
    cut = _CUTS.get(name)
    if cut is None:
        raise UnsupportedModelError(
            f"the GGUF file cuts text by the pre-tokenizer {name!r}, which xattn does not know; "
            f"known are {', '.join(sorted(_CUTS))}."
        )
    alphabet = byte_alphabet()
    spelling = {byte: character for character, byte in alphabet.items()}
    in_alphabet = frozenset(alphabet).issuperset
    spelled = list(tokens)
    for place, token in enumerate(tokens):
        # Special tokens read as they are spelled; others are bytes, whatever the file spells.
        if not in_alphabet(token) and types[place] == _NORMAL:
            spelled[place] = "".join(spelling[byte] for byte in token.encode())
    vocabulary = {token: place for place, token in enumerate(spelled)}
    merges = _merges(metadata)
    model = _bpe(vocab=vocabulary, merges=merges, ignore_merges=cut.whole_words)
    return byte_level_pipeline(model, cut.splits()), cut.adds_bos


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str]) -> "tokenizers.Tokenizer":
    vocabulary = {token: place for place, token in enumerate(tokens)}
    if metadata.get("tokenizer.ggml.merges"):
        merges = _merges(metadata)
    else:
        scores = [float(score) for score in _list(metadata, "scores")]
        if len(scores) != len(tokens):
            raise CorruptCheckpointError(
                f"the GGUF file lists {len(tokens)} tokens but {len(scores)} scores; "
                "fetch it again."
            )
        merges = derived_merges(vocabulary, dict(zip(tokens, scores, strict=True)))
    prefix = metadata.get("tokenizer.ggml.add_space_prefix")
    return llama_pipeline(vocabulary, merges, prefix_space=prefix is None or bool(prefix))


def _merges(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    try:
        pairs = [merge.split(" ", 1) for merge in _list(metadata, "merges")]
        return [(left, right) for left, right in pairs]
    except ValueError as error:
        raise CorruptCheckpointError(
            "the GGUF file has a merge that is not two pieces with a space between; fetch it again."
        ) from error


def _bpe(**settings: Any) -> "models.BPE":
    from tokenizers import models

    try:
        return models.BPE(**settings)
    except Exception as error:  # the library raises Exception itself
        raise CorruptCheckpointError(
            f"the GGUF file's merges do not fit its tokens ({error}); fetch it again."
        ) from error


def _frame(
    metadata: Mapping[str, Any],
    backend: "tokenizers.Tokenizer",
    named: Mapping[str, str],
    *,
    adds_bos: bool,
) -> Frame:
    def ids(switch: str, default: bool, name: str) -> tuple[int, ...]:
        wanted = metadata.get(f"tokenizer.ggml.{switch}")
        used = default if wanted is None else bool(wanted)
        token = backend.token_to_id(named[name]) if used and name in named else None
        return () if token is None else (token,)

    return Frame(
        before=ids("add_bos_token", adds_bos, "bos_token"),
        after=ids("add_eos_token", False, "eos_token"),
    )


def _list(metadata: Mapping[str, Any], name: str) -> list[Any]:
    found = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(found, list | tuple) or not found:
        raise CorruptCheckpointError(
            f"the GGUF file has no list 'tokenizer.ggml.{name}', so it has no tokenizer; convert "
            "the model again with its vocabulary."
        )
    return list(found)


def _numbers(metadata: Mapping[str, Any], name: str, length: int) -> list[int]:
    found = metadata.get(f"tokenizer.ggml.{name}")
    if found is None:
        return [_NORMAL] * length
    if len(found) != length:
        raise CorruptCheckpointError(
            f"the GGUF file lists {length} tokens but {len(found)} entries of "
            f"'tokenizer.ggml.{name}'; fetch it again."
        )
    return [int(number) for number in found]


def _content(metadata: Mapping[str, Any]) -> str:
    """Digest of every ``tokenizer.`` value."""
    parts = []
    for key in sorted(key for key in metadata if key.startswith("tokenizer.")):
        parts += [key.encode(), json.dumps(metadata[key], default=str).encode()]
    return digest_of(*parts)
