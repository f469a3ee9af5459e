"""Small language models to graft onto, and encoders to read."""

from functools import cache

import pytest
import tiny
import torch

import xattn

LAYERS = 6


@pytest.fixture(scope="session")
def lms(tmp_path_factory):
    """Decoder-only models of six layers, by family."""

    @cache
    def make(name: str) -> xattn.Model:
        directory = tmp_path_factory.mktemp(f"lm-{name}")
        tiny.make(name, directory, num_hidden_layers=LAYERS)
        return xattn.load(directory)

    return make


@pytest.fixture(scope="session")
def readers(tmp_path_factory):
    """Models with an encoder, by family."""

    @cache
    def make(name: str) -> xattn.Model:
        directory = tmp_path_factory.mktemp(f"encoder-{name}")
        tiny.make(name, directory)
        return xattn.load(directory)

    return make


@pytest.fixture(scope="session")
def opened():
    """What training would do: all new weights are somewhere else, and gates are open."""

    def open_(model: xattn.Model, seed: int = 5) -> xattn.Model:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in model.network.named_parameters():
                if weight.requires_grad:
                    wide = 1.0 if name.endswith("gate") else 0.3
                    weight.add_(wide * torch.randn(weight.shape, generator=generator))
        return model

    return open_
