"""Scores by hand, and a calibration that finds heads which look at the answer."""

import gzip
import json

import pytest

import xattn
from xattn.library.asking import answer
from xattn.library.calibrating import calibrate
from xattn.library.calibration import (
    Calibration,
    calibration_of,
    read_calibrations,
    toml_of,
)
from xattn.library.evaluation import evaluate, holds, recall_of
from xattn.library.passage import Passage
from xattn.library.readers import ParallelReader
from xattn.library.squad import Question, auc, contains, exact_match, f1, read_questions
from xattn.store import MemoryStore

FACTS = [
    ("The tower of Lund was built in 1844 by Anna Verhoeven.", "Who built the tower?", "Verhoeven"),
    ("The mill of Gris grinds rye. Its owner is Jonas Lind.", "Who owns the mill?", "Jonas Lind"),
    ("The lake is cold. The lake is 38 metres deep.", "How deep is the lake?", "38"),
    ("Ferries leave on Mondays. They sail to Ruden.", "Where do ferries sail to?", "Ruden"),
    ("The bridge is made of oak. It is closed in winter.", "What is the bridge made of?", "oak"),
    ("Maria Holm is the mayor. She was elected in 2019.", "Who is the mayor?", "Maria Holm"),
]


def passages():
    return [
        Passage(source=f"{n}", title="Gris", text=text, start=0, end=len(text))
        for n, (text, _, _) in enumerate(FACTS)
    ]


def questions():
    return [
        Question(text=question, answers=(right,), paragraph=n)
        for n, (_, question, right) in enumerate(FACTS)
    ]


def search(question, k):
    """The passage that is asked about, then its neighbours."""
    place = [asked for _, asked, _ in FACTS].index(question)
    every = passages()
    return (every[place:] + every[:place])[:k]


def test_answers_are_scored_as_squad_does():
    assert exact_match("The  Denver Broncos!", ["denver broncos"])
    assert not exact_match("Denver", ["Denver Broncos"])
    assert contains("It was the Denver Broncos, I think.", ["x", "Denver Broncos"])
    assert not contains("Denver lost to Bronco", ["Denver Broncos"])
    assert not contains("1900s", ["190"])
    assert f1("the Denver team", ["Denver Broncos"]) == pytest.approx(0.5)
    assert f1("nothing of it", ["Denver"]) == 0
    assert f1("a Denver Broncos", ["x", "Denver Broncos"]) == 1
    assert auc([0.9, 0.4, 0.6, 0.2], [True, True, False, False]) == pytest.approx(0.75)
    assert auc([0.5, 0.5], [True, False]) == 0.5
    assert auc([0.5, 0.6], [True, True]) is None


def test_files_of_questions_are_read_or_named(tmp_path):
    asked = {"question": "Who?", "answers": [{"text": "Ann"}, {"text": "Ann"}, {"text": "A."}]}
    nobody = {"question": "Why?", "answers": []}
    data = {"data": [{"title": "A_town", "paragraphs": [{"context": "x", "qas": [nobody, asked]}]}]}
    packed = tmp_path / "q.json.gz"
    packed.write_bytes(gzip.compress(json.dumps(data).encode()))
    found = read_questions(packed)
    assert found.questions == (Question(text="Who?", answers=("Ann", "A."), paragraph=0),)
    assert found.paragraphs[0].title == "A town"
    for content, error, said in [
        (b"{", xattn.UnreadableSourceError, "not readable as JSON"),
        (b'{"data": [{"x": 1}]}', xattn.InvalidSourceError, "not in SQuAD's format"),
        (b'{"data": []}', xattn.InvalidSourceError, "no question with an answer"),
    ]:
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(error, match=said):
            read_questions(tmp_path / "bad.json")
    with pytest.raises(xattn.SourceNotFoundError):
        read_questions(tmp_path / "none.json")


def test_recall_counts_paragraphs_and_parts_of_them():
    texts = [text for text, _, _ in FACTS]
    assert recall_of(search, questions(), texts, [1, 3]).recall == {1: 1.0, 3: 1.0}
    assert recall_of(lambda q, k: search(q, 6)[::-1][:k], questions(), texts, [1, 3, 6]).recall == {
        1: 0.0, 3: 0.0, 6: 1.0,
    }  # fmt: skip
    part = Passage(source="a", title="", text="Its owner  is\nJonas Lind.", start=0, end=1)
    assert holds(part, FACTS[1][0])
    assert not holds(part, FACTS[2][0])


@pytest.mark.slow
def test_heads_are_found_that_look_at_the_answer(tmp_path):
    model = xattn.load("smollm2-135m-instruct")
    with MemoryStore(tmp_path) as store:
        model.store = store
        reader = ParallelReader(model)
        with pytest.raises(xattn.UsageError, match="at least 40 that are answered rightly"):
            calibrate(reader, search, questions()[:2], k=2, heads=40)
        told = []
        found = calibrate(reader, search, questions(), k=2, heads=3, progress=told.append)
        assert told == [1, 2, 3, 4, 5, 6]
        assert len(set(found.heads)) == 3
        assert 0 <= found.threshold < 1

        def hits(calibration):
            rows = [
                (answer(reader, q.text, search(q.text, 2), calibration=calibration), q.answers)
                for q in questions()
            ]
            return sum(
                bool(one.citations) and contains(one.citations[0].quote, answers)
                for one, answers in rows
                if contains(one.text, answers)
            )

        by_chosen = hits(Calibration(heads=found.heads))
        assert by_chosen >= 3
        assert by_chosen >= hits(Calibration())
        scores = evaluate(reader, search, questions(), k=2, forget=lambda: None, calibration=found)
    assert scores.questions == 6
    assert scores.contains_answer >= 3 / 6
    assert scores.encoder_passes == 0
    assert 0 < scores.memory_bytes < 100e6


def test_a_known_model_has_its_calibration():
    model = xattn.load("smollm2-135m-instruct")
    for name in ("parallel", "plain"):
        found = calibration_of(model, name)
        assert len(found.heads) == 8
        assert 0 < found.threshold < 1
    assert calibration_of(model, "fusion") == Calibration()


def test_what_is_printed_is_read_again(tmp_path):
    model = xattn.load("smollm2-135m-instruct")
    readers = {
        "parallel": Calibration(heads=[(1, 2), (3, 4)], threshold=0.25),
        "plain": Calibration(heads=[(5, 6)], threshold=0.5),
    }
    file = tmp_path / "found.toml"
    file.write_text(toml_of(model.network.encoder_digest, readers))
    found = read_calibrations(file)
    for name, want in readers.items():
        assert calibration_of(model, name, found) == want
    assert calibration_of(model, "fusion", found) == Calibration()


@pytest.mark.parametrize("text", ["", "models = 1", "[[models]]", '[[models]]\ndigest = "a"', "="])
def test_what_is_no_calibration_is_named(tmp_path, text):
    file = tmp_path / "found.toml"
    file.write_text(text)
    with pytest.raises(xattn.UsageError, match=r"found\.toml .*`xattn eval qa --calibrate`"):
        read_calibrations(file)
