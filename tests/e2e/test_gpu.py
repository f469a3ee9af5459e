"""The same answers on an accelerator. Run with `make test-gpu` where there is one."""

from pathlib import Path

import pytest
import tiny
import torch

import xattn

pytestmark = pytest.mark.gpu
RECORDING = Path(__file__).parents[2] / "examples" / "assets" / "recording.wav"
SETTINGS = [
    {},
    {"num_beams": 4, "num_return_sequences": 2},
    {"num_beams": 3, "patience": 1.0},
    {"do_sample": True, "seed": 3},
    {"repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "min_new_tokens": 3},
]


@pytest.mark.parametrize("name", tiny.TINY)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_tiny_models_choose_the_same_tokens(name, settings, tmp_path):
    tiny.make(name, tmp_path)
    answers = {}
    for device in ("cpu", "cuda"):
        model = xattn.load(tmp_path, device=device)
        arguments = {"max_new_tokens": 8, **settings}
        if tiny.TINY[name].decoder_only:
            found = model.generate_batch(prompts=[[5, 9, 3], [7]], **arguments)
        else:
            # Memories by hand: the tiny Whisper has no tokenizer, and this is about decoding.
            values, _ = tiny.hf_memory_inputs(name, 2, 9)
            if tiny.TINY[name].text_input:
                found = model.generate_batch(values.tolist(), **arguments)
            else:
                assert model.network.encode_mel(values).device.type == device
                continue
        answers[device] = [answer.tokens for answer in found]
    if answers:
        assert answers["cpu"] == answers["cuda"]


@pytest.mark.parametrize("form", ["materialized", "absorbed"])
def test_whisper_says_the_same(form):
    texts = set()
    for device, dtype in (("cpu", "float32"), ("cuda", "float32"), ("cuda", "bfloat16")):
        model = xattn.load("whisper-tiny.en", offline=True, device=device, dtype=dtype)
        memory = model.encode(RECORDING)
        assert memory.states_SD.device.type == device
        texts.add(model.generate(memory, form=form, word_timestamps=True).text)
        texts.add(model.generate(memory, form=form, num_beams=5).text)
    assert len(texts) == 1


def test_long_audio_is_transcribed():
    model = xattn.load("whisper-tiny.en", offline=True, device="cuda")
    transcript = model.transcribe(RECORDING, word_timestamps=True)
    assert transcript.text.startswith("Many people can read the same book.")
    assert torch.cuda.max_memory_allocated() > 0
