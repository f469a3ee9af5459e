"""Warm equals cold: what comes from the store decodes to the tokens of what was just encoded."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

import xattn
from xattn.store import CODECS, MemoryStore

RECORDING = Path(__file__).parents[2] / "examples" / "assets" / "recording.wav"
SEARCHES = ({}, {"num_beams": 4, "num_return_sequences": 2}, {"do_sample": True, "seed": 3})


def sources_of(name):
    if name == "whisper":
        random = np.random.default_rng(1)
        return [random.normal(size=16000 * 30).astype(np.float32)[: 9600 // n] for n in (1, 2)]
    return [[5, 9, 12, 7, 2], list(range(3, 40)), [5]]


def tokens_of(model, memory):
    settings = {"max_new_tokens": 12, "prompt": [2, 9]}
    return [list(model.generate(memory, **settings, **search).tokens) for search in SEARCHES]


READ = """
import json, sys
sys.path[:0] = [{tests!r}, {here!r}]
from test_warm import sources_of, tokens_of
import xattn
found = {{}}
for name in {names!r}:
    model, store = xattn.load({root!r} + "/" + name), xattn.MemoryStore({root!r} + "/store")
    memories = [store.get_or_encode(model, source) for source in sources_of(name)]
    found[name] = [[tokens_of(model, memory) for memory in memories], model.counters.encoder_passes]
