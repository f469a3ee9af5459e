"""What a hostile world does to a store: forged fields, flipped bits, forks, hangs, full tables."""

import io
import json
import os
import random
import signal
import threading
import time
from dataclasses import replace

import fsspec
import numpy as np
import pytest
import torch
from making import Encoder, assert_same, key_of, memory_of
from safetensors.torch import save
from scale import times

import xattn
from xattn.errors import CorruptEntryError, StoreError, StoreUnavailableError, UnsafeStoreError
from xattn.store import MemoryStore, files
from xattn.store.payload import _digest, pack, read_safetensors


def payload_of(store):
    [path] = store.root.rglob("tenants/*/??/*.safetensors")
    return path


def forged(content, *, header=None, tensors=None, metadata=None):
    """A payload with other fields and the digest that fits them."""
    found, texts = read_safetensors(bytearray(content))
    found, texts = {name: t.clone() for name, t in found.items()} | (tensors or {}), dict(texts)
    values = json.loads(texts["xattn"]) | (header or {})
    texts["xattn"] = json.dumps(values, sort_keys=True)
    texts["digest"] = _digest(texts["xattn"], found, memory_of("a").key)
    return save(found, texts | (metadata or {}))


FORGERIES = {
    "digest that is no ASCII": {"metadata": {"digest": "é" * 64}},
    "mac that is no ASCII": {"metadata": {"mac": "é" * 64}},
    "half a character": {"header": {"label": "\ud800"}},
    "a time no float holds": {"header": {"created": 10**400}},
    "seconds no table holds": {"header": {"encode_seconds": 10**400}},
    "positions no table holds": {"header": {"positions": 2**70}},
    "more positions than states": {"header": {"positions": 7}},
    "another codec than its key": {"header": {"codec": "int8"}},
    "states of no dimension": {"tensors": {"states": torch.tensor(1.0)}},
    "states of three": {"tensors": {"states": torch.zeros(6, 2, 4)}},
    "spans of one": {"tensors": {"spans": torch.zeros(6)}},
}


@pytest.mark.parametrize("name", FORGERIES)
@pytest.mark.parametrize("secret", [None, b"a secret of sixteen"])
def test_what_is_forged_is_set_aside_and_harms_no_other(tmp_path, name, secret):
    if "mac" in name and secret is None:
        pytest.skip("without a secret there is no mac to look at")
    store = MemoryStore(tmp_path / "s", secret=secret, ram_bytes=0)
    digest, path = store.put(memory_of("a")), payload_of(store)
    path.write_bytes(forged(path.read_bytes(), **FORGERIES[name]))
    for index in store.root.glob("index-*"):
        index.unlink()
    store.put(memory_of("b"))
    assert {row.label for row in store.entries()} >= {"b"}
    store.gc()
    encoder = Encoder()
    assert torch.equal(store.get_or_encode(encoder, "a").states_SD, memory_of("a").states_SD)
    assert encoder.encoded == ["a"]
    assert store.counters.quarantined == 1
    assert store.verify() == (2, [])
    assert_same(store.get(digest), replace(memory_of("a"), details={}))


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_in_a_bundle_or_a_shared_tier_is_refused(tmp_path, name):
    if "mac" in name:
        pytest.skip("without a secret there is no mac to look at")
    store = MemoryStore(tmp_path / "s")
    digest, path = store.put(memory_of("a")), payload_of(store)
    content = forged(path.read_bytes(), **FORGERIES[name])
    line = json.dumps({"key": digest, "bytes": len(content)}).encode()
    bundle = b"xattn memories 2\n" + line + b"\n" + content + b'{"end": 1}\n'
    other = MemoryStore(tmp_path / "other", cold=f"file://{tmp_path / 'shared'}")
    with pytest.raises(CorruptEntryError):
        other.import_bundle(io.BytesIO(bundle))
    shared = tmp_path / "shared" / "default" / digest[:2] / f"{digest}.safetensors"
    shared.parent.mkdir(parents=True)
    shared.write_bytes(content)
    encoder = Encoder()
    other.get_or_encode(encoder, "a")
    assert encoder.encoded == ["a"]


