"""Models whose answers can tell engines apart."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from xattn.bench.making import make
from xattn.counts import read_bytes
from xattn.errors import UsageError
from xattn.models.formats import huggingface


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return make("t5-tiny", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def model(t5):
    return transformers.T5ForConditionalGeneration.from_pretrained(t5.transformers).eval()


def test_answers_change_from_step_to_step_and_depend_on_the_source(model):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 990, (4, 12), generator=generator)
    answers = model.generate(input_ids=ids, max_new_tokens=24, min_new_tokens=24, do_sample=False)
    rows = answers[:, 1:].tolist()
    distinct = [len(set(row)) for row in rows]  # full shapes: 63 of 64
    assert min(distinct) > 2
    assert sum(distinct) > 36
    assert len({tuple(row) for row in rows}) == 4


def test_models_are_written_once(t5, tmp_path):
    first = make("t5-tiny", tmp_path)
    weights = tmp_path / "t5-tiny" / "transformers" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert make("t5-tiny", tmp_path) == first
    assert weights.stat().st_mtime_ns == written
    assert json.loads((tmp_path / "t5-tiny" / "files.json").read_text())["vocab"] == 997


def test_unknown_names_are_told_the_known_ones(tmp_path):
    with pytest.raises(UsageError, match="`name` must be one of t5-small, t5-base, marian"):
        make("t5-huge", tmp_path)


def test_bytes_of_a_step_are_the_matrices_it_multiplies_with(t5, model):
    """Counted from the shapes, against transformers' own parameters."""
    spec = huggingface.read(Path(t5.transformers), "t5").spec.decoder
    once = ("EncDecAttention.k", "EncDecAttention.v", "relative_attention_bias", "embed_tokens")
    matrices = [
        weight.numel()
        for name, weight in model.decoder.named_parameters()
        if weight.dim() > 1 and not any(part in name for part in once)
    ]
    assert read_bytes(spec) == 4 * (sum(matrices) + model.shared.weight.numel())
