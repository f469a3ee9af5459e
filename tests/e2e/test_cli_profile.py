"""``xattn profile``, as it is typed, in processes of its own."""

import json
import subprocess
import sys

import pytest
from tiny import memory_heavy

from xattn.cli import main
from xattn.profiling.report import PHASES

RECORDING = "examples/assets/recording.wav"
CHARTS = ("phases", "bytes", "latency", "store")


def profiled(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "xattn", "profile", *arguments, "--offline", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_profile_of_speech_is_close_to_its_plan(tmp_path):
    page, pictures = tmp_path / "page.html", tmp_path / "pictures"
    found = profiled(
        *("whisper-tiny.en", "--input", RECORDING, "--beams", "2", "--max-new-tokens", "12"),
        *("--rounds", "2", "--lengths", "64,256", "--requests", "1,2,3"),
        *("--html", str(page), "--pictures", str(pictures)),
    )
    sizes = {(one["input"], one["what"]): one for one in found["sizes"]}
    for one in sizes.values():
        assert one["predicted"] == pytest.approx(one["measured"], rel=0.02)
    held = {("audio", "states"), ("inputs", "keys and values"), ("model", "weights")}
    assert held <= sizes.keys()
    assert found["predicted_peak_bytes"] == pytest.approx(found["peak_bytes"], rel=0.1)
    phases = {"load", "encode", "project", "prefill", "step: cross-attention"}
    assert phases <= found["phases"].keys() <= PHASES.keys()
    assert all(seconds >= 0 for seconds in found["phases"].values())
    assert [one["positions"] for one in found["lengths"]] == [64, 256]
    store = found["store"]
    assert store["predicted_requests"] >= 1
    # Three tries of 1, 2 and 3 requests for one recording: the first of each try is not there.
    assert (store["hits"], store["misses"]) == (3 * (0 + 1 + 2), 3 * 3)
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert "http" not in text.replace("http://www.w3.org", "")
    assert "9 hits, 9 not in the store" in text
    for name in CHARTS:
        assert (pictures / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_tensors_are_counted_by_phase_and_owner():
    """Of Whisper tiny.en, by hand: states of 1500 x 384, keys and values of 4 layers of them."""
    found = profiled(
        *("whisper-tiny.en", "--input", RECORDING, "--max-new-tokens", "12", "--rounds", "1"),
        *("--lengths", "", "--requests", ""),
    )
    tensors = found["tensors"]
    tags = {one["tag"]: one for one in tensors["tags"]}
    weights = next(one["measured"] for one in found["sizes"] if one["what"] == "weights")
    states = 1500 * 384 * 4
    assert tags["load"]["resident"] == pytest.approx(weights, rel=0.02)
    assert tags["encode"]["resident"] == pytest.approx(states, rel=0.02)
    assert tags["project"]["resident"] == pytest.approx(8 * states, rel=0.02)
    assert tags["encode"]["peak"] > 5 * tags["encode"]["resident"]
    held = weights + 9 * states
    assert held < tensors["peak_bytes"] < held + tensors["predicted_workspace_bytes"] + 2**21
    assert 0 < tensors["workspace_bytes"] <= tensors["predicted_workspace_bytes"]
    largest = tensors["at_peak"][0]
    assert largest["tag"] == "load"
    assert largest["bytes"] == pytest.approx(weights, rel=0.02)
    assert sum(one["bytes"] for one in tensors["at_peak"]) <= tensors["peak_bytes"]


@pytest.mark.slow
def test_a_decoder_only_model_is_drawn_as_far_as_it_reads(tmp_path):
    page, pictures = tmp_path / "page.html", tmp_path / "pictures"
    found = profiled(
        *("smollm2-135m-instruct", "--input-text", "Paris is the capital of France."),
        *("--prompt", "The capital is", "--rounds", "1", "--requests", "1,2"),
        *("--max-new-tokens", "4", "--lengths", "64,30000"),
        *("--html", str(page), "--pictures", str(pictures)),
    )
    assert [one["positions"] for one in found["lengths"]] == [64]  # of 8192
    assert page.read_text().count("<img") == len(CHARTS)
    for name in CHARTS:
        assert (pictures / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_peak_memory_is_foretold_where_inputs_are_most_of_it(tmp_path):
    """Beyond Python and torch themselves, so that an error of the ledger shows."""
    sources = [argument for n in range(12) for argument in ("--tokens", f"{1000 + n}")]
    found = profiled(
        *(memory_heavy(tmp_path), *sources, "--beams", "4", "--max-new-tokens", "8"),
        *("--rounds", "1", "--lengths", "", "--requests", "", "--threads", "2"),
    )
    base = found["base_bytes"]
    held = sum(one["measured"] for one in found["sizes"] if one["what"] == "keys and values")
    grown = found["peak_bytes"] - base
    assert held > 0.75 * grown
    assert found["predicted_peak_bytes"] - base == pytest.approx(grown, rel=0.1)


def test_lengths_beyond_all_reason_are_refused_before_anything_is_loaded(capsys):
    assert main(["profile", "g2p-en", "--tokens", "9", "--lengths", "1000000000000"]) == 2
    assert "`lengths` must be whole numbers from 1 to" in capsys.readouterr().err


def test_a_profile_says_what_it_lacks(capsys, tmp_path):
    assert main(["profile", "whisper-tiny.en", "--input", str(tmp_path / "none.wav")]) == 2
    assert "`--input` must be a file" in capsys.readouterr().err
    assert main(["profile", "g2p-en"]) == 2
    assert "`inputs` must be given" in capsys.readouterr().err
