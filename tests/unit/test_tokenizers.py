"""Tokenizers: offsets, identities, languages, templates, and files that cannot be read."""

import json
import subprocess
import sys

import pytest
import sentencepiece
import vocabularies
from tokenizers import Tokenizer, processors
from vocabularies import (
    CHAT_TEMPLATE,
    TEXTS,
    bart,
    characters,
    gguf,
    m2m100,
    marian,
    mbart50,
    nllb,
    sentencepiece_model,
    t5,
    write,
)

from xattn.errors import (
    InvalidSourceError,
    UnsupportedModelError,
    UsageError,
)
from xattn.inputs.text import Encoded, canonical_text
from xattn.inputs.tokenizers import character_tokenizer, load_tokenizer, tokenizer_from_gguf
from xattn.memory import Span

ALL = [bart, t5, nllb, mbart50, marian, m2m100, characters]


# Canonical text


def test_canonical_text_is_composed():
    assert canonical_text("e\u0301 \u212b") == "\u00e9 \u00c5"


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(InvalidSourceError, match=r"surrogate pair at character 2"):
        canonical_text("ab\ud800c")


def test_spans_are_characters():
    assert Encoded([7, 8], [(0, 2), (2, 5)]).spans == [
        Span(0.0, 2.0, "characters"),
        Span(2.0, 5.0, "characters"),
    ]


# Offsets


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("text", TEXTS)
def test_offsets_cover_the_text_in_order(tmp_path, make, text):
    text = canonical_text(text)
    ids, offsets = make(tmp_path).encode(text)
    assert len(ids) == len(offsets)
    assert all(0 <= start <= end <= len(text) for start, end in offsets)
    ends = [end for _, end in offsets]
    assert ends == sorted(ends)
    covered = {place for start, end in offsets for place in range(start, end)}
    missing = [c for place, c in enumerate(text) if place not in covered and not c.isspace()]
    assert missing == []


@pytest.mark.parametrize("make", [bart, t5, marian, m2m100])
def test_an_offset_is_where_the_token_reads(tmp_path, make):
    tokenizer, text = make(tmp_path), "The lazy dog, isn't the fox."
    spoken = [
        (tokenizer.decode([token]).strip(), text[start:end].strip())
        for token, (start, end) in zip(*tokenizer.encode_plain(text), strict=True)
    ]
    assert [read for read, _ in spoken if read] == [there for read, there in spoken if read]
    assert sum(bool(read) for read, _ in spoken) > 6


@pytest.mark.parametrize("make", ALL)
def test_special_tokens_have_empty_spans_at_their_place(tmp_path, make):
    tokenizer, text = make(tmp_path), "The fox"
    ids, offsets = tokenizer.encode(text)
    inner = len(tokenizer.encode_plain(text).ids)
    before = ids.index(tokenizer.encode_plain(text).ids[0]) if make is not marian else 0
    after = len(ids) - before - inner if make is not marian else 1
    assert offsets[:before] == [(0, 0)] * before
    assert offsets[len(ids) - after :] == [(len(text), len(text))] * after
    assert after >= 1


def test_bytes_of_one_character_share_its_span(tmp_path):
    ids, offsets = bart(tmp_path).encode_plain("a\U0001f600b")
    assert len(ids) == 6
    assert offsets == [(0, 1), *[(1, 2)] * 4, (2, 3)]


def test_a_language_code_in_front_has_its_own_span(tmp_path):
    tokenizer = marian(tmp_path)
    ids, offsets = tokenizer.encode(">>fra<< The fox")
    assert ids[0] == tokenizer.id_of(">>fra<<")
    assert offsets[0] == (0, 7)
    assert offsets[1][0] >= 7


def test_a_special_token_in_the_text_keeps_its_span(tmp_path):
    for make in (t5, m2m100):
        tokenizer = make(tmp_path / make.__name__)
        ids, offsets = tokenizer.encode_plain("The</s>fox")
        assert offsets[ids.index(tokenizer.id_of("</s>"))] == (3, 7)


def test_added_tokens_may_swallow_the_space_around_them(tmp_path):
    added = {"content": "<sep>", "lstrip": True, "rstrip": True, "special": True}
    tokenizer = m2m100(tmp_path, added_tokens_decoder={"450": added})
    ids, offsets = tokenizer.encode_plain("The <sep>  fox")
    assert ids == [*tokenizer.encode_plain("The").ids, 450, *tokenizer.encode_plain("fox").ids]
    assert offsets[ids.index(450)] == (4, 9)
    assert offsets[ids.index(450) + 1][0] == 11