def test_a_bundle_has_an_end(tmp_path):
    store, stream = MemoryStore(tmp_path / "s"), io.BytesIO()
    store.export([store.put(memory_of(name)) for name in "ab"], stream)
    other, content = MemoryStore(tmp_path / "other"), stream.getvalue()
    for cut in (
        content[: -len('{"end": 2}\n')],
        b"xattn memories 2\n",
        b"xattn memories 2\n" + b"[",
    ):
        with pytest.raises(CorruptEntryError):
            other.import_bundle(io.BytesIO(cut))
    with pytest.raises(CorruptEntryError):
        other.import_bundle(io.BytesIO(b"xattn memories 2\n" + b"[" * 4000))
    payload = other._tiers.disk.path(store.entries()[0].digest)
    payload.write_bytes(b"damaged")
    assert len(other.import_bundle(io.BytesIO(content))) == 2
    assert other.verify() == (2, [])


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files")
def test_memories_hold_no_file_open(tmp_path):
    store = MemoryStore(tmp_path)
    digests = [store.put(memory_of(str(n))) for n in range(50)]
    store.entries()
    before = len(os.listdir("/proc/self/fd"))
    held = [store.get(digest) for digest in digests]
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    del store
    assert all(torch.isfinite(memory.states_SD).all() for memory in held)


def test_bits_that_flip_in_the_index_are_found_and_mended(tmp_path):
    random_ = random.Random(7)
    store = MemoryStore(tmp_path)
    for n in range(6):
        store.put(memory_of(str(n)), encode_seconds=float(n), ttl_seconds=1e6 + n)
    want = {(row.digest, row.tenant, row.label) for row in store.entries()}
    store.close()
    [index] = tmp_path.glob("index-?.sqlite")
    whole = index.read_bytes()
    for n in range(times(60, 433)):
        for file in tmp_path.glob("index-*"):
            file.unlink()
        damaged = bytearray(whole)
        damaged[random_.randrange(len(whole))] ^= 1 << random_.randrange(8)
        index.write_bytes(bytes(damaged))
        other = MemoryStore(tmp_path)
        other.put(memory_of("0"), encode_seconds=0.0, ttl_seconds=1e6)
        other.gc()
        rows = other.entries()
        assert {(row.digest, row.tenant, row.label) for row in rows} == want, n
        sizes = {row.digest: row.size_bytes for row in rows}
        assert sizes == {path.stem: path.stat().st_size for path in tmp_path.rglob("*.safetensors")}
        other.close()


def test_a_payload_that_the_index_was_never_told_of_counts(tmp_path):
    store = MemoryStore(tmp_path, tenant="a")
    for n in range(6):
        store.put(memory_of(str(n), 200))
    size = store.entries()[0].size_bytes
    store._tiers.index.remove([row.digest for row in store.entries()])
    other = MemoryStore(tmp_path, capacity_bytes=3 * size)
    other.put(memory_of("new", 200), encode_seconds=1.0)
    held = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    assert held <= 3 * size
    assert other.get(key_of("new")) is not None


def test_what_was_just_put_is_there(tmp_path):
    size = len(pack(memory_of("a", 200), "float32", encode_seconds=0.0, created=0.0))
    store = MemoryStore(tmp_path, capacity_bytes=3 * size + size // 2)
    for n in range(3):
        store.put(memory_of(str(n), 200), encode_seconds=100.0)
    for n in range(3, 8):
        assert store.put(memory_of(str(n), 200)) in store
    assert len(store.entries()) == 3


def test_always_is_always(tmp_path):
    store = MemoryStore(tmp_path, verify="always")
    digest, path = store.put(memory_of("a")), payload_of(store)
    assert store.get(digest) is not None
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-3] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert store.get(digest) is None
    assert store.counters.quarantined == 1


def test_a_change_in_place_is_seen_whatever_its_date_says(tmp_path):
    store = MemoryStore(tmp_path)
    digest, path = store.put(memory_of("a")), payload_of(store)
    assert store.get(digest) is not None
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-3] ^= 1
    time.sleep(0.02)
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert store.get(digest) is None