print(json.dumps(found))
"""


def test_a_new_process_encodes_nothing_and_says_the_same(tmp_path):
    """Every family, greedy, with beams, and sampled."""
    fresh = {}
    with MemoryStore(tmp_path / "store") as store:
        for name in tiny.SEQ2SEQ:
            tiny.make(name, tmp_path / name)
            model = xattn.load(tmp_path / name)
            sources = sources_of(name)
            for source in sources:
                store.get_or_encode(model, source)
            fresh[name] = [[tokens_of(model, model.encode(source)) for source in sources], 0]
    here = Path(__file__).parent
    script = READ.format(
        tests=str(here.parent), here=str(here), names=tiny.SEQ2SEQ, root=str(tmp_path)
    )
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == json.loads(json.dumps(fresh))


@pytest.mark.parametrize("name", ["whisper-tiny.en", "g2p-en"])
@pytest.mark.parametrize("codec", CODECS)
def test_real_weights_from_every_codec(tmp_path, name, codec):
    """float32 says exactly the same; what is lossy is chosen, and says by how much."""
    model = xattn.load(name)
    source = str(RECORDING) if "whisper" in name else "memory"
    cold = model.generate(model.encode(source))
    store = MemoryStore(tmp_path, codec=codec, ram_bytes=0)
    store.get_or_encode(model, source)
    before = model.counters.encoder_passes
    warm = model.generate(store.get_or_encode(model, source))
    assert model.counters.encoder_passes == before
    if codec != "int4":
        assert warm.tokens == cold.tokens
    if codec == "float32":
        assert (warm.score, warm.logprobs) == (cold.score, cold.logprobs)


def test_a_model_with_a_store_encodes_raw_sources_once(tmp_path):
    model = xattn.load("g2p-en")
    model.store = MemoryStore(tmp_path)
    words = ["memory", "attention", "memory"]
    answers = [answer.text for answer in model.generate_batch(words)]
    assert model.counters.encoder_passes == 2
    again = xattn.load("g2p-en")
    again.store = MemoryStore(tmp_path)
    assert [again.generate(word).text for word in words] == answers
    assert again.counters.encoder_passes == 0
    again.encode("memory")
    assert again.counters.encoder_passes == 1


def test_sha256_where_a_standard_asks_for_it(tmp_path):
    names = {}
    for hash in ("blake3", "sha256"):
        model = xattn.load("g2p-en", hash=hash)
        memory = MemoryStore(tmp_path).get_or_encode(model, "memory")
        assert memory.key.hash == hash
        names[hash] = (memory.key.digest, memory.key.source, memory.key.encoder)
    assert not set(names["blake3"]) & set(names["sha256"])
    with pytest.raises(xattn.UsageError, match="`hash` must be one of blake3, sha256"):
        xattn.load("g2p-en", hash="md5")


def test_a_long_text_is_attended_to_in_chunks(tmp_path):
    directory = tmp_path / "t5"
    tiny.make("t5", directory)
    model = xattn.load("g2p-en")
    text = " ".join(f"Sentence {n} is said." for n in range(30))
    pieces = model.prepare_long(text, max_positions=40)
    assert len(pieces) > 10
    memories = MemoryStore(tmp_path / "store").get_or_encode_prepared(model, pieces)
    for memory in memories:
        inside = [span for span in memory.spans if span.end > span.start]
        assert inside
        for span in inside:
            assert 0 <= span.start < span.end <= len(text)
    covered = {int(s.start) for m in memories for s in m.spans if s.end > s.start}
    letters = {place for place, letter in enumerate(text) if letter.isalpha()}
    assert letters <= covered
    assert model.generate(memories, max_new_tokens=5).tokens


def test_a_transcription_hears_the_windows_that_were_encoded_before(tmp_path):
    model, store = xattn.load("whisper-tiny.en"), MemoryStore(tmp_path)
    fresh = model.transcribe(RECORDING, beam_size=1)
    store.get_or_encode_prepared(model, model.prepare_long(RECORDING))
    model.store = MemoryStore(tmp_path)
    before = model.counters.encoder_passes
    warm = model.transcribe(RECORDING, beam_size=1)
    assert (warm.segments, warm.encoder_passes) == (fresh.segments, 0)
    assert model.counters.encoder_passes == before
    assert {row.label for row in store.entries()} == {RECORDING.name}


def test_what_is_streamed_or_transcribed_is_not_evicted(tmp_path):
    def evicted(store):
        store._tiers.capacity_bytes = 1
        store._tiers.make_room()
        return store.counters.evictions

    g2p = xattn.load("g2p-en")
    g2p.store = MemoryStore(tmp_path / "one")
    pieces = g2p.stream("memory", unit="characters")
    next(pieces)
    assert evicted(g2p.store) == 0
    list(pieces)
    assert evicted(g2p.store) == 1
    whisper = xattn.load("whisper-tiny.en")
    whisper.store = MemoryStore(tmp_path / "two")
    segments = whisper.transcribe_segments(RECORDING, beam_size=1)
    next(iter(segments))
    assert evicted(whisper.store) == 0
    segments.finish()
    del segments
    assert evicted(whisper.store) == 1


def test_a_name_costs_no_transform(tmp_path, monkeypatch):
    """What is in the store is found by its samples; their spectrogram is made for an encoder."""
    model, store = xattn.load("whisper-tiny.en"), MemoryStore(tmp_path)
    want = store.get_or_encode(model, RECORDING)
    windows = store.get_or_encode_prepared(model, model.prepare_long(RECORDING))

    def never(*_):
        raise AssertionError("a spectrogram was made")

    monkeypatch.setattr("xattn.inputs.audio.log_mel", never)
    found = MemoryStore(tmp_path).get_or_encode(model, RECORDING)
    again = MemoryStore(tmp_path).get_or_encode_prepared(model, model.prepare_long(RECORDING))
    assert found.key == want.key
    assert [memory.key for memory in again] == [memory.key for memory in windows]


def test_what_an_encoder_computes_with_is_in_its_name(tmp_path):
    """Weights are not all: an adapter has a scale, and a hook may change what comes out."""
    tiny.make("bart", tmp_path)
    model = xattn.load(tmp_path)
    source, names = [5, 9, 12], []
    layer = model.network.encoder.layers[0].self_attn.q
    for scale in (1.0, 16.0):
        layer.scale = scale
        names.append(model.prepare(source).key.encoder)
    hook = layer.register_forward_hook(lambda module, inputs, output: output * layer.scale)
    names.append(model.prepare(source).key.encoder)
    assert len(set(names)) == 3
    hook.remove()
    plain = model.encode(source)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.encode(source).states_SD, plain.states_SD)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("whisper-tiny.en", {"max_positions": 100}),
        ("whisper-tiny.en", {"language": "en"}),
        ("smollm2-135m-instruct", {"max_positions": 100}),
        ("smollm2-135m-instruct", {"sample_rate": 8000}),
        ("g2p-en", {"max_positions": 0}),
        ("g2p-en", {"sample_rate": 8000}),
    ],
)
def test_what_a_source_cannot_have_is_refused(name, options):
    model = xattn.load(name)
    source = RECORDING if "whisper" in name else "A text."
    with pytest.raises(xattn.UsageError, match=f"`{next(iter(options))}` must be"):
        model.prepare_long(source, **options)
