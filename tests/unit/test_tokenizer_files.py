"""Vocabularies as files: GGUF metadata, SentencePiece models, and files that cannot be read."""

import json
import sys
from random import Random

import pytest
import vocabularies
from tokenizers import Tokenizer
from vocabularies import T5, TEXTS, bart, gguf, marian, pieces_of, sentencepiece_model, t5, write

from xattn.errors import CorruptCheckpointError, MissingExtraError, UnsupportedModelError
from xattn.inputs.spm import BPE, UNIGRAM, read_sentencepiece
from xattn.inputs.tokenizers import load_tokenizer, tokenizer_from_gguf

# GGUF


def test_gguf_flags_put_special_tokens_around_a_text():
    plain = tokenizer_from_gguf(gguf())
    ids = plain.encode("The fox").ids
    assert tokenizer_from_gguf(gguf(add_bos_token=True)).encode("The fox").ids == [0, *ids]
    assert tokenizer_from_gguf(gguf(add_eos_token=True)).encode("The fox").ids == [*ids, 2]
    # Llama 3's files leave the flag out; llama.cpp then adds <|begin_of_text|>.
    llama3 = tokenizer_from_gguf(gguf(pre="llama-bpe"))
    assert llama3.encode("The fox").ids[0] == 0


def test_gguf_token_types_say_what_is_special():
    metadata = gguf()
    tokens = [*metadata["tokenizer.ggml.tokens"], "<control>", "<plain>"]
    types = [1] * (len(tokens) - 2) + [3, 4]
    tokenizer = tokenizer_from_gguf(gguf(tokens=tokens, token_type=types))
    ids = tokenizer.encode_plain("a<control><plain>").ids
    assert ids[1:] == [len(tokens) - 2, len(tokens) - 1]
    assert tokenizer.decode(ids) == "a<plain>"


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"pre": "mystery"}, UnsupportedModelError, "'mystery'.*known are"),
        ({"model": "bert"}, UnsupportedModelError, "'bert'"),
        ({"tokens": None}, CorruptCheckpointError, r"no list 'tokenizer.ggml.tokens'"),
        ({"merges": None}, CorruptCheckpointError, r"no list 'tokenizer.ggml.merges'"),
        ({"merges": ["onepiece"]}, CorruptCheckpointError, "not two pieces"),
        ({"merges": ["no such"]}, CorruptCheckpointError, "do not fit its tokens"),
        (
            {"token_type": [1, 2]},
            CorruptCheckpointError,
            "2 entries of 'tokenizer.ggml.token_type'",
        ),
        ({"model": "llama", "merges": None, "scores": [0.0]}, CorruptCheckpointError, "1 scores"),
    ],
)
def test_a_gguf_file_that_cannot_be_read_says_why(values, error, words):
    with pytest.raises(error, match=words):
        tokenizer_from_gguf(gguf(**values))


# SentencePiece files


@pytest.mark.parametrize(("kind", "number"), [("unigram", UNIGRAM), ("bpe", BPE)])
def test_a_sentencepiece_file_reads_as_the_package_reads_it(tmp_path, kind, number):
    model = sentencepiece_model(kind)
    file = read_sentencepiece(write(tmp_path, some__model=model) / "some.model")
    assert file.algorithm == number
    assert [(piece.text, piece.score) for piece in file.pieces] == pieces_of(model)
    assert len(file.charsmap) > 1000  # nmt_nfkc's table


