"""Damaged CTranslate2 directories, and what only looks like one."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from converted import convert

from xattn.errors import CheckpointError, CorruptCheckpointError, UnsupportedModelError
from xattn.models.build import build
from xattn.models.formats import ctranslate2 as format_


@pytest.fixture(scope="module")
def whisper_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whisper") / "ct2"
    convert("whisper", directory, "int8")
    return directory


@pytest.fixture
def copy_of_whisper(whisper_directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whisper_directory, tmp_path / "copy"))


def test_a_file_cut_anywhere_says_so(copy_of_whisper: Path) -> None:
    whole = (copy_of_whisper / "model.bin").read_bytes()
    lengths = [*range(0, 400, 3), *np.linspace(400, len(whole) - 1, 150).astype(int).tolist()]
    for length in lengths:
        (copy_of_whisper / "model.bin").write_bytes(whole[:length])
        with pytest.raises(CorruptCheckpointError, match=r"model\.bin"):
            format_.read(copy_of_whisper, "x")


def test_the_message_names_file_offset_and_what_was_expected(copy_of_whisper: Path) -> None:
    whole = (copy_of_whisper / "model.bin").read_bytes()
    (copy_of_whisper / "model.bin").write_bytes(whole[:50])
    with pytest.raises(CorruptCheckpointError, match=r"model\.bin: expected .* at byte \d+, but"):
        format_.read(copy_of_whisper, "x")
    (copy_of_whisper / "model.bin").write_bytes(whole + b"more")
    with pytest.raises(CorruptCheckpointError, match="4 more bytes follow"):
        format_.read(copy_of_whisper, "x")


def test_flipped_bytes_never_raise_anything_else(copy_of_whisper: Path) -> None:
    whole = bytearray((copy_of_whisper / "model.bin").read_bytes())
    random = np.random.default_rng(11)
    # Names, shapes and scalars are spread over the file: look for them and damage those.
    headers = [n for n in range(len(whole) - 8) if whole[n : n + 7] in (b"decoder", b"encoder")]
    places = [int(h + random.integers(-3, 60)) for h in headers] + list(range(60))
    refused = 0
    for place in places:
        damaged = whole.copy()
        damaged[place % len(whole)] ^= int(random.integers(1, 256))
        (copy_of_whisper / "model.bin").write_bytes(damaged)
        try:
            build(format_.read(copy_of_whisper, "x"))
        except CheckpointError:
            refused += 1
    assert refused > len(places) * 0.7


def test_a_newer_version_or_another_specification_is_refused(copy_of_whisper: Path) -> None:
    whole = (copy_of_whisper / "model.bin").read_bytes()
    (copy_of_whisper / "model.bin").write_bytes(b"\7" + whole[1:])
    with pytest.raises(UnsupportedModelError, match="1 to 6, but is 7"):
        format_.read(copy_of_whisper, "x")
    (copy_of_whisper / "model.bin").write_bytes(whole.replace(b"WhisperSpec", b"FlisperSpec", 1))
    with pytest.raises(UnsupportedModelError, match="FlisperSpec"):
        format_.read(copy_of_whisper, "x")


def test_matches(copy_of_whisper: Path, tmp_path: Path) -> None:
    assert format_.matches(copy_of_whisper)
    assert format_.matches(copy_of_whisper / "model.bin")
    assert not format_.matches(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"PK\3\4")
    assert not format_.matches(tmp_path)
