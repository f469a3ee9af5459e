"""Ledgers: published figures, what they hold, what they refuse."""

import subprocess
import sys

import pytest

from xattn.errors import AbsorptionError, CheckpointError, UsageError
from xattn.ledger import Ledger, plan
from xattn.ledger.alternatives import alternatives
from xattn.ledger.amounts import amount_of, tiles_of
from xattn.ledger.specs import spec_from_config, spec_of
from xattn.spec import FORMS, ImageStemSpec

T5 = spec_of("t5-base")
VISION = "llama-3.2-11b-vision"


def of(name, inputs, what, **settings):
    return plan(spec_of(name), inputs, **settings).of(what)


def test_whisper_large_v3_as_published():
    """Cross-attention's cache of 30 s in float16, 245.8 MB (Radford et al.'s shape)."""
    given = {"audio": "30s"}
    assert of("whisper-large-v3", given, "keys and values", dtype="float16") == 245_760_000
    assert of("whisper-large-v3", given, "states", dtype="float16") == 3_840_000


def test_fusion_in_decoder_as_published():
    """T5-XL over 100 passages of 250 tokens (FiDO, de Jong et al. 2022)."""
    given = {"document": "100x250"}
    found = of("flan-t5-xl", given, "keys and values", dtype="bfloat16")
    assert found == pytest.approx(4.92e9, rel=0.002)
    assert of("flan-t5-xl", given, "states", dtype="bfloat16") == pytest.approx(102e6, rel=0.005)


def test_llama_vision_as_published():
    """One picture of four tiles: 8 layers, 8 heads of 128, 6404 positions."""
    found = of(VISION, {"image": "1120x1120"}, "keys and values", dtype="bfloat16")
    assert found == pytest.approx(209.8e6, rel=0.001)
    assert of(VISION, {"image": 6404}, "keys and values", dtype="bfloat16") == found


