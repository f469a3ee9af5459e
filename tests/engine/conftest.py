"""Tiny models for engines."""

import pytest
import tiny

import xattn


@pytest.fixture(scope="session")
def load(tmp_path_factory):
    made = {}

    def get(name: str) -> xattn.Model:
        if name not in made:
            directory = tmp_path_factory.mktemp(name)
            tiny.make(name, directory)
            made[name] = xattn.load(directory)
        return made[name]

    return get


@pytest.fixture(params=[True, False], ids=["kernels", "torch"])
def model_of(request, load, monkeypatch):
    """A model that decodes by the compiled kernels, or by torch alone."""

    def get(name: str) -> xattn.Model:
        monkeypatch.setattr(load(name).network, "use_kernels", request.param)
        return load(name)

    return get


@pytest.fixture(scope="session")
def bart(load):
    return load("bart")
