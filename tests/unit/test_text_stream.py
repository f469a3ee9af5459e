"""Text streams: their pieces add up to the text of all tokens, for every kind of tokenizer."""

import json

import pytest
import tokenizers
import vocabularies
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models
from vocabularies import TEXTS, sentencepiece_model, write

from xattn.errors import UnsupportedModelError, UsageError
from xattn.inputs.decoders import CleanUp, clean_up_spaces, stages_of
from xattn.inputs.text import TextStream
from xattn.inputs.tokenizers import character_tokenizer, load_tokenizer

CLEAN_UP = {"clean_up_tokenization_spaces": True}


def _byte_level(directory):
    return vocabularies.byte_level_files(directory), "bart"


def _whisper(directory):
    return vocabularies.whisper_files(directory), "whisper"


def _t5(directory, **config):
    model = sentencepiece_model("unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    return write(directory, spiece__model=model, tokenizer_config__json=config), "t5"


def _nllb(directory):
    return write(directory, sentencepiece__bpe__model=sentencepiece_model("bpe")), "nllb"


def _llama(directory):
    model = sentencepiece_model("bpe", "identity", byte_fallback=True)
    return write(directory, tokenizer__model=model), "llama"


def _marian_with_bytes(directory):
    model = sentencepiece_model("unigram", byte_fallback=True)
    tokens = ["</s>", *(piece for piece, _ in vocabularies.pieces_of(model) if piece != "</s>")]
    numbers = {token: place for place, token in enumerate(tokens)}
    return write(directory, source__spm=model, target__spm=model, vocab__json=numbers), "marian"


def _no_decoder(directory):
    backend = tokenizers.Tokenizer(models.WordLevel({"[U]": 0, "a": 1, "b": 2}, unk_token="[U]"))
    return write(directory, tokenizer__json=backend.to_str()), ""


KINDS = {
    "byte level": _byte_level,
    "whisper": _whisper,
    "metaspace": _t5,
    "metaspace, cleaned up": lambda directory: _t5(directory, **CLEAN_UP),
    "metaspace over bpe": _nllb,
    "byte fallback": _llama,
    "marian": lambda directory: (vocabularies.marian_files(directory, **CLEAN_UP), "marian"),
    "marian with bytes": _marian_with_bytes,
    "m2m100": lambda directory: (vocabularies.m2m100_files(directory), "m2m_100"),
    "no decoder": _no_decoder,
}


@pytest.fixture(scope="module")
def all_tokenizers(tmp_path_factory):
    made = {}
    for name, files in KINDS.items():
        directory, family = files(tmp_path_factory.mktemp("tokenizer"))
        made[name] = load_tokenizer(directory, {"model_type": family})
    characters = "____abc\u4f60\u00e9 "
    made["characters"] = character_tokenizer(characters, characters, bos=1, eos=2, pad=0, unk=3)
    return made


def pieces(tokenizer, ids, unit="characters"):
    stream = TextStream(tokenizer, unit)
    return [stream.push(token) for token in ids] + [stream.finish()]


@pytest.mark.parametrize("kind", [*KINDS, "characters"])
@pytest.mark.parametrize("unit", ["words", "characters"])
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_pieces_add_up_to_the_text(all_tokenizers, kind, unit, data):
    tokenizer = all_tokenizers[kind]
    # Ordinary text, random tokens, and tokens beyond the vocabulary, in any mixture.
    ordinary = st.sampled_from(TEXTS).map(lambda text: tokenizer.encode(text).ids)
    random = st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=12)
    ids = [token for part in data.draw(st.lists(ordinary | random, max_size=4)) for token in part]
    assert "".join(pieces(tokenizer, ids, unit)) == tokenizer.decode(ids)