def test_no_torch_is_needed():
    code = (
        "import sys; from xattn.ledger import plan; from xattn.ledger.specs import spec_of\n"
        f"plan(spec_of({VISION!r}), {{'image': '2'}}, batch=16, beams=4)\n"
        "from xattn.cli import main; main(['plan', 't5-11b', '--document', '8192'])\n"
        "assert not {'torch', 'numpy', 'transformers'} & sys.modules.keys(), 'too much'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# What rows come to


def test_requests_beams_and_sources_multiply():
    one = plan(T5, {"document": 500})
    many = plan(T5, {"document": "3x500"}, batch=4, beams=5)
    assert many.of("keys and values") == 12 * one.of("keys and values")
    assert many.of("self-attention cache") == 20 * one.of("self-attention cache")
    assert many.of("weights") == one.of("weights")
    shared = plan(T5, {"document": "3x500"}, batch=4, beams=5, shared=True)
    assert shared.of("keys and values") == 3 * one.of("keys and values")
    assert shared.encode_flops < many.encode_flops


def test_shares_add_up_and_rows_are_told():
    ledger = plan(T5, {"document": 500, "table": "100r8c"}, store_codec="int8")
    assert sum(map(ledger.share, ledger.rows)) == pytest.approx(1)
    assert ledger.total_bytes == sum(row.bytes for row in ledger.rows if row.what != "at rest")
    kinds = {(row.input, row.what) for row in ledger.rows}
    assert {
        ("document", "at rest"),
        ("table", "states"),
        ("answer", "self-attention cache"),
    } < kinds
    assert {row["what"] for row in ledger.to_rows()} >= {"weights", "workspace"}
    assert "| table: keys and values | ≈ 3,535 |" in ledger.to_markdown()
    assert isinstance(ledger, Ledger)


def test_forms_hold_what_they_read():
    held = {form: plan(T5, {"document": 4096}, form=form) for form in FORMS}
    states = 4096 * 768 * 4
    assert held["absorbed"].memory_bytes == states
    assert held["absorbed-int8"].memory_bytes == states + 4096 * (768 + 4)
    assert held["materialized"].memory_bytes == states + 24 * states
    assert held["materialized-int8"].of("keys and values") == 4096 * 24 * 12 * (64 + 4)
    narrow = plan(T5, {"document": 4096}, form="absorbed", dtype="int8")
    assert narrow.rows == held["absorbed-int8"].rows
    assert held["absorbed"].sum("step_bytes", "states") == 12 * states


def test_a_decoder_only_model_holds_keys_and_values():
    spec = spec_of("smollm2-135m")
    ledger = plan(spec, {"document": 1000}, dtype="bfloat16")
    assert ledger.of("states") == 1000 * 2 * 30 * 3 * 64 * 2
    assert ledger.of("keys and values") == 0
    with pytest.raises(AbsorptionError):
        plan(spec, {"document": 10}, form="absorbed")


def test_alternatives_mark_what_was_asked_for_and_transformers_repeats_beams():
    given = {"document": "20x250"}
    found = alternatives(T5, given, batch=4, beams=4, form="absorbed")
    [chosen] = [one for one in found if one.chosen]
    assert chosen.name == "absorbed"
    assert chosen.total_bytes == plan(T5, given, batch=4, beams=4, form="absorbed").total_bytes
    by_name = {one.name: one for one in found}
    per_beam = plan(T5, given, batch=4).memory_bytes
    assert by_name["transformers"].input_bytes == 4 * per_beam
    assert by_name["materialized, shared"].input_bytes == per_beam / 4


# Amounts


@pytest.mark.parametrize(
    ("name", "kind", "given", "count", "positions"),
    [
        ("t5-base", "document", 8192, 1, 8192),
        ("t5-base", "document", "20x250", 20, 250),
        ("t5-base", "text", "300w", 1, 400),
        ("t5-base", "document", (3, "120 words"), 3, 160),
        ("t5-base", "table", "100 rows", 1, 101 * 19),
        ("whisper-tiny", "audio", "30s", 1, 1500),
        ("whisper-tiny", "audio", "1m", 1, 2 * 1500),
        ("whisper-tiny", "audio", "3x45s", 3, 2 * 1500),
        ("whisper-tiny", "audio", "2x1500p", 2, 1500),
        ("moonshine-tiny", "audio", "4s", 1, 165),
        (VISION, "image", "1", 1, 6404),
        (VISION, "image", "560x560", 1, 1601),
        (VISION, "image", "2x1120x400", 2, 2 * 1601),
        (VISION, "image", (1120, 1120), 1, 6404),
        ("idefics-9b", "image", "5", 5, 64),
        ("t5gemma2-1b-1b", "image", "2", 2, 256),
    ],
)
def test_things_become_positions(name, kind, given, count, positions):
    found = amount_of(spec_of(name), kind, given)
    assert (found.count, found.pieces * found.positions) == (count, positions)


def test_moonshine_hears_as_many_frames_as_transformers():
    import torch
    import transformers

    config = transformers.MoonshineConfig(encoder_num_hidden_layers=1, hidden_size=32)
    encoder = transformers.MoonshineModel(config).encoder
    for seconds in (0.5, 4.0, 11.3):
        samples = torch.zeros(1, int(seconds * 16000))
        states = encoder(samples).last_hidden_state
        found = amount_of(spec_of("moonshine-tiny"), "audio", f"{seconds}s")
        assert found.positions == states.shape[1]


def test_tiles_are_those_of_transformers():
    from transformers.models.mllama.image_processing_pil_mllama import get_optimal_tiled_canvas

    stem = ImageStemSpec(size=560, patch=14, tiles=4, leading=1)
    for width in (1, 100, 400, 560, 561, 900, 1120, 1500, 2240, 3000):
        for height in (1, 90, 560, 700, 1120, 1121, 4000):
            rows, columns = get_optimal_tiled_canvas(height, width, 4, 560)
            found = tiles_of(stem, width, height)
            assert found == rows // 560 * (columns // 560), (width, height)


# Bad input


@pytest.mark.parametrize(
    ("name", "inputs", "settings", "message"),
    [
        ("t5-base", {"image": 3}, {}, r"\(t5\) takes document or text or table, but .* 'image'"),
        ("whisper-tiny", {"document": 3}, {}, r"\(whisper\) takes audio"),
        ("t5-base", {"document": -5}, {}, "1 to 1000000000 positions, but is -5"),
        ("t5-base", {"document": "-5"}, {}, "a number of tokens"),
        ("t5-base", {"document": "99999999999"}, {}, "positions, but is '99999999999'"),
        ("t5-base", {"document": "0x20"}, {}, "1 to 1000000 sources, but is 0"),
        ("t5-base", {"document": "ax20"}, {}, "COUNTxAMOUNT, as 20x250, but is 'ax20'"),
        ("t5-base", {"document": True}, {}, "a number of tokens"),
        ("t5-base", {"document": None}, {}, "a number of tokens"),
        ("t5-base", {"document": (2, (3, 4))}, {}, "a number of tokens"),
        ("t5-base", {"document": "9" * 5000 + "x3"}, {}, "1 to 1000000 sources"),
        ("t5-base", {3: 3}, {}, "is to read 3"),
        ("t5-base", [("document", 3)], {}, "`inputs` must be a mapping"),
        ("t5-base", {"document": [100, -5]}, {}, "positions, but is -5"),
        ("whisper-tiny", {"audio": "0s"}, {}, "`audio` must be longer than 0 s"),
        ("whisper-tiny", {"audio": "1700p"}, {}, "at most 1500 positions .* as 2x1500p"),
        ("whisper-tiny", {"audio": "1000000x1m"}, {}, "1 to 1000000 sources"),
        ("moonshine-tiny", {"audio": "0.001s"}, {}, "long enough for one position"),
        (VISION, {"image": "7000p"}, {}, "at most 6404 positions .* as 2x6404p"),
        (VISION, {"image": "999999999"}, {}, "1 to 1000000 sources"),
        (VISION, {"image": "0"}, {}, "1 to 1000000 pictures"),
        (VISION, {"image": -2}, {}, "pictures are counted as text, as '2'"),
        (VISION, {"image": (2, (560,))}, {}, r"must be \(width, height\) in pixels"),
        (VISION, {"image": (2, (560, 560, 3))}, {}, r"must be \(width, height\) in pixels"),
        ("t5-base", {"document": 3}, {"dtype": ["x"]}, "`dtype` must be one of"),
        ("t5-base", {"document": 3}, {"weights_dtype": ["x"]}, "`weights_dtype` must be one of"),
        ("t5-base", {"document": 3}, {"store_codec": ["x"]}, "`store_codec` must be one of"),
        ("bart-large", {"document": 3000}, {}, "at most 1024 positions .* as 3x1024"),
        ("whisper-tiny", {"audio": "30"}, {}, "a time .30s, 2m, 1h."),
        (VISION, {"image": "3x"}, {}, "a number of pictures"),
        (VISION, {"image": "0x50"}, {}, "at least 1 pixel"),
        ("t5-base", {"document": 3}, {"batch": 0}, "`batch` must be a whole number from 1"),
        ("t5-base", {"document": 3}, {"beams": 10**7}, "`beams` must be .* to 1000000"),
        ("t5-base", {"document": 3}, {"beams": 2.5}, "`beams` must be a whole number"),
        ("t5-base", {"document": 3}, {"form": "thin"}, "`form` must be one of"),
        ("t5-base", {"document": 3}, {"dtype": "int3"}, "`dtype` must be one of"),
        ("t5-base", {"document": 3}, {"store_codec": "zip"}, "`store_codec` must be one of"),
        ("whisper-tiny", {"audio": "30s"}, {"new_tokens": 500}, "must be at most 448 for this"),
    ],
)
def test_bad_input_is_named(name, inputs, settings, message):
    with pytest.raises(UsageError, match=message):
        plan(spec_of(name), inputs, **settings)


def test_a_name_is_no_spec():
    with pytest.raises(UsageError, match="`spec` must be a ModelSpec, as spec_of"):
        plan("t5-base", {"document": 3})


def test_several_amounts_of_a_kind_add_up():
    several = plan(T5, {"document": [100, "2x50"]})
    assert several.of("states") == plan(T5, {"document": 200}).of("states")
    with pytest.raises(UsageError, match="at most 1024 positions"):
        plan(spec_of("bart-large"), {"document": [1000, 1025]})
    assert plan(spec_of("bart-large"), {"document": [1000, 1000]}).of("states")


def test_unknown_models_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"Did you mean 't5-base'"):
        spec_of("t5-bass")
    (tmp_path / "config.json").write_text("{]")
    with pytest.raises(UsageError, match=r"config\.json is no JSON"):
        spec_of(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(CheckpointError, match=r"must be of a model with cross-attention.*mllama"):
        spec_of(tmp_path / "config.json")


def test_models_on_disk_are_planned_without_their_weights(tmp_path):
    spec = spec_of("smollm2-135m-instruct")
    assert plan(spec, {"text": 10}).of("weights") == 4 * 134_515_008
    assert spec_of("g2p-en").encoder.modality == "text"
    with pytest.raises(CheckpointError, match="someone/something: is not in the cache"):
        spec_of("someone/something")


def test_a_config_says_what_is_missing():
    with pytest.raises(CheckpointError, match="'hidden_size' is missing"):
        spec_from_config({"model_type": "moonshine"})
    with pytest.raises(CheckpointError, match="'vision_config' must be an object"):
        spec_from_config({"model_type": "mllama", "text_config": {}})
    text = {"num_hidden_layers": 4, "cross_attention_layers": [9]}
    with pytest.raises(CheckpointError, match="must be layers below 4"):
        spec_from_config({"model_type": "mllama", "text_config": text, "vision_config": {}})


def test_an_absorbed_form_that_is_not_exact_is_refused():
    with pytest.raises(AbsorptionError, match="norm"):
        plan(spec_of(VISION), {"image": "1"}, form="absorbed")


MOE = {
    "model_type": "nllb-moe",
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 8,
    "decoder_ffn_dim": 8,
    "vocab_size": 99,
    "encoder_sparse_step": 1,
    "decoder_start_token_id": 2,
    "eos_token_id": 2,
}
MOONSHINE = {
    "model_type": "moonshine",
    "hidden_size": 4,
    "intermediate_size": 8,
    "encoder_num_attention_heads": 8,
    "decoder_num_attention_heads": 8,
    "encoder_num_hidden_layers": 1,
    "decoder_num_hidden_layers": 1,
    "vocab_size": 9,
}
SEES = {"embed_dim": 4, "num_attention_heads": 16}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MOONSHINE, "8 heads must share a width of at least 8, but share 4"),
        ({"model_type": "idefics", "vision_config": SEES, "perceiver_config": {}}, "16 heads"),
        (MOE | {"num_experts": 1}, "'num_experts' must be a whole number from 2"),
        (MOE | {"encoder_sparse_step": 0}, "'encoder_sparse_step' must be"),
    ],
)
def test_configs_that_no_model_can_have_are_named(config, message):
    with pytest.raises(CheckpointError, match=message):
        spec_from_config(config)


