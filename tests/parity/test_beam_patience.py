"""Beams with ``patience`` against the CTranslate2 package, on tiny translation models."""

import json
from types import SimpleNamespace

import ctranslate2
import pytest
import tiny
import torch
from ctranslate2.converters import TransformersConverter
from pairs import memory_of

from xattn.decoding import Request, Settings, decode

TOKENS = ["<s>", "<pad>", "</s>", "<unk>", *[f"t{n}" for n in range(tiny.VOCAB - 4)]]
EOS = (2, 7, 11, 30, 41, 75)


class Vocabulary(SimpleNamespace):
    """As much of a transformers tokenizer as the converter asks for."""

    bos_token, eos_token, pad_token, unk_token = "<s>", "</s>", "<pad>", "<unk>"
    unk_token_id = 3

    def get_vocab(self):
        return {token: number for number, token in enumerate(TOKENS)}

    def convert_ids_to_tokens(self, number):
        return TOKENS[number]


class Converter(TransformersConverter):
    def load_tokenizer(self, *_, **__):
        return Vocabulary(special_tokens_map={})


@pytest.fixture(scope="module", params=["bart", "m2m_100"])
def both(request, pairs, tmp_path_factory):
    """The same weights in xattn and in CTranslate2."""
    pair = pairs(request.param)
    source = tmp_path_factory.mktemp("hf")
    pair.theirs.save_pretrained(source)
    config = json.loads((source / "config.json").read_text())
    config |= {"normalize_before": request.param == "m2m_100", "normalize_embedding": True}
    (source / "config.json").write_text(json.dumps(config))
    target = tmp_path_factory.mktemp("ct2")
    Converter(str(source)).convert(str(target), force=True)
    config = json.loads((target / "config.json").read_text())
    config |= {"add_source_bos": False, "add_source_eos": False}
    (target / "config.json").write_text(json.dumps(config))
    return pair, ctranslate2.Translator(str(target), compute_type="float32")


KINDS = [
    ({"patience": 1.0}, {}),
    ({"patience": 1.5, "length_penalty": 0.5, "num_return_sequences": 4}, {}),
    ({"patience": 0.5, "length_penalty": 2.0}, {}),
    ({"patience": 2.0, "length_penalty": 0.0, "num_return_sequences": 3}, {}),
    ({"patience": 1.0, "num_beams": 5, "num_return_sequences": 5, "min_new_tokens": 4}, {}),
    (
        {"patience": 1.0, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
    ),
    ({"num_beams": 1, "patience": 1.0, "repetition_penalty": 1.3}, {"repetition_penalty": 1.3}),
]


@pytest.mark.parametrize(("ours", "theirs"), KINDS, ids=lambda kind: " ".join(kind))
def test_hypotheses_and_scores_equal_ctranslate2(both, ours, theirs):
    pair, translator = both
    generator = torch.Generator().manual_seed(2)
    lengths = (3, 5, 9, 9, 12, 4, 7, 6)
    sources = [torch.randint(4, tiny.VOCAB, (n,), generator=generator).tolist() for n in lengths]
    ours = {"num_beams": 4, "max_new_tokens": 14} | ours
    settings = Settings(**ours, eos_token_id=EOS, penalize_prompt=False, count_eos=True)
    results = translator.translate_batch(
        [[TOKENS[token] for token in source] for source in sources],
        beam_size=settings.num_beams,
        patience=settings.patience,
        length_penalty=settings.length_penalty,
        num_hypotheses=settings.num_return_sequences,
        max_decoding_length=settings.max_new_tokens,
        min_decoding_length=settings.min_new_tokens,
        end_token=[TOKENS[token] for token in settings.eos_token_id],
        return_scores=True,
        **theirs,
    )
    states = pair.ours.encode_tokens(sources)
    memories = [memory_of(states_SD, str(n)) for n, states_SD in enumerate(states)]
    start = pair.theirs.config.decoder_start_token_id
    found = decode(pair.ours, [Request((start,), (m,)) for m in memories], settings)
    for hypotheses, result in zip(found, results, strict=True):
        tokens = [
            [TOKENS[t] for t in h.tokens if t not in settings.eos_token_id] for h in hypotheses
        ]
        assert tokens == result.hypotheses
        assert [h.score for h in hypotheses] == pytest.approx(result.scores, abs=1e-4)