def _special_spellings(kind):
    spellings = {
        "metaspace, cleaned up": [
            "\u2581",
            "'",
            "n",
            "t",
            "s",
            "\u2581.",
            "\u2581'",
            ".",
            "\u2581n",
        ],
        "byte fallback": [f"<0x{byte:02X}>" for byte in b"\xe2\x82\xac\xf0\x9f\x98\x80\xff"],
        "byte level": list("\u00e2\u0124\u00b4\u00f0\u0141\u013a\u0122\u0120a"),
        "whisper": ["<|0.00|>", "<|2.50|>", "<", "|", "1", ".", ">", "<|startofprev|>", "a"],
        "marian": ["\u2581", "\u2581.", "'", "n", "t", "\u2581n", "</s>", "<unk>"],
    }
    spellings["marian with bytes"] = [*spellings["byte fallback"], "\u2581", "a", "\u2581t"]
    spellings["byte fallback"] = [*spellings["byte fallback"], "\u2581", "a", "\u2581t"]
    spellings["whisper"] += ["<|startoftranscript|>", "\u0120"]
    return spellings[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "metaspace, cleaned up",
        "byte fallback",
        "byte level",
        "whisper",
        "marian",
        "marian with bytes",
    ],
)
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_pieces_add_up_where_tokens_depend_on_each_other(all_tokenizers, kind, data):
    tokenizer = all_tokenizers[kind]
    known = [tokenizer.id_of(token) for token in _special_spellings(kind)]
    known = [token for token in known if token is not None]
    assert len(known) >= 6
    ids = data.draw(st.lists(st.sampled_from(known), max_size=14))
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


@example(parts=[" n", " ' t"])
@example(parts=["x ", " ' s"])
@example(parts=["x '", " b"])
@settings(max_examples=500, deadline=None)
@given(parts=st.lists(st.text(" .,?!'ntmsver", max_size=3), max_size=10))
def test_clean_up_in_parts_equals_clean_up_at_once(parts):
    stage = CleanUp()
    assert "".join([*map(stage.push, parts), stage.finish()]) == clean_up_spaces("".join(parts))


def test_an_emoji_over_several_tokens_comes_whole(all_tokenizers):
    for kind in ("byte level", "byte fallback"):
        tokenizer = all_tokenizers[kind]
        ids = tokenizer.encode_plain("ok \U0001f600!").ids
        assert len(ids) >= 6
        found = pieces(tokenizer, ids)
        assert not any("\ufffd" in piece for piece in found)
        assert any("\U0001f600" in piece for piece in found)


def test_characters_come_with_the_token_that_completes_them(all_tokenizers):
    tokenizer = all_tokenizers["byte level"]
    ids = tokenizer.encode_plain("The \u20ac fox").ids
    texts = [tokenizer.decode(ids[: place + 1]).rstrip("\ufffd") for place in range(len(ids))]
    stream, so_far = TextStream(tokenizer, "characters"), ""
    for token, text in zip(ids, texts, strict=True):
        so_far += stream.push(token)
        assert so_far == text


def test_a_word_comes_when_the_next_begins(all_tokenizers):
    for kind in ("byte level", "metaspace", "m2m100"):
        tokenizer = all_tokenizers[kind]
        ids = tokenizer.encode_plain("The lazy dog").ids
        found = [piece for piece in pieces(tokenizer, ids, "words") if piece]
        assert found == ["The", " lazy", " dog"]


def test_words_without_spaces_come_one_by_one(all_tokenizers):
    tokenizer = all_tokenizers["byte level"]
    text = "\u4f60\u597d\uff0c\u4e16\u754c\u3002ok"
    found = [p for p in pieces(tokenizer, tokenizer.encode_plain(text).ids, "words") if p]
    assert found == ["\u4f60", "\u597d\uff0c", "\u4e16", "\u754c\u3002", "ok"]


def test_a_leading_space_is_kept_or_dropped_as_in_the_text(all_tokenizers):
    for kind, text in {"byte level": " fox", "metaspace": "fox", "marian": "fox"}.items():
        tokenizer = all_tokenizers[kind]
        assert "".join(pieces(tokenizer, tokenizer.encode(" fox").ids)) == text


def test_a_stream_never_decodes_the_text_so_far(all_tokenizers, monkeypatch):
    """Its cost is linear: what it gave is not looked at again."""
    tokenizer = all_tokenizers["metaspace, cleaned up"]
    ids = tokenizer.encode_plain(TEXTS[3]).ids
    want = tokenizer.decode(ids * 3)

    def refuse(*_, **__):
        raise AssertionError("decode was called")

    monkeypatch.setattr(type(tokenizer), "decode", refuse)
    assert "".join(pieces(tokenizer, ids * 3)) == want


def test_an_unknown_unit_is_refused(all_tokenizers):
    with pytest.raises(UsageError, match=r"`unit` must be 'words' or 'characters'"):
        TextStream(all_tokenizers["byte level"], "lines")


def test_an_unknown_decoder_is_refused():
    decoder = json.loads(decoders.WordPiece().__getstate__())
    with pytest.raises(UnsupportedModelError, match="WordPiece"):
        stages_of(decoder)