def test_the_end_of_a_file_s_own_template_stands_at_the_end(tmp_path):
    backend = Tokenizer.from_str(vocabularies.byte_level_json())
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s> <pad>", special_tokens=[("<s>", 0), ("<pad>", 1), ("</s>", 2)]
    )
    tokenizer = load_tokenizer(write(tmp_path, tokenizer__json=backend.to_str()), {})
    ids, offsets = tokenizer.encode("The fox")
    assert [ids[0], *ids[-2:]] == [0, 2, 1]
    assert [offsets[0], *offsets[-2:]] == [(0, 0), (7, 7), (7, 7)]
    assert tokenizer.encode("").offsets == [(0, 0)] * 3


def test_the_longest_added_token_wins(tmp_path):
    added = {"450": {"content": "<a>"}, "451": {"content": "<a><b>"}}
    tokenizer = m2m100(tmp_path, added_tokens_decoder=added)
    assert tokenizer.encode_plain("<a><b>").ids == [451]
    assert tokenizer.encode_plain("<a><a><b>").ids == [450, 451]


# Identity


def test_equal_files_have_equal_identities(tmp_path):
    for make in (bart, t5, nllb, marian, m2m100):
        first, second = make(tmp_path / f"1{make.__name__}"), make(tmp_path / f"2{make.__name__}")
        assert first.identity == second.identity


def test_whatever_changes_ids_changes_the_identity(tmp_path):
    french = nllb(tmp_path / "1", src_lang="fra_Latn")
    assert french.identity == french.for_language("eng_Latn").for_language("fra_Latn").identity
    added = {"content": "quick", "special": False}
    size = len(json.loads((vocabularies.byte_level_files(tmp_path) / "vocab.json").read_text()))
    identities = [
        nllb(tmp_path / "4").identity,
        french.identity,
        french.for_language("deu_Latn").identity,
        nllb(tmp_path / "5", legacy_behaviour=True).identity,
        bart(tmp_path / "6").identity,
        bart(tmp_path / "7", added_tokens_decoder={str(size): added}).identity,
        bart(tmp_path / "8", added_tokens_decoder={str(size): added | {"lstrip": True}}).identity,
        bart(tmp_path / "9", split_special_tokens=True).identity,
        bart(tmp_path / "10", chat_template=CHAT_TEMPLATE).identity,
        marian(tmp_path / "11").identity,
        marian(tmp_path / "12", separate_vocabs=False, unk_token="\u2581").identity,
        m2m100(tmp_path / "13").identity,
        m2m100(tmp_path / "14", src_lang="de").identity,
        t5(tmp_path / "15").identity,
        t5(tmp_path / "16", extra_ids=10).identity,
        tokenizer_from_gguf(gguf()).identity,
        tokenizer_from_gguf(gguf(pre="qwen2")).identity,
        tokenizer_from_gguf(gguf(add_bos_token=True)).identity,
        character_tokenizer("____ab", "____ab", bos=1, eos=2, pad=0, unk=3).identity,
        character_tokenizer("____ab", "____ab", bos=1, eos=2, pad=3, unk=0).identity,
        character_tokenizer("____ba", "____ab", bos=1, eos=2, pad=0, unk=3).identity,
        character_tokenizer("____ab", "____ba", bos=1, eos=2, pad=0, unk=3).identity,
    ]
    assert len(set(identities)) == len(identities)


def test_the_identity_covers_the_target_side(tmp_path):
    first = marian(tmp_path / "1")
    directory = vocabularies.marian_files(tmp_path / "2")
    (directory / "target.spm").write_bytes(sentencepiece_model("unigram"))
    assert load_tokenizer(directory, {}).identity != first.identity


# Languages


def test_an_unknown_language_names_its_near_ones(tmp_path):
    with pytest.raises(UsageError, match=r"202 codes, but is 'fre_Latn' instead.*fra_Latn"):
        nllb(tmp_path / "nllb").for_language("fre_Latn")
    with pytest.raises(UsageError, match=r"'en'.*eng_Latn"):
        nllb(tmp_path / "nllb2").for_language("en")
    with pytest.raises(UsageError, match=r"'DE'.*de_DE"):
        mbart50(tmp_path / "mbart").for_language("DE")
    with pytest.raises(UsageError, match=r"'deu'.*\bde\b"):
        m2m100(tmp_path / "m2m").for_language("deu")


@pytest.mark.parametrize("make", [bart, t5, marian, characters])
def test_a_model_of_one_language_takes_no_language(tmp_path, make):
    tokenizer = make(tmp_path)
    assert dict(tokenizer.languages) == {}
    with pytest.raises(UsageError, match="one language only"):
        tokenizer.for_language("en")


def test_a_language_stays_with_its_own_variant(tmp_path):
    first = nllb(tmp_path)
    ids = first.encode("The fox").ids
    second = first.for_language("deu_Latn")
    assert second.encode("The fox").ids == [second.languages["deu_Latn"], *ids[1:]]
    assert first.encode("The fox").ids == ids


