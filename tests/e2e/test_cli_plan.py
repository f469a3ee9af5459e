"""``xattn plan``, as it is typed."""

import json

import pytest

from xattn.cli import main


def run(capsys, *arguments):
    code = main(list(arguments))
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_a_plan_shows_the_configuration_and_its_alternatives(capsys, tmp_path):
    picture = tmp_path / "bytes.png"
    code, out, _ = run(
        capsys,
        *("plan", "t5-base", "--document", "20x250", "--batch", "16", "--beams", "4"),
        *("--fit", "24GiB", "--gpu", "l4", "--gpu", "h100x2", "--plot", str(picture)),
    )
    assert code == 0
    assert "document: keys and values" in out
    assert ">  materialized " in out
    assert "transformers" in out
    assert "fits 24.0 GiB" in out
    assert "2 x NVIDIA H100 SXM 80GB" in out
    assert "6,700 GB" in out
    assert "160 GiB" in out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_plan_as_json_says_the_same(capsys):
    arguments = ("plan", "whisper-large-v3", "--audio", "30s", "--dtype", "float16")
    code, out, _ = run(capsys, *arguments, "--fit", "8GiB", "--gpu", "t4", "--json")
    document = json.loads(out)
    assert code == 0
    rows = {(row["input"], row["what"]): row["bytes"] for row in document["rows"]}
    assert rows["audio", "keys and values"] == 245_760_000
    assert document["total_bytes"] == sum(rows.values())
    assert document["fit"][0]["form"] == "materialized"
    [machine] = document["machines"]
    assert machine["machine"] == "t4"
    assert machine["memory_bytes"] == 16 * 2**30
    assert (machine["bytes_per_second"], machine["flops_per_second"]) == (320e9, 65e12)
    assert machine["dollars_per_hour"] == 0.35
    assert machine["price"].startswith("20")
    assert any(one["name"] == "transformers" for one in document["alternatives"])


def test_shapes_are_listed_and_configs_read(capsys, tmp_path):
    code, out, _ = run(capsys, "plan", "--list", "--json")
    listed = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert {"t5-small", "flan-t5-xxl", "bart-large", "nllb-54b", "whisper-tiny"} <= listed.keys()
    assert listed["llama-3.2-90b-vision"]["inputs"] == ["image"]
    config = {"model_type": "t5", "d_model": 64, "d_kv": 8, "d_ff": 128, "num_layers": 2}
    config |= {"num_heads": 4, "vocab_size": 99, "decoder_start_token_id": 0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    code, out, _ = run(capsys, "plan", str(tmp_path), "--document", "10")
    assert code == 0
    assert "document: states" in out


def test_prices_can_be_given(capsys, tmp_path):
    prices = tmp_path / "prices.toml"
    prices.write_text("[prices]\ndate = 2026-11-01\n[l4]\ndollars_per_hour = 1420.0\n")
    dear = ("plan", "t5-base", "--document", "10", "--gpu", "l4", "--json")
    cheap = json.loads(run(capsys, *dear)[1])["machines"][0]["dollars_per_million_tokens"]
    found = json.loads(run(capsys, *dear, "--hardware", str(prices))[1])["machines"][0]
    assert found["dollars_per_million_tokens"] == pytest.approx(2000 * cheap)
    _, out, _ = run(capsys, *dear[:-1], "--hardware", str(prices))
    assert "yours, 2026-11-01" in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[l4]\nspeed = 3\n", r"\[l4\] has ['speed'], but may have"),
        ("[mine]\nname = 'x'\n", "[mine] lacks"),
        ("[l4]\nbytes_per_second = -3\n", "[l4] bytes_per_second must be a number"),
        ("[l4]\nflops_per_second = 3\n", "must be a table of rates"),
        ("l4 = 3\n", "'l4' must be a table"),
        ("[l4]\nname = 3\n", "[l4] name must be text, but is 3"),
        (f"[l4]\nbytes_per_second = 1{'0' * 60}\n", "[l4] bytes_per_second must be a number"),
        ("[l4]\nflops_per_second = { float32 = inf }\n", "flops_per_second.float32 must be"),
        ("[prices]\ndate = 'soon'\n", "date must be a day"),
        ("[", "is no TOML file"),
    ],
)
def test_wrong_prices_are_named(capsys, tmp_path, text, message):
    prices = tmp_path / "prices.toml"
    prices.write_text(text)
    given = ("plan", "t5-base", "--document", "9", "--gpu", "l4", "--hardware", str(prices))
    code, _, err = run(capsys, *given)
    assert code == 2
    assert message.replace("\\", "") in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("t5-base", "--image", "3"), "takes document or text or table, but is to read 'image'"),
        (("t5-base", "--document", "-3"), "`document` must be a number of tokens"),
        (("t5-base", "--document", "9", "--gpu", "b200"), "`gpu` must be one of h100, a100"),
        (("t5-base", "--document", "9", "--gpu", "h100x0"), "h100xN for 1 to 100000"),
        (
            ("t5-base", "--document", "9", "--gpu", "t4", "--dtype", "bfloat16"),
            "multiplies float32",
        ),
        (("t6-base", "--document", "9"), "Did you mean 't5-base'"),
        (("t5-base", "--document", "9", "--plot", "x.gif"), "a picture must end in .png"),
        ((), "`MODEL` must be given"),
        (("train", "t5-base", "--tokens", "many"), "`--tokens` must be a number from 1"),
        (("train", "t5-base", "--method", "graft"), "but t5 has it"),
        (("train", "t5-base", "--method", "magic"), "`method` must be one of full, lora, graft"),
        (("train", "t5-base", "--utilisation", "1.5"), "`utilisation` must be above 0"),
    ],
)
def test_bad_usage_is_said(capsys, arguments, message):
    code, _, err = run(capsys, "plan", *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_training_is_planned_with_its_formulas(capsys):
    code, out, _ = run(
        capsys,
        "plan",
        "train",
        "flan-t5-xl",
        "--tokens",
        "1e9",
        "--gpu",
        "h100x8",
        "--budget",
        "15",
    )
    assert code == 0
    assert "Kaplan et al. 2020" in out
    assert "prompting, 8 examples" in out
    assert "40% of the machine's bfloat16 rate" in out
    code, out, _ = run(capsys, "plan", "train", "t5-small", "--gpu", "t4")
    assert "40% of the machine's float16 rate" in out
    given = ("--requests", "1e9", "--budget", "40", "--json")
    code, out, _ = run(capsys, "plan", "train", "flan-t5-xl", "--tokens", "1e7", *given)
    ways = {one["way"]: one for one in json.loads(out)["choices"]}
    lora = ways["lora"]
    assert lora["training_dollars"] < 40 < lora["dollars"]
    assert lora["within_budget"] is False
    code, out, _ = run(capsys, "plan", "train", "smollm2-135m", "--gpu", "l4", "--json")
    methods = {one["method"]: one for one in json.loads(out)["methods"]}
    assert methods.keys() == {"graft", "lora", "full"}
    assert methods["full"]["trained"] == 134_515_008
    assert methods["lora"]["total_bytes"] < methods["full"]["total_bytes"]
