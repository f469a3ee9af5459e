"""The object that users hold, on tiny models: what it takes, and what it says of the rest."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

import xattn
from xattn.errors import InvalidSourceError, PromptError, SourceNotFoundError, UsageError
from xattn.models import network

SOURCE = [5, 9, 12, 7, 2]


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    made = {}

    def get(name: str) -> xattn.Model:
        if name not in made:
            directory = tmp_path_factory.mktemp(name)
            tiny.make(name, directory)
            made[name] = xattn.load(directory)
        return made[name]

    return get


def test_public_names_are_these():
    assert set(xattn.__all__) == {
        *("Generation", "Memory", "MemoryKey", "Model", "Segment", "Span", "Transcript", "Word"),
        *("DecoderSpec", "EncoderSpec", "ModelSpec", "__version__", "load"),
        *("AbsorptionError", "CheckpointError", "CorruptCheckpointError", "InvalidSourceError"),
        *("MissingExtraError", "ModelNotFoundError", "OfflineError", "PromptError", "SourceError"),
        *("SourceNotFoundError", "TensorError", "UnreadableSourceError", "UnsafeCheckpointError"),
        *("UnsupportedModelError", "UsageError", "XattnError"),
        *("MemoryStore", "StoreError", "StoreFormatError", "StoreUnavailableError"),
        *("CorruptEntryError", "EntryNotFoundError", "UnsafeStoreError"),
        *("PictureEncoder", "Table", "read_table", "Account", "Ledger", "plan"),
        *("Engine", "EngineStats", "Ticket", "EngineError", "CapacityError", "QueueFullError"),
        *("DeadlineError", "RequestCancelledError", "EngineClosedError", "Parallel"),
        *("Library", "LibraryError", "LibraryBusyError", "LibraryFormatError"),
        *("LibraryMismatchError", "SaveError", "TextEncoder", "graft"),
    }
    for name in xattn.__all__:
        assert getattr(xattn, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        xattn.laod  # noqa: B018


def test_token_ids_are_encoded_without_a_tokenizer(load):
    model = load("bart")
    memory = model.encode(SOURCE)
    assert len(memory) == len(SOURCE)
    assert memory.modality == "text"
    assert model.encode(np.array(SOURCE)).key == memory.key
    assert model.encode(torch.tensor(SOURCE)).key == memory.key
    assert model.encode(SOURCE[:-1]).key != memory.key
    answer = model.generate(memory, max_new_tokens=5)
    assert answer.tokens == model.generate(SOURCE, max_new_tokens=5).tokens
    assert answer.text == ""


def test_a_batch_shares_what_is_the_same(load):
    model = load("bart")
    a, b = model.encode_batch([SOURCE, SOURCE[::-1]])
    before = vars(model.counters).copy()
    answers = model.generate_batch([a, b, a, [a, b]], max_new_tokens=4)
    assert model.counters.encoder_passes == before["encoder_passes"]
    # a and b, and b once more as the second memory of the last request.
    assert model.counters.projections - before["projections"] <= 3
    assert answers[0].tokens == answers[2].tokens == model.generate(a, max_new_tokens=4).tokens
    assert answers[3].tokens == model.generate([b, a], max_new_tokens=4).tokens


def test_a_prompt_is_a_prefix_of_the_target(load):
    model = load("bart")
    whole = model.generate(SOURCE, max_new_tokens=6)
    prefix = list(whole.tokens[:2])
    assert model.generate(SOURCE, prefix, max_new_tokens=4).tokens == whole.tokens[2:]
    start = model.spec.tokens.decoder_start
    assert model.generate(SOURCE, [start, *prefix], max_new_tokens=4).tokens == whole.tokens[2:]


def test_alternatives_come_best_first(load):
    answer = load("bart").generate(SOURCE, num_beams=4, num_return_sequences=3, max_new_tokens=5)
    scores = [answer.score, *(other.score for other in answer.alternatives)]
    assert scores == sorted(scores, reverse=True)
    assert len({answer.tokens, *(other.tokens for other in answer.alternatives)}) == 3


def test_cross_attention_sums_to_one_for_every_head(load):
    model = load("bart")
    weights = model.cross_attention(model.encode(SOURCE), [2, 5, 6])
    assert weights.shape == (2 * 4, 3, len(SOURCE))
    torch.testing.assert_close(weights.sum(-1), torch.ones(8, 3))


@pytest.mark.parametrize(
    ("name", "call", "error", "said"),
    [
        ("bart", lambda m: m.generate(), UsageError, "`memory` must be given"),
        ("bart", lambda m: m.generate("text"), UsageError, "has no tokenizer"),
        ("bart", lambda m: m.generate(SOURCE, []), PromptError, "prompt has 0 tokens"),
        ("bart", lambda m: m.generate(SOURCE, [5] * 64), PromptError, "64"),
        ("bart", lambda m: m.generate(SOURCE, [99]), UsageError, "from 0 to 98"),
        ("bart", lambda m: m.generate(SOURCE, {"a": 1}), UsageError, "text or token ids"),
        ("bart", lambda m: m.encode([]), InvalidSourceError, "0 tokens"),
        ("bart", lambda m: m.encode([5] * 65), InvalidSourceError, "65 tokens.* 64 positions"),
        ("bart", lambda m: m.encode([100]), UsageError, "from 0 to 98"),
        ("bart", lambda m: m.encode(3.5), UsageError, "but is float"),
        ("bart", lambda m: m.generate(SOURCE, num_beam=2), UsageError, "num_beams"),
        ("bart", lambda m: m.generate(SOURCE, form="folded"), UsageError, "`form` must be"),
        ("bart", lambda m: m.generate(SOURCE, target_language="de"), UsageError, "tokenizer"),
        ("bart", lambda m: m.generate(SOURCE, word_timestamps=True), UsageError, "audio"),
        ("bart", lambda m: m.transcribe(np.zeros(800)), UsageError, "tokenizer"),
        (
            "bart",
            lambda m: m.cross_attention(m.encode(SOURCE), [2], heads=[(9, 0)]),
            UsageError,
            "heads",
        ),
        ("bart", lambda m: m.stream(SOURCE, num_beams=3), UsageError, "tokenizer|num_beams"),
        ("llama", lambda m: m.generate(), PromptError, "`prompt` must be given"),
        ("llama", lambda m: m.generate(prompt=[]), PromptError, "0 tokens"),
        ("llama", lambda m: m.generate(prompt=[5] * 200), PromptError, "128"),
        ("llama", lambda m: m.generate([5]), UsageError, "`prompt` must be given"),
        ("bart", lambda m: m.generate(SOURCE, parallel=xattn.Parallel()), UsageError, "left out"),
        ("bart", lambda m: m.encode(SOURCE, behind=m.encode(SOURCE)), UsageError, "`behind` must"),
        (
            "llama",
            lambda m: m.encode([5], behind="prefix"),
            UsageError,
            "`behind` must be a memory",
        ),
        (
            "llama",
            lambda m: m.generate([m.encode([5], behind=m.encode([6])), m.encode([6])], [5]),
            UsageError,
            "memory 0 of 2 was made behind another",
        ),
        (
            "llama",
            lambda m: m.encode([5] * 100, behind=m.encode([6] * 40)),
            InvalidSourceError,
            "100 tokens behind a prefix of 40, but this model has 128",
        ),
        (
            "llama",
            lambda m: m.generate(m.encode([5]), [5], form="absorbed"),
            UsageError,
            "has none",
        ),
        ("whisper", lambda m: m.encode("nope.wav"), SourceNotFoundError, "nope.wav"),
        ("whisper", lambda m: m.encode(np.zeros(16000)), InvalidSourceError, "0.6 s"),
        ("whisper", lambda m: m.encode(np.zeros(0)), InvalidSourceError, "no samples|empty"),
    ],
)
def test_what_is_not_taken_is_said(load, name, call, error, said):
    with pytest.raises(error, match=said) as caught:
        call(load(name))
    assert "\n" not in str(caught.value)


def test_a_memory_of_another_width_is_refused(load):
    own = load("bart").encode(SOURCE)
    wide = xattn.Memory(states_SD=torch.zeros(5, 48), key=own.key, spans=own.spans, label="wide")
    with pytest.raises(UsageError, match=re.escape("width 48")):
        load("bart").generate(wide)


@pytest.mark.parametrize(
    "change",
    [
        {"encoder_attention_heads": 2},
        {"activation_function": "relu"},
        {"scale_embedding": True},
    ],
    ids=str,
)
def test_the_encoders_settings_are_part_of_the_key(tmp_path, change):
    """The same weights with other settings make other states, and so another name."""
    tiny.make("bart", tmp_path)
    before = xattn.load(tmp_path).encode(SOURCE)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    after = xattn.load(tmp_path).encode(SOURCE)
    assert not torch.equal(before.states_SD, after.states_SD)
    assert before.key != after.key


def _in_place(ffn):
    with torch.no_grad():
        ffn.up.weight.add_(1.0)


def _behind_autograd(ffn):
    ffn.up.weight.data += 1.0


def _replaced(ffn):
    ffn.up.weight = torch.nn.Parameter(ffn.up.weight.detach() + 1.0, requires_grad=False)


def _assigned(ffn):
    ffn.load_state_dict({k: v + 1.0 for k, v in ffn.state_dict().items()}, assign=True)


@pytest.mark.parametrize("change", [_in_place, _behind_autograd, _replaced, _assigned])
def test_a_changed_weight_changes_the_key(tmp_path, change):
    """However it is changed: adapters are merged with ``weight.data += …``."""
    tiny.make("bart", tmp_path)
    model = xattn.load(tmp_path)
    before = model.encode(SOURCE)
    change(model.network.encoder.layers[0].ffn)
    assert model.encode(SOURCE).key != before.key
    with pytest.raises(UsageError, match="made by another encoder"):
        model.generate(before)


def test_a_masked_memory_is_not_its_unmasked_twin(load):
    model = load("bart")
    memory = model.encode(SOURCE)
    masked = replace(memory, mask_S=torch.tensor([True, False, False, False, False]))
    tokens = torch.tensor([[2, 5, 9], [2, 5, 9]])
    network = model.network
    alone = [network.score(tokens[:1], network.start([[m]]))[0] for m in (memory, masked)]
    assert not torch.allclose(alone[0], alone[1], atol=1e-2)
    batch = network.score(tokens, network.start([[memory], [masked]]))
    torch.testing.assert_close(batch, torch.stack(alone), atol=1e-5, rtol=1e-5)


def test_a_memory_keeps_its_own_bytes_and_no_others(load):
    first, _ = load("bart").encode_batch([SOURCE, SOURCE[::-1]])
    assert first.states_SD.untyped_storage().nbytes() == first.size_bytes


def test_rows_that_leave_take_their_memories_along(load):
    model = load("bart")
    memories = model.encode_batch([[5, 6, 7 + i] for i in range(6)])
    for form in ("materialized", "absorbed"):
        state = model.network.start([[m] for m in memories], form=form)
        before = state.cross_bytes
        tokens = torch.full((6, 1), 5)
        model.network.step(tokens, state)
        state.reorder([3, 2])
        assert state.cross_bytes == before // 3
        want = model.network.start([[memories[3]], [memories[2]]], form=form)
        model.network.step(tokens[:2], want)
        got = model.network.step(tokens[:2] + 1, state)
        torch.testing.assert_close(got, model.network.step(tokens[:2] + 1, want))


def test_a_memory_of_another_encoder_is_refused_though_it_fits(load):
    with pytest.raises(UsageError, match="was made by another encoder"):
        load("bart").generate(load("t5").encode(SOURCE))


@pytest.mark.parametrize("pad", [-1, tiny.VOCAB, 10**6])
def test_a_pad_token_outside_the_table_does_no_harm(pad, tmp_path):
    tiny.make("llama", tmp_path)
    prompts = [[3, 4, 5], [6]]
    want = [xattn.load(tmp_path).generate(prompt=p, max_new_tokens=4).tokens for p in prompts]
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    (tmp_path / "generation_config.json").write_text(json.dumps(generation | {"pad_token_id": pad}))
    answers = xattn.load(tmp_path).generate_batch(prompts=prompts, max_new_tokens=4)
    assert [answer.tokens for answer in answers] == want


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m, c: m.cross_attention(c, []), "1 to 64 decoder tokens"),
        (lambda m, c: m.cross_attention(c, [3] * 100), "but are 100 instead"),
        (lambda m, c: m.cross_attention(c, [3], heads=[(0, 99)]), "head below 4"),
        (lambda m, c: m.cross_attention(c, [3], heads=[(0, -1)]), "head below 4"),
        (lambda m, c: m.cross_attention(c, [3], heads=[]), "at least one"),
        (lambda m, c: m.encode(SOURCE, sample_rate=8000), "sample_rate"),
    ],
)
def test_what_cannot_be_looked_at_is_said(load, call, said):
    model = load("bart")
    with pytest.raises(UsageError, match=said):
        call(model, model.encode(SOURCE))


def test_nothing_to_encode_makes_no_memory(load):
    assert load("bart").encode_batch([]) == []


def test_numbers_of_numpy_are_numbers(load):
    settings = {"num_beams": np.int64(2), "length_penalty": np.float32(0.5)}
    plain = load("bart").generate(SOURCE, num_beams=2, length_penalty=0.5, max_new_tokens=4)
    got = load("bart").generate(SOURCE, max_new_tokens=np.int64(4), **settings)
    assert got.tokens == plain.tokens


@pytest.mark.parametrize("patience", [None, 1.0])
def test_an_answer_of_nothing_is_one(load, patience):
    model = load("bart")
    eos = model.spec.tokens.eos[0]
    others = [token for token in range(tiny.VOCAB) if token != eos]
    answer = model.generate(SOURCE, num_beams=4, patience=patience, suppress_tokens=others)
    assert answer.tokens == (eos,)


@pytest.mark.parametrize("name", [None, 5, ["a"]])
def test_a_name_must_be_one(name):
    with pytest.raises(UsageError, match="`name` must be text or a path"):
        xattn.load(name)


def test_dtypes_and_devices_of_torch_are_taken(tmp_path):
    tiny.make("bart", tmp_path)
    model = xattn.load(tmp_path, dtype=torch.bfloat16, device=torch.device("cpu"))
    assert model.network.dtype == torch.bfloat16


@pytest.mark.parametrize("call", ["encode_batch", "generate_batch"])
def test_one_text_is_no_batch_of_letters(load, call):
    with pytest.raises(UsageError, match="a list with one entry per request, but is 'hello'"):
        getattr(load("bart"), call)("hello")


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": "x"},
        {"num_beams": 0},
        {"bad_words_ids": 5},
        {"forced_eos_token_id": [{"a": 1}]},
    ],
    ids=str,
)
def test_a_checkpoint_that_cannot_be_obeyed_says_so_when_it_is_loaded(tmp_path, settings):
    tiny.make("bart", tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    with pytest.raises(xattn.CorruptCheckpointError, match="generation config cannot be obeyed"):
        xattn.load(tmp_path)


@pytest.mark.parametrize("form", ["materialized", "absorbed"])
def test_a_pinned_projection_is_made_once(tmp_path, form):
    tiny.make("bart", tmp_path)
    model = xattn.load(tmp_path)
    memory = model.encode(SOURCE)
    plain = model.generate(memory, num_beams=3, form=form)
    size = model.pin_projection(memory, form=form)
    assert size == model.spec.decoder.cross_bytes(len(memory), form=form)
    before = model.counters.projections
    assert model.generate(memory, num_beams=3, form=form) == plain
    both = model.generate_batch([memory, model.encode([5, 9])], num_beams=3, form=form)
    assert both[0].tokens == plain.tokens
    assert model.counters.projections == before + 1
    with torch.no_grad():
        for layer in model.network.decoder.layers:
            layer.cross_attn.v.weight.add_(0.5)
    changed = model.generate(memory, num_beams=3, form=form)
    assert model.counters.projections == before + 2
    assert model.unpin_projection(memory, form=form)
    assert not model.unpin_projection(memory, form=form)
    assert model.generate(memory, num_beams=3, form=form) == changed


def test_a_pinned_projection_is_of_one_mask(tmp_path):
    tiny.make("bart", tmp_path)
    model = xattn.load(tmp_path)
    whole = model.encode(SOURCE)
    masked = replace(whole, mask_S=torch.arange(len(whole)) < 2)
    memories = [whole, masked]
    want = [model.generate(memory, form="materialized").score for memory in memories]
    assert want[0] != want[1]
    for pinned in memories:
        model.pin_projection(pinned)
        before = model.counters.projections
        found = [model.generate(memory, form="materialized").score for memory in memories]
        assert found == pytest.approx(want)
        assert model.counters.projections == before + 1
        assert model.unpin_projection(pinned)


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_what_is_pinned_is_made_again_after_any_change(tmp_path, monkeypatch, quantize):
    tiny.make("bart", tmp_path)
    model = xattn.load(tmp_path, quantize=quantize)
    memory = model.encode(SOURCE)
    model.pin_projection(memory)
    looks, stamp_of = [], network.stamp_of
    monkeypatch.setattr(network, "stamp_of", lambda tensors: looks.append(1) or stamp_of(tensors))
    before = model.counters.projections
    scales = model.network.decoder.layers[0].cross_attn.v
    scales = scales.matrix.scales_O if quantize else scales.weight
    scales.mul_(1.5)
    changed = model.generate_batch([memory] * 5, form="materialized")
    assert model.counters.projections == before + 1
    assert len(looks) == 2, "at the encoder for the memories, and at the decoder"
    model.unpin_projection(memory)
    [alone] = model.generate_batch([memory], form="materialized")
    assert [one.score for one in changed] == pytest.approx([alone.score] * 5)


def test_a_weight_may_lie_across_memory(tmp_path):
    tiny.make("bart", tmp_path)
    model = xattn.load(tmp_path)
    weight = model.network.encoder.layers[0].self_attn.q.weight
    before = model.encode(SOURCE).key
    weight.data = weight.data.t().contiguous().t()
    assert not weight.is_contiguous()
    assert model.encode(SOURCE).key == before
    weight.data[0, 0] += 1
    assert model.encode(SOURCE).key != before


@pytest.mark.parametrize("place", [(3, slice(None)), (slice(None), 5)], ids=["row", "column"])
def test_a_row_or_column_that_changes_unseen_by_autograd_changes_keys(tmp_path, monkeypatch, place):
    tiny.make("bart", tmp_path)
    model = xattn.load(tmp_path)
    monkeypatch.setattr("xattn.models.network.STAMP_WHOLE", 0)  # as of a large model
    for weight in (
        model.network.encoder.embed.weight,
        model.network.encoder.layers[0].ffn.up.weight,
    ):
        before = model.encode(SOURCE).key
        assert model.encode(SOURCE).key == before
        weight.data[place] += 1
        assert model.encode(SOURCE).key != before


def test_a_number_that_changes_unseen_has_to_be_told_of_in_a_large_model(tmp_path, monkeypatch):
    tiny.make("bart", tmp_path)
    model = xattn.load(tmp_path)
    monkeypatch.setattr("xattn.models.network.STAMP_WHOLE", 0)
    before = model.encode(SOURCE).key
    model.network.encoder.layers[0].self_attn.q.weight.data[0, 1] += 1
    model.network.weights_changed()
    assert model.encode(SOURCE).key != before
