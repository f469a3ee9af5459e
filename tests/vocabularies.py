"""Tiny vocabularies, trained on the spot, in the file layouts of real checkpoints."""

import json
from functools import cache
from pathlib import Path

import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from xattn.inputs.tokenizers import character_tokenizer, load_tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and 12 others don't mind.",
    "She said: \u201cIt's a test\u201d \u2014 isn't it? Yes! We've seen 3.14 before.",
    "Guten Morgen, die Welt ist sch\u00f6n; \u00dcbergr\u00f6\u00dfe und Stra\u00dfe.",
    "Le caf\u00e9 est tr\u00e8s bon, n'est-ce pas ? L'\u00e9t\u00e9 arrive.",
    "\u4f60\u597d\u4e16\u754c\uff0c\u4eca\u5929\u5929\u6c14\u5f88\u597d\u3002",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u041a\u0430\u043a?",
    "def f(x):\n    return x + 1\n",
] * 8

TEXTS = [
    "",
    " ",
    "The fox",
    "The quick brown fox jumps over the lazy dog.",
    "  two  spaces   inside",
    "It's a test, isn't it? We've 'quoted' it ; n't . ' s",
    "na\u00efve caf\u00e9 \u00dcbergr\u00f6\u00dfe stra\u00dfe",
    "e\u0301 decomposed and \ufb01 ligature \u00bd",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u4eca\u5929 mixed \u5f88\u597d",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!",
    "\U0001f600\U0001f603 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd ok",
    "12345 3.14 x=2**10",
    "def f(x):\n\treturn x\n\n\n    y\r\n",
    "unknown \u0e44\u0e17\u0e22 \ud55c\uad6d\uc5b4 \u0939\u093f\u0928\u094d\u0926\u0940",
    "\u201cquotes\u201d \u2014 dash \u2026",
    "a" * 40,
]
"""Texts with every kind of trouble, none of which ends in white space except ``TEXTS[1]``."""

SPECIAL_TEXTS = ["</s> in </s>text", "a<mask> b <mask>c", "<unk><pad>", "\u2581 mark \u2581x"]


@cache
def sentencepiece_model(kind: str, normalizer: str = "nmt_nfkc", **settings: object) -> bytes:
    """A SentencePiece model of about 300 pieces; ``kind`` is ``unigram`` or ``bpe``."""
    import io

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=300 + 256 * bool(settings.get("byte_fallback")),
        model_type=kind,
        normalization_rule_name=normalizer,
        hard_vocab_limit=False,
        character_coverage=1.0,
        minloglevel=2,
        **settings,
    )
    return model.getvalue()


@cache
def byte_level_json() -> str:
    """A byte-level BPE tokenizer of 500 tokens, as tokenizer.json."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend.to_str()


def byte_level_files(directory: Path) -> Path:
    """``vocab.json`` and ``merges.txt`` of :func:`byte_level_json`."""
    model = json.loads(byte_level_json())["model"]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in model["merges"])]
    (directory / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return directory


def write(directory: Path, **files: object) -> Path:
    """Files by name, ``__`` for a dot: bytes and str as they are, other values as JSON."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        path = directory / name.replace("__", ".")
        if isinstance(value, bytes):
            path.write_bytes(value)
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            path.write_text(text, encoding="utf-8")
    return directory


def pieces_of(model: bytes) -> list[tuple[str, float]]:
    """Pieces and scores by the sentencepiece package."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [(processor.id_to_piece(i), processor.get_score(i)) for i in range(len(processor))]


def marian_files(directory: Path, **config: object) -> Path:
    """Marian's four files, with models that differ between the sides and one vocabulary."""
    source, target = sentencepiece_model("unigram"), sentencepiece_model("bpe")
    pieces = dict.fromkeys(piece for model in (source, target) for piece, _ in pieces_of(model)[3:])
    tokens = ["</s>", "<unk>", *pieces, ">>fra<<", ">>deu<<", "<pad>"]
    return write(
        directory,
        source__spm=source,
        target__spm=target,
        vocab__json={token: place for place, token in enumerate(tokens)},
        tokenizer_config__json={"model_max_length": 512, **config},
    )


WHISPER_SPECIAL = [
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|en|>",
    "<|de|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nocaptions|>",
    "<|notimestamps|>",
]


def whisper_files(directory: Path) -> Path:
    """Whisper's vocabulary with its special tokens and timestamps, without a tokenizer.json."""
    byte_level_files(directory)
    first = len(json.loads((directory / "vocab.json").read_text(encoding="utf-8")))
    marks = [f"<|{place * 0.02:.2f}|>" for place in range(1501)]
    added = {
        str(first + place): {
            "content": token,
            "special": token in WHISPER_SPECIAL,
            "normalized": False,
        }
        for place, token in enumerate([*WHISPER_SPECIAL, *marks])
    }
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    config = {"tokenizer_class": "WhisperTokenizer", "added_tokens_decoder": added, **names}
    return write(directory, tokenizer_config__json=config)


