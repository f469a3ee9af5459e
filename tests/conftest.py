"""Fixtures that several folders of tests share."""

from functools import cache

import pytest
import tiny
from pairs import Pair

from xattn.models.build import build
from xattn.models.formats import huggingface


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    @cache
    def make(name: str, quantize: str | None = None) -> Pair:
        directory = tmp_path_factory.mktemp(name)
        theirs = tiny.make(name, directory)
        ours = build(huggingface.read(directory, name), quantize=quantize)
        return Pair(name, theirs, ours, directory)

    return make