@pytest.mark.parametrize("held", ["_tiers.ram._lock", "_tiers._lock"])
def test_a_fork_finds_the_locks_of_threads_open(tmp_path, held):
    store = MemoryStore(tmp_path)
    digest = store.put(memory_of("a"))
    store.get(digest)
    lock = store
    for name in held.split("."):
        lock = getattr(lock, name)
    with lock:
        pid = os.fork()
        if pid == 0:
            signal.alarm(5)
            os._exit(0 if store.get(digest) is not None else 1)
        assert os.waitpid(pid, 0)[1] == 0


def test_a_lock_that_is_never_free_is_done_without(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE_SECONDS", 0.05)
    store, encoder = MemoryStore(tmp_path), Encoder()
    path = store._tiers.disk.path(store.key_of(key_of("a")).digest)
    with files.changing(path.parent):
        store.get_or_encode(encoder, "a")
        with pytest.raises(StoreUnavailableError, match=r"has held a lock for 0\.05 s"):
            store.put(memory_of("a"))
    assert store.counters.failures == 1
    store.get_or_encode(encoder, "a")
    assert store.get(key_of("a")) is not None


def test_an_encoder_may_ask_the_store_itself(tmp_path, monkeypatch):
    monkeypatch.setattr("xattn.store.single_flight.STRIPES", 1)
    store, inner = MemoryStore(tmp_path), Encoder()

    class Outer(Encoder):
        def encode_prepared(self, prepared):
            store.get_or_encode(inner, "part")
            return super().encode_prepared(prepared)

    outer = Outer()
    store.get_or_encode(outer, "whole")
    assert (outer.encoded, inner.encoded) == (["whole"], ["part"])


def test_codecs_have_entries_of_their_own(tmp_path):
    encoder = Encoder()
    for codec in ("int8", "int4", "int8", "int4"):
        MemoryStore(tmp_path, codec=codec).get_or_encode(encoder, "a")
    assert encoder.encoded == ["a", "a"]
    keys = {MemoryStore(tmp_path, codec=c).get(key_of("a")).key.digest for c in ("int8", "int4")}
    assert len(keys) == 2


# Shared tiers


def test_a_payload_too_large_for_a_shared_tier_removes_nothing(tmp_path):
    url = f"file://{tmp_path / 'shared'}"
    with MemoryStore(tmp_path / "s", cold=url, cold_bytes=9000) as store:
        small = [store.put(memory_of(name)) for name in "abc"]
        store.put(memory_of("large", 500))
    held = {path.stem for path in (tmp_path / "shared").rglob("*.safetensors")}
    assert held == set(small)
    assert store.counters.failures == 1


@pytest.mark.parametrize("url", ["file://{}/shared", "memory://dear"])
def test_dear_payloads_outlive_cheap_ones_in_a_shared_tier(tmp_path, url):
    size = len(pack(memory_of("a"), "float32", encode_seconds=1.0, created=time.time()))
    options = {"cold": url.format(tmp_path), "cold_bytes": 4 * size + size // 2}
    with MemoryStore(tmp_path / "s", **options) as store:
        for name in "abc":
            store.put(memory_of(name), encode_seconds=1000.0)
        for n in range(8):
            store.put(memory_of(str(n)), encode_seconds=0.001)
    other = MemoryStore(tmp_path / "other", cold=options["cold"])
    held = {name for name in "abc01234567" if other.get(key_of(name)) is not None}
    assert held == {"a", "b", "c", "7"}


def test_dear_memories_outlive_cheap_ones_in_ram(tmp_path):
    size = memory_of("a").size_bytes
    store = MemoryStore(tmp_path, ram_bytes=4 * size)
    for name, seconds in (*((name, 100.0) for name in "abc"), *((str(n), 0.0) for n in range(8))):
        store.put(memory_of(name), encode_seconds=seconds)
        store.get(key_of(name))
    before = store.counters.ram_hits
    for name in "abc7":
        assert store.get(key_of(name)) is not None
    assert store.counters.ram_hits == before + 4


def test_a_removal_wins_over_what_waits_to_be_written(tmp_path, monkeypatch):
    system, go = fsspec.filesystem("memory"), threading.Event()
    real = type(system).pipe_file

    def slow(self, *arguments, **more):
        go.wait(5)
        return real(self, *arguments, **more)

    monkeypatch.setattr(type(system), "pipe_file", slow)
    store = MemoryStore(tmp_path / "s", cold="memory://slow")
    digests = [store.put(memory_of(name)) for name in "ab"]
    for digest in digests:
        store.remove(digest)
    go.set()
    store.close()
    assert [store.get(digest) for digest in digests] == [None, None]


def test_a_shared_tier_that_hangs_is_left_in_peace(tmp_path, monkeypatch):
    monkeypatch.setattr("xattn.store.cold.READ_SECONDS", 0.1)
    asked = []

    def hang(*_, **__):
        asked.append(1)
        time.sleep(2)

    monkeypatch.setattr(fsspec.filesystem("memory"), "cat_file", hang)
    store, encoder = MemoryStore(tmp_path, cold="memory://hangs"), Encoder()
    for name in "abc":
        store.get_or_encode(encoder, name)
    assert len(asked) == 1
    assert store.counters.failures == 1


def test_an_expired_entry_leaves_the_shared_tier(tmp_path):
    url = f"file://{tmp_path / 'shared'}"
    with MemoryStore(tmp_path / "one", cold=url, ttl_seconds=0.1) as one:
        one.put(memory_of("a"))
    time.sleep(0.15)
    assert MemoryStore(tmp_path / "two", cold=url).get(key_of("a")) is None
    assert not list((tmp_path / "shared").rglob("*.safetensors"))


# Directories


def test_no_directory_of_others_is_taken_over(tmp_path):
    www = tmp_path / "www"
    www.mkdir(mode=0o755)
    (www / "index.html").write_text("hello")
    with pytest.raises(UnsafeStoreError, match=r"holds other things than a store \('index.html'\)"):
        MemoryStore(www)
    assert www.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in www.iterdir()] == ["index.html"]
    with pytest.raises(xattn.UsageError, match="`root` must be a directory"):
        MemoryStore("")
    store = MemoryStore(tmp_path / "s")
    store.put(memory_of("a"))
    (store.root / "lost+found").mkdir()
    (store.root / "store.json").rename(tmp_path / "aside")
    with pytest.raises(UnsafeStoreError, match="lost"):
        MemoryStore(store.root)
    (tmp_path / "aside").rename(store.root / "store.json")
    assert MemoryStore(store.root).get(key_of("a")) is not None


def test_a_store_that_is_removed_while_it_is_open_is_made_again_private(tmp_path):
    store = MemoryStore(tmp_path / "s")
    store.put(memory_of("a"))
    for path in sorted(store.root.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    store.root.rmdir()
    mask = os.umask(0)
    try:
        store.put(memory_of("b"))
    finally:
        os.umask(mask)
    assert store.root.stat().st_mode & 0o777 == 0o700
    assert MemoryStore(store.root).get(key_of("b")) is not None


# Values


def test_values_of_other_kinds_are_taken_or_named(tmp_path):
    store = MemoryStore(tmp_path / "s", capacity_bytes=np.int64(10**9))
    assert MemoryStore(tmp_path / "s").capacity_bytes == 10**9
    store.put(memory_of("a"), encode_seconds=np.float32(1.5), ttl_seconds=np.int32(100))
    assert store.entries()[0].encode_seconds == 1.5
    for bad in ({"encode_seconds": 10**400}, {"ttl_seconds": 10**400}):
        with pytest.raises(xattn.UsageError):
            store.put(memory_of("b"), **bad)
    for bad in (10**400, 10**5000):
        with pytest.raises(xattn.UsageError, match="`capacity_bytes`"):
            MemoryStore(tmp_path / "s", capacity_bytes=bad)
    deep = []
    for _ in range(900):
        deep = [deep]
    for memory in (
        replace(memory_of("b"), details={"deep": deep}),
        memory_of("b", dtype="float64"),
        memory_of("b", dtype="torch.float32"),
        replace(memory_of("b"), states_SD=torch.zeros(6, 0)),
        memory_of("b", modality="\ud800"),
    ):
        with pytest.raises(StoreError, match="cannot be kept"):
            store.put(memory)
    assert len(store.entries()) == 1
    half = memory_of("h", dtype="float16")
    store.put(half)
    [row] = [row for row in store.entries() if row.label == "h"]
    assert row.relative_l2 > 0, "what the dtype of the key loses is a loss, too"