def test_fewer_layers_than_would_have_experts_are_planned():
    assert plan(spec_from_config(MOE), {"document": 10}).total_bytes > 0


def test_what_absorbed_memories_are_read_with_is_wide_beside_narrow_weights():
    given = {"document": 100}
    for weights in ("int8", "int4"):
        ledger = plan(T5, given, form="absorbed", weights_dtype=weights)
        cross = T5.decoder.cross_attention
        per_layer = 2 * T5.decoder.memory_width * cross.heads * cross.head_width * 4
        assert ledger.of("wide projections") == T5.decoder.layers * per_layer
        for other in (
            plan(T5, given, weights_dtype=weights),
            plan(T5, given, form="absorbed"),
            plan(T5, {}, form="absorbed", weights_dtype=weights),
        ):
            assert other.of("wide projections") == 0


def test_many_rows_read_more_experts():
    spec = spec_of("nllb-54b")
    read = [
        next(
            row.step_bytes
            for row in plan(spec, {"document": 9}, batch=n).rows
            if row.what == "weights"
        )
        for n in (1, 2, 64, 4096)
    ]
    experts = 6 * 128 * 2 * 2048 * 8192 * 4
    assert read[0] < read[1] < read[2] < read[3]
    assert read[3] - read[0] == pytest.approx(experts * (1 - 2 / 128), rel=0.01)
