"""Tiny random models as CTranslate2's own converter writes them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ctranslate2.converters import TransformersConverter
from tiny import VOCAB, make

TOKENS = ["<s>", "<pad>", "</s>", "<unk>", *[f"t{n}" for n in range(VOCAB - 4)]]


class _Tokenizer(SimpleNamespace):
    """As much of a transformers tokenizer as the converter asks for."""

    bos_token, eos_token, pad_token, unk_token = "<s>", "</s>", "<pad>", "<unk>"
    unk_token_id = 3
    special_tokens_map: dict[str, Any] = {}  # noqa: RUF012

    def get_vocab(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.tokens)}

    def convert_ids_to_tokens(self, number: int) -> str:
        return str(self.tokens[number])


class Converter(TransformersConverter):
    tokens = TOKENS
    tied = True

    def load_model(self, *arguments: Any, **keywords: Any) -> Any:
        model = super().load_model(*arguments, **keywords)
        # transformers 5 reports every T5 as tied; converters of its day saw what the config said.
        model.config.tie_word_embeddings &= self.tied
        return model

    def load_tokenizer(self, *_: Any, **__: Any) -> _Tokenizer:
        return _Tokenizer(tokens=self.tokens)


WHISPER_TOKENS = [
    *[f"t{n}" for n in range(60)],
    *("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|haw|>", "<|translate|>"),
    *("<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"),
    *[f"<|{n * 0.02:.2f}|>" for n in range(VOCAB - 71)],
]


def convert(name: str, directory: Path, quantization: str | None = None) -> Any:
    """A CTranslate2 directory of the tiny model ``name``; returns transformers' model."""
    source = directory.with_name(f"{directory.name}-hf")
    model = make(name, source)
    # The converter reads these off old configs; transformers no longer writes them.
    config = json.loads((source / "config.json").read_text())
    config |= {"normalize_before": name == "mbart", "normalize_embedding": True}
    (source / "config.json").write_text(json.dumps(config))
    Converter.tokens = WHISPER_TOKENS if name == "whisper" else TOKENS
    Converter.tied = "untied" not in name
    Converter(str(source)).convert(str(directory), quantization=quantization, force=True)
    return model
