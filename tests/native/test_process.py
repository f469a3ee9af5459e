"""What memory is left: the system's, or what a container may still take."""

import pytest

import xattn
from xattn.native import process


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Files as Linux has them; ``bound(group, most, now)`` bounds a control group."""
    for name, text in {
        "meminfo": "MemTotal:  8000 kB\nMemAvailable:  4000 kB\n",
        "cgroup": "0::/pods/mine\n",
    }.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(process, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(process, "_GROUP", tmp_path / "cgroup")
    monkeypatch.setattr(process, "_GROUPS", tmp_path / "groups")

    def bound(group, most, now):
        directory = tmp_path / "groups" / group
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "memory.max").write_text(f"{most}\n")
        (directory / "memory.current").write_text(f"{now}\n")

    return bound


def test_what_is_left_is_the_least_of_all_bounds(system):
    assert process.available_bytes() == 4000 * 1024
    system("pods/mine", "max", 5)
    assert process.available_bytes() == 4000 * 1024
    system("pods", 3_000_000, 1_000_000)
    assert process.available_bytes() == 2_000_000
    system("pods/mine", 1_500_000, 500_000)
    assert process.available_bytes() == 1_000_000
    system("pods/mine", 1_500_000, 1_600_000)
    assert process.available_bytes() == 0


def test_a_system_that_does_not_say_bounds_nothing(system, monkeypatch, tmp_path):
    monkeypatch.setattr(process, "_MEMORY", tmp_path / "nothing")
    assert process.available_bytes() is None


def test_an_engine_takes_four_fifths_of_it(system, pairs):
    system("pods", 3_000_000, 1_000_000)
    model = xattn.load(pairs("bart").directory)
    with xattn.Engine(model) as engine:
        assert engine.stats().capacity_bytes == 1_600_000
    with xattn.Engine(model, capacity_bytes=5_000_000) as engine:
        assert engine.stats().capacity_bytes == 5_000_000