def test_a_source_language_outside_the_vocabulary_is_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match="'xx_XX'"):
        mbart50(tmp_path, src_lang="xx_XX")


# Tokens


@pytest.mark.parametrize("make", ALL)
def test_tokens_and_ids_invert_each_other(tmp_path, make):
    tokenizer = make(tmp_path)
    for token in tokenizer.encode_plain("The lazy fox").ids:
        assert tokenizer.id_of(tokenizer.token_of(token)) == token
    assert tokenizer.id_of("no such token") is None
    for outside in (tokenizer.vocab_size, -1):
        with pytest.raises(UsageError, match=rf"`id` must be .*but is {outside} instead"):
            tokenizer.token_of(outside)


def test_the_sides_of_marian_differ(tmp_path):
    tokenizer = marian(tmp_path)
    processors = [
        sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / name))
        for name in ("source.spm", "target.spm")
    ]
    text = "The quick brown fox jumps"
    source, target = (processor.encode(text, out_type=str) for processor in processors)
    assert source != target
    assert tokenizer.encode(text).ids[:-1] == [tokenizer.id_of(piece) for piece in source]
    assert tokenizer.encode_plain(text).ids == [tokenizer.id_of(piece) for piece in target]


def test_a_vocabulary_for_each_side_of_marian(tmp_path):
    directory = vocabularies.marian_files(tmp_path, separate_vocabs=True)
    numbers = json.loads((directory / "vocab.json").read_text())
    ordinary = [token for token in numbers if token not in ("</s>", "<unk>", "<pad>")]
    turned = dict(zip(ordinary, reversed([numbers[token] for token in ordinary]), strict=True))
    write(directory, target_vocab__json=numbers | turned)
    tokenizer = load_tokenizer(directory, {})
    text = "The quick brown fox"
    assert tokenizer.decode(tokenizer.encode_plain(text).ids) == text
    assert tokenizer.decode(tokenizer.encode(text).ids) != text
    assert tokenizer.encode(text).ids == marian(tmp_path / "shared").encode(text).ids


@pytest.mark.parametrize("make", [vocabularies.marian_files, vocabularies.m2m100_files])
def test_the_list_that_ctranslate2_writes_serves_as_vocabulary(tmp_path, make):
    directory = make(tmp_path)
    model_type = {"model_type": "m2m_100"}
    expected = load_tokenizer(directory, model_type).encode(TEXTS[3]).ids
    numbers = json.loads((directory / "vocab.json").read_text())
    (directory / "vocab.json").unlink()
    tokens = sorted(numbers, key=numbers.get)
    if make is vocabularies.m2m100_files:
        from xattn.inputs.languages import M2M100

        tokens += [f"__{code}__" for code in M2M100]
    write(directory, shared_vocabulary__json=tokens)
    assert load_tokenizer(directory, model_type).encode(TEXTS[3]).ids == expected


def test_newer_files_leave_the_older_ones_unread(tmp_path):
    size = len(json.loads((vocabularies.byte_level_files(tmp_path) / "vocab.json").read_text()))
    write(tmp_path, special_tokens_map__json={"sep_token": "<pad>"})
    added = {str(size): {"content": "<mask>", "special": True}}
    tokenizer = bart(tmp_path, added_tokens_decoder=added)
    assert tokenizer.encode("The fox").ids[-1] == tokenizer.id_of("</s>")
    write(tmp_path, tokenizer_config__json={"tokenizer_class": "BartTokenizer"})
    older = load_tokenizer(tmp_path, {})
    assert older.encode("The fox").ids[-1] == older.id_of("<pad>")


def test_older_files_name_their_added_tokens_elsewhere(tmp_path):
    directory = vocabularies.byte_level_files(tmp_path)
    first = len(json.loads((directory / "vocab.json").read_text()))
    write(
        directory,
        special_tokens_map__json={"eos_token": {"content": "<end>"}, "pad_token": "<pad>"},
        added_tokens__json={"<end>": first, "<plain>": first + 1},
    )
    tokenizer = load_tokenizer(directory, {"model_type": "gpt2"})
    ids = tokenizer.encode_plain("The<end><plain>").ids
    assert ids[-2:] == [first, first + 1]
    assert tokenizer.decode(ids) == "The<plain>"


# Import


def test_importing_the_tokenizers_imports_none_of_the_heavy_packages():
    code = (
        "import sys, xattn.inputs.tokenizers;"
        "print(sorted({'transformers', 'sentencepiece', 'tokenizers', 'jinja2', 'gguf'}"
        " & (set(sys.modules) - before)))"
    )
    # torch itself may import some of these, so only what comes on top of it counts.
    code = "import sys, torch; before = set(sys.modules);" + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
