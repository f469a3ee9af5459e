"""Language detection of multilingual models against transformers, and what it costs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

from xattn.decoding.transcription import Transcription, Window
from xattn.decoding.transcription_settings import TranscriptionSettings
from xattn.decoding.whisper_tokens import LANGUAGES, WhisperTokens
from xattn.engine import Engine
from xattn.errors import UsageError
from xattn.inputs.audio import Audio, cut_window, file_log_mel
from xattn.inputs.text import Encoded
from xattn.memory import Memory
from xattn.model import Model
from xattn.models.build import build
from xattn.models.encode import encode as encode_prepared
from xattn.models.encode import prepare_window
from xattn.models.formats import huggingface
from xattn.models.network import Network

VOCABULARY = 51_865
KNOWN = LANGUAGES[:99]
SPECIAL = {
    "<|endoftext|>": 50257,
    "<|startoftranscript|>": 50258,
    **{f"<|{code}|>": 50259 + i for i, code in enumerate(KNOWN)},
    "<|translate|>": 50358,
    "<|transcribe|>": 50359,
    "<|startoflm|>": 50360,
    "<|startofprev|>": 50361,
    "<|nospeech|>": 50362,
    "<|notimestamps|>": 50363,
}


class Letters:
    """A tokenizer of single characters with the special tokens of multilingual Whisper."""

    identity, vocab_size, languages = "letters", VOCABULARY, {}

    def id_of(self, token: str) -> int | None:
        return SPECIAL.get(token)

    def encode_plain(self, text: str) -> Encoded:
        return Encoded([ord(c) % 1000 for c in text], [(i, i + 1) for i in range(len(text))])

    def decode(self, ids: list[int], *, skip_special: bool = True) -> str:
        return "".join(chr(97 + id % 26) for id in ids)


@pytest.fixture(scope="module")
def theirs() -> WhisperForConditionalGeneration:
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=VOCABULARY,
        d_model=16,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        init_std=0.5,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config).eval()
    model.generation_config = GenerationConfig(
        decoder_start_token_id=50258,
        eos_token_id=50257,
        is_multilingual=True,
        lang_to_id={f"<|{code}|>": SPECIAL[f"<|{code}|>"] for code in KNOWN},
        alignment_heads=[[1, 0], [1, 1]],
    )
    return model


@pytest.fixture(scope="module")
def ours(
    theirs: WhisperForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory
) -> Network:
    directory: Path = tmp_path_factory.mktemp("multilingual")
    theirs.save_pretrained(directory)
    return build(huggingface.read(directory, "multilingual"))


def noise(seconds: float, seed: int) -> Audio:
    samples = np.random.default_rng(seed).normal(size=int(seconds * 16000)).astype(np.float32)
    return Audio(0.1 * samples, 16000, "noise")


def transcription(network: Network, audio: Audio, **options: object) -> Transcription:
    def encode(window: Window) -> Memory:
        place = (window.recording, lambda: window.mel_MF, window.start, window.frames)
        [memory] = encode_prepared(network, [prepare_window(network, *place)])
        return memory

    quick = {"beam_size": 1, "temperature": 0.0, "max_new_tokens": 4, "no_speech_threshold": None}
    settings = TranscriptionSettings.resolve(**quick, **options)
    return Transcription(network, Letters(), audio, settings, encode=encode)


@pytest.mark.parametrize("seed", range(4))
def test_the_language_is_the_one_that_transformers_detects(
    theirs: WhisperForConditionalGeneration, ours: Network, seed: int
) -> None:
    audio = noise(10.0, seed)
    mel = cut_window(file_log_mel(audio.samples_T, 80), 0, 1000)
    with torch.no_grad():
        encoded = theirs.model.encoder(mel[None])
        detected = theirs.detect_language(
            encoder_outputs=encoded, generation_config=theirs.generation_config
        )
        logits = theirs(encoder_outputs=encoded, decoder_input_ids=torch.tensor([[50258]])).logits
    result = transcription(ours, audio)
    assert SPECIAL[f"<|{result.language}|>"] == int(detected[0])
    probability = logits[0, 0, 50259 : 50259 + len(KNOWN)].softmax(-1).max()
    assert result.language_probability == pytest.approx(float(probability), abs=1e-5)


def test_detection_and_transcription_share_a_memory(ours: Network) -> None:
    before = ours.counters.encoder_passes
    running = transcription(ours, noise(10.0, 0), word_timestamps=True, multilingual=True)
    assert ours.counters.encoder_passes == before + 1
    first = next(iter(running))
    assert ours.counters.encoder_passes == before + 1
    assert first.words


def test_more_windows_are_asked_where_the_first_is_unsure(ours: Network) -> None:
    before = ours.counters.encoder_passes
    sure = {"language_detection_threshold": 2.0}
    running = transcription(ours, noise(70.0, 1), language_detection_segments=3, **sure)
    assert ours.counters.encoder_passes == before + 3
    assert running.language in KNOWN
    given = transcription(ours, noise(70.0, 1), language="de")
    assert ours.counters.encoder_passes == before + 3
    assert (given.language, given.language_probability) == ("de", 1.0)


def test_prompts_name_language_and_task(ours: Network) -> None:
    tokens = WhisperTokens(Letters(), VOCABULARY)
    assert tokens.start_sequence("de", "translate") == [50258, SPECIAL["<|de|>"], 50358]
    with pytest.raises(UsageError, match="`language` must be one of en, zh"):
        transcription(ours, noise(1.0, 0), language="klingon")
    assert "yue" not in tokens.languages


def test_an_engine_hears_the_language_as_generate_does(
    theirs: WhisperForConditionalGeneration, tmp_path: Path
) -> None:
    """With one encoder pass and one projection for each recording."""
    theirs.save_pretrained(tmp_path)
    checkpoint = replace(huggingface.read(tmp_path, "multilingual"), tokenizer=Letters())
    model = Model(build(checkpoint), checkpoint)
    recordings = [noise(1.0, seed).samples_T for seed in range(3)]
    want = [model.generate(samples_T, max_new_tokens=5) for samples_T in recordings]
    passes, projections = model.counters.encoder_passes, model.counters.projections
    with Engine(model) as engine:
        tickets = [engine.submit(samples_T, max_new_tokens=5) for samples_T in recordings]
        told = engine.submit(model.encode(recordings[0]), language="de", max_new_tokens=5)
        answers = [ticket.result(60) for ticket in tickets]
        assert told.result(60).prompt[1] == SPECIAL["<|de|>"]
    assert [(a.prompt, a.tokens) for a in answers] == [(w.prompt, w.tokens) for w in want]
    assert model.counters.encoder_passes - passes == 3 + 1
    assert model.counters.projections - projections <= 3 + 1