@pytest.mark.parametrize("name", ["spiece.model", "source.spm", "sentencepiece.bpe.model"])
def test_a_cut_off_sentencepiece_file_is_named(tmp_path, name):
    model = sentencepiece_model("unigram", **T5)
    vocabulary = {"</s>": 0, "<unk>": 1}
    config = {"tokenizer_class": "MBartTokenizer"} if "bpe" in name else {}
    write(tmp_path, vocab__json=vocabulary, tokenizer_config__json=config)
    for length in (0, 1, 100, len(model) // 2, len(model) - 1):
        (tmp_path / name).write_bytes(model[:length])
        with pytest.raises(CorruptCheckpointError, match=name):
            load_tokenizer(tmp_path, {"model_type": "t5"})


def test_marian_without_sentencepiece_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(MissingExtraError, match=r"source.spm needs .*xattn\[text\]"):
        marian(tmp_path)
    assert t5(tmp_path / "t5").encode("The fox").ids  # needs no package


# Files


def test_a_directory_without_tokenizer_files_has_no_tokenizer(tmp_path):
    write(tmp_path, config__json={"model_type": "whisper"}, vocabulary__txt="a\nb\n")
    assert load_tokenizer(tmp_path, {"model_type": "whisper"}) is None


def test_a_broken_tokenizer_json_is_named(tmp_path):
    whole = vocabularies.byte_level_json()
    for text in (whole[: len(whole) // 2], "[]", ""):
        with pytest.raises(CorruptCheckpointError, match=r"tokenizer\.json"):
            load_tokenizer(write(tmp_path, tokenizer__json=text), {})


@pytest.mark.parametrize("text", ["{", "[1]", '{"added_tokens_decoder": {"x": {"special": true}}}'])
def test_a_broken_tokenizer_config_is_named(tmp_path, text):
    write(tmp_path, tokenizer_config__json=text, tokenizer__json=vocabularies.byte_level_json())
    with pytest.raises(CorruptCheckpointError, match=r"tokenizer_config\.json"):
        load_tokenizer(tmp_path, {})


def test_an_added_token_must_get_the_id_that_the_files_say(tmp_path):
    with pytest.raises(CorruptCheckpointError, match=r"'<late>' is token 9999"):
        bart(tmp_path, added_tokens_decoder={"9999": {"content": "<late>", "special": True}})


def test_merges_that_do_not_fit_are_named(tmp_path):
    directory = vocabularies.byte_level_files(tmp_path)
    (directory / "merges.txt").write_text("#version: 0.2\nno such\n")
    with pytest.raises(CorruptCheckpointError, match=r"merges\.txt"):
        load_tokenizer(directory, {"model_type": "bart"})


def test_marian_without_a_vocabulary_says_what_is_missing(tmp_path):
    directory = vocabularies.marian_files(tmp_path)
    (directory / "vocab.json").unlink()
    with pytest.raises(CorruptCheckpointError, match=r"neither vocab\.json nor"):
        load_tokenizer(directory, {})
    write(directory, vocab__json={"a": 0})
    with pytest.raises(CorruptCheckpointError, match="no '<unk>' token"):
        load_tokenizer(directory, {})


def test_a_vocabulary_of_another_kind_is_refused(tmp_path):
    write(tmp_path / "t5", spiece__model=sentencepiece_model("bpe"))
    with pytest.raises(UnsupportedModelError, match="unigram"):
        load_tokenizer(tmp_path / "t5", {"model_type": "t5"})
    write(tmp_path / "xlm", sentencepiece__bpe__model=sentencepiece_model("bpe"))
    with pytest.raises(UnsupportedModelError, match="'xlm-roberta'"):
        load_tokenizer(tmp_path / "xlm", {"model_type": "xlm-roberta"})


def test_truncation_and_padding_of_a_file_are_not_applied(tmp_path):
    backend = Tokenizer.from_str(vocabularies.byte_level_json())
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    tokenizer = load_tokenizer(write(tmp_path, tokenizer__json=backend.to_str()), {})
    backend.no_truncation()
    backend.no_padding()
    assert tokenizer.encode(TEXTS[3]).ids == backend.encode(TEXTS[3]).ids


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vocab.json", {"</s>": 0, "<unk>": 1, "de": None}),
        ("vocab.json", {"</s>": 0, "<unk>": 1, "de": "x"}),
        ("vocab.json", {"</s>": 0, "<unk>": 1, "de": float("inf")}),
        ("target_vocab.json", {"de": []}),
        ("added_tokens.json", {"<x>": float("inf")}),
    ],
    ids=str,
)
def test_an_id_that_is_none_is_named(tmp_path, name, content):
    write(
        tmp_path,
        source__spm=sentencepiece_model("unigram"),
        vocab__json={"</s>": 0, "<unk>": 1},
        tokenizer_config__json={"separate_vocabs": True},
        target_vocab__json={},
    )
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(CorruptCheckpointError, match=name.replace(".", r"\.")):
        load_tokenizer(tmp_path, {"model_type": "marian"})


@pytest.mark.parametrize("sentinels", ["x", [], -1, 2**31])
def test_sentinels_have_a_bound(tmp_path, sentinels):
    write(
        tmp_path,
        spiece__model=sentencepiece_model("unigram", **T5),
        tokenizer_config__json={"extra_ids": sentinels},
    )
    with pytest.raises(CorruptCheckpointError, match="'extra_ids' must be a whole number up to"):
        load_tokenizer(tmp_path, {"model_type": "t5"})


def test_a_damaged_normaliser_never_reaches_the_library(tmp_path):
    """The library walks the table unchecked, and panics; what it would panic on is refused."""
    model = sentencepiece_model("unigram", **T5)
    charsmap = read_sentencepiece(write(tmp_path, t__model=model) / "t.model").charsmap
    start, text = model.index(charsmap), "The ﬁrst ½ of ﬀ Å ＡＢＣ １２３ ㎏ à テスト 한국어"
    random, refused = Random(3), 0
    for _ in range(60):
        damaged = bytearray(model)
        for _ in range(random.choice([1, 3, 30])):
            damaged[start + random.randrange(len(charsmap))] ^= 1 << random.randrange(8)
        write(tmp_path, spiece__model=bytes(damaged))
        try:
            load_tokenizer(tmp_path, {"model_type": "t5"}).encode(text)
        except CorruptCheckpointError:
            refused += 1
    assert 20 < refused < 60
