"""Materialised and absorbed cross-attention choose the same tokens, in every family."""

import pytest
import tiny

from xattn.decoding import Request, Settings, decode


@pytest.mark.parametrize("name", tiny.SEQ2SEQ)
@pytest.mark.parametrize("beams", [1, 4])
def test_same_tokens(pairs, name, beams):
    pair = pairs(name)
    memories = pair.memories(pair.inputs(12, 10, seed=11)[0])
    start = pair.ours.spec.tokens.decoder_start
    # The last request attends to three memories at once.
    requests = [Request((start,), (memory,)) for memory in memories]
    requests.append(Request((start,), tuple(memories[:3])))
    settings = Settings(max_new_tokens=16, num_beams=beams, no_repeat_ngram_size=2)
    answers = {}
    for form in ("materialized", "absorbed"):
        found = decode(pair.ours, requests, settings, form=form)
        answers[form] = [hypotheses[0] for hypotheses in found]
    for one, other in zip(answers["materialized"], answers["absorbed"], strict=True):
        assert one.tokens == other.tokens
        assert one.score == pytest.approx(other.score, abs=1e-4)
    assert len({answer.tokens for answer in answers["absorbed"]}) > 1, "sources matter"


@pytest.mark.parametrize("name", tiny.SEQ2SEQ)
def test_absorbed_memories_are_read_where_they_lie(pairs, name):
    pair = pairs(name)
    memories = pair.memories(pair.inputs(2, 10)[0])
    state = pair.ours.start([[m] for m in memories] * 3, form="absorbed")
    read = [p.segments[0].states_NSD.data_ptr() for p in state.projections]
    assert read == [memory.states_SD.data_ptr() for memory in memories]
    assert state.cross_bytes == sum(memory.size_bytes for memory in memories)
