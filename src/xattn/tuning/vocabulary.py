"""Tokenizers for models that begin from nothing: byte-pair encoding of the training data."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

PAD, BOS, EOS, UNK = range(4)
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


def make_tokenizer(texts: Iterable[str], vocabulary: int, directory: Path) -> None:
    """A tokenizer of at most ``vocabulary`` tokens, written as transformers writes one.

    Sennrich et al. 2016, arXiv 1508.07909, with a mark for a word's beginning as in SentencePiece;
    sources end with ``</s>``.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[UNK], fuse_unk=True))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIAL), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {SPECIAL[EOS]}", special_tokens=[(SPECIAL[EOS], EOS)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