def m2m100_files(directory: Path, **config: object) -> Path:
    """M2M100's vocabulary in fairseq's order, without the language tokens that follow it."""
    model = sentencepiece_model("bpe")
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *(piece for piece, _ in pieces_of(model)[3:])]
    return write(
        directory,
        sentencepiece__bpe__model=model,
        vocab__json={token: place for place, token in enumerate(tokens)},
        tokenizer_config__json={"src_lang": "en", **config},
    )


CHAT_TEMPLATE = (
    "  {% if not messages %}\n  nobody\n  {% endif %}\n"
    "{{ bos_token }}{%- for message in messages %}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{- raise_exception('unknown role ' + message['role']) }}{%- endif %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>\\n' }}"
    "{%- if loop.index0 > 98 %}{% break %}{% endif %}"
    "{%- endfor %}"
    "{%- if tools %}{{ tools | tojson }}{% endif %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}{% generation %}{% endgeneration %}{%- endif %}"
)


T5 = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}


def bart(directory, **config):
    files = {"tokenizer_config__json": {"tokenizer_class": "BartTokenizer", **config}}
    return load_tokenizer(write(byte_level_files(directory), **files), {})


def t5(directory, **config):
    model = sentencepiece_model("unigram", **T5)
    files = {"spiece__model": model, "tokenizer_config__json": config}
    return load_tokenizer(write(directory, **files), {"model_type": "t5"})


def nllb(directory, **config):
    files = {"sentencepiece__bpe__model": sentencepiece_model("bpe")}
    config = {"tokenizer_class": "NllbTokenizer", **config}
    return load_tokenizer(write(directory, **files, tokenizer_config__json=config), {})


def mbart50(directory, **config):
    files = {"sentencepiece__bpe__model": sentencepiece_model("unigram")}
    config = {"tokenizer_class": "MBart50Tokenizer", **config}
    return load_tokenizer(write(directory, **files, tokenizer_config__json=config), {})


def marian(directory, **config):
    return load_tokenizer(marian_files(directory, **config), {"model_type": "marian"})


def m2m100(directory, **config):
    files = m2m100_files(directory, **config)
    return load_tokenizer(files, {"model_type": "m2m_100"})


def characters(directory):
    alphabet = "____" + "".join(sorted(set("".join(TEXTS))))
    return character_tokenizer(alphabet, alphabet, bos=1, eos=2, pad=0, unk=3)


def gguf(**values):
    model = json.loads(byte_level_json())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    metadata = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "merges": [" ".join(merge) for merge in model["merges"]],
        "bos_token_id": 0,
        "eos_token_id": 2,
        **values,
    }
    return {
        f"tokenizer.ggml.{name}": value for name, value in metadata.items() if value is not None
    }


def same(ours, theirs, texts=TEXTS + SPECIAL_TEXTS) -> None:
    """Equal ids with and without special tokens, and equal text for all of them."""
    for text in texts:
        expected = theirs(text)["input_ids"]
        assert ours.encode(text).ids == expected, text
        assert ours.decode(expected) == theirs.decode(expected, skip_special_tokens=True), text
        assert ours.decode(expected, skip_special=False) == theirs.decode(expected), text
        plain = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode_plain(text).ids == plain, text


def gguf_values(
    kind: str, backend: tokenizers.Tokenizer, pre: str = "", **values: object
) -> dict[str, object]:
    """The metadata that llama.cpp's converter writes for a tokenizer of the tokenizers library."""
    model = json.loads(backend.to_str())["model"]
    vocabulary = backend.get_vocab(with_added_tokens=True)
    tokens = sorted(vocabulary, key=vocabulary.get)
    special = {token.content for token in backend.get_added_tokens_decoder().values()}
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": kind,
        **({"tokenizer.ggml.pre": pre} if pre else {}),
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        **{f"tokenizer.{key}": value for key, value in values.items()},
    }


def gguf_reference(values: dict[str, object]):
    """What transformers makes of the same metadata."""
    import transformers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import (
        GGUF_TOKENIZER_MAPPING,
        convert_gguf_tokenizer,
    )

    names = GGUF_TOKENIZER_MAPPING["tokenizer"]
    found = {
        name: values[f"tokenizer.{key}"]
        for key, name in names.items()
        if f"tokenizer.{key}" in values
    }
    backend, _ = convert_gguf_tokenizer("llama", found)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
