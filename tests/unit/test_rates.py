"""The rates of a machine: measured once, kept in a file that is believed only where it is whole."""

import json
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch

from xattn.costs import Rates
from xattn.models import rates

FOUND = Rates(
    near_bytes_per_second=40e9,
    far_bytes_per_second=20e9,
    step_flops_per_second=100e9,
    projection_flops_per_second=250e9,
)


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """A list with an entry for each time that something was measured."""
    calls = []

    def measure(*, kernels):
        calls.append(kernels)
        return FOUND

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(rates, "measure", measure)
    monkeypatch.setattr(rates, "QUIET_SHARE", 0.0)
    fresh_process(monkeypatch)
    return calls


def fresh_process(monkeypatch):
    """As if nothing had been measured in this process."""
    monkeypatch.setattr(rates, "_known", {})


@pytest.fixture
def network(pairs, monkeypatch):
    made = pairs("t5").ours
    monkeypatch.setattr(made, "use_kernels", False)
    return made


def file_in(tmp_path):
    [path] = (tmp_path / "cache").rglob("rates-*")
    return path


def test_they_are_measured_once_and_kept(tmp_path, measured, network, monkeypatch):
    assert rates.known_rates(kernels=False) is None
    assert measured == []
    first = rates.rates_of(network)
    assert first.rates == rates.rates_of(network).rates == FOUND
    assert str(file_in(tmp_path)) in first.source
    fresh_process(monkeypatch)
    later = rates.rates_of(network)
    assert later.rates == FOUND
    assert "earlier" in later.source
    assert rates.known_rates(kernels=False).rates == FOUND
    assert measured == [False]
    assert rates.measure_again(network).rates == FOUND
    assert measured == [False, False]


def with_rate(value):
    return lambda document: document["rates"].update(step_flops_per_second=value)


@pytest.mark.parametrize(
    "damage",
    [
        with_rate(0),
        with_rate(-5e9),
        with_rate(float("nan")),
        with_rate(float("inf")),
        with_rate("fast"),
        with_rate(None),
        with_rate([1e9]),
        lambda document: document["rates"].pop("far_bytes_per_second"),
        lambda document: document["rates"].update(another=1e9),
        lambda document: document.update(rates=[]),
        lambda document: document.pop("about"),
        lambda document: document["about"].update(processor="another"),
    ],
)
def test_a_damaged_file_is_measured_again(tmp_path, measured, network, monkeypatch, damage):
    rates.rates_of(network)
    path = file_in(tmp_path)
    document = json.loads(path.read_text())
    damage(document)
    path.write_text(json.dumps(document))
    fresh_process(monkeypatch)
    assert rates.known_rates(kernels=False) is None
    assert rates.rates_of(network).rates == FOUND
    assert len(measured) == 2
    assert json.loads(path.read_text())["rates"] == asdict(FOUND)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b'{"rates', b"\xff\xfe\x00", b"null"])
def test_a_file_that_is_none_is_measured_again(tmp_path, measured, network, monkeypatch, content):
    rates.rates_of(network)
    file_in(tmp_path).write_bytes(content)
    fresh_process(monkeypatch)
    assert rates.rates_of(network).rates == FOUND
    assert len(measured) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [("processor", lambda: "another"), ("_threads", None)],
)
def test_another_machine_is_measured_for_itself(measured, network, monkeypatch, name, value):
    rates.rates_of(network)
    if name == "processor":
        monkeypatch.setattr(rates, name, value)
    else:
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    rates.rates_of(network)
    assert len(measured) == 2


def test_where_nothing_can_be_written_they_are_still_found(
    tmp_path, measured, network, monkeypatch
):
    (tmp_path / "cache").write_text("a file where a directory should be")
    found = rates.rates_of(network)
    assert found.rates == FOUND
    assert "not kept" in found.source
    assert "directory" in found.source.lower()


def test_a_file_that_cannot_be_finished_leaves_nothing_behind(
    tmp_path, measured, network, monkeypatch
):
    def replace(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rates.os, "replace", replace)
    assert "No space left" in rates.rates_of(network).source
    assert list((tmp_path / "cache").rglob("rates-*")) == []


def test_a_disturbed_measurement_is_not_kept(tmp_path, measured, network, monkeypatch):
    monkeypatch.setattr(rates, "QUIET_SHARE", 1e9)
    found = rates.rates_of(network)
    assert found.rates == FOUND
    assert "others were at work" in found.source
    assert list((tmp_path / "cache").rglob("rates-*")) == []
    assert rates.rates_of(network) is found, "within a process, once"


@pytest.mark.parametrize("kernels", [False, True])
def test_what_is_measured_is_a_rate_and_leaves_seeds_alone(kernels):
    torch.manual_seed(4)
    wanted = torch.rand(3)
    torch.manual_seed(4)
    found = asdict(rates.measure(kernels=kernels))
    assert torch.equal(torch.rand(3), wanted)
    assert all(rates.LEAST <= rate <= rates.MOST for rate in found.values())


TWO = """
import torch
from xattn.models import rates
torch.set_num_threads(1)
rates.QUIET_SHARE = 0.0
network = rates._one_layer(use_kernels=False)
print(rates.rates_of(network).source)
"""


def test_two_processes_leave_one_whole_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    both = [subprocess.Popen([sys.executable, "-c", TWO], stdout=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate(timeout=120)[0].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert all(str(file_in(tmp_path)) in one for one in said)
    third = subprocess.run(
        [sys.executable, "-c", TWO], capture_output=True, check=True, timeout=120, text=True
    )
    assert "earlier" in third.stdout
