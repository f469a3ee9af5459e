"""What goes wrong under a store: processes die, disks fail, files are damaged, people tamper."""

import errno
import io
import json
import logging
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest
import torch
from making import Encoder, assert_same, flip, key_of, memory_of, states_of
from scale import times

from xattn.errors import StoreError, StoreUnavailableError
from xattn.memory import Memory
from xattn.store import MemoryStore, files
from xattn.store.payload import pack

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
FORK = multiprocessing.get_context("fork")


def same_as_encoded(memory: Memory, name: str) -> bool:
    return memory.label == name and torch.equal(
        memory.states_SD, states_of(name, len(memory), memory.width)
    )


# Processes that die


def write_until_killed(root, writer, acknowledged):
    """Put memories, and write down each key once the store has acknowledged it."""
    torch.set_num_threads(1)
    store = MemoryStore(root, ram_bytes=0)
    with open(acknowledged, "a", buffering=1) as said:
        for number in range(10**9):
            name = f"{writer}-{os.getpid()}-{number}"
            store.put(memory_of(name, positions=64))
            said.write(f"{name}\n")


def test_kill_nine_while_four_write(tmp_path):
    kills, random_ = times(40, 1000), random.Random(4)
    root = tmp_path / "store"
    MemoryStore(root)
    files = [tmp_path / f"acknowledged-{writer}" for writer in range(4)]

    def start(writer):
        process = FORK.Process(target=write_until_killed, args=(root, writer, files[writer]))
        process.start()
        return process

    writers = [start(writer) for writer in range(4)]
    try:
        for _ in range(kills):
            time.sleep(random_.uniform(0.002, 0.03))
            victim = random_.randrange(4)
            os.kill(writers[victim].pid, signal.SIGKILL)
            writers[victim].join()
            writers[victim] = start(victim)
    finally:
        for process in writers:
            process.kill()
            process.join()
    # The last line may be cut: a name that was not written down whole was not acknowledged.
    names = [line for file in files for line in file.read_text().split("\n")[:-1]]
    store = MemoryStore(root, ram_bytes=0)
    for name in names:
        memory = store.get(key_of(name))
        assert memory is not None, f"{name} was acknowledged and is gone"
        assert same_as_encoded(memory, name)
    whole, bad = store.verify()
    assert bad == []
    assert whole >= len(names) > kills // 4
    assert len(store.entries()) <= whole
    store.gc()
    assert len(store.entries()) == whole


def encode_and_die(root):
    class Dying(Encoder):
        def encode_prepared(self, prepared):
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

    MemoryStore(root).get_or_encode(Dying(), "a")


def test_an_encoder_that_dies_does_not_block_the_next(tmp_path):
    process = FORK.Process(target=encode_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    encoder = Encoder()
    MemoryStore(tmp_path).get_or_encode(encoder, "a")
    assert encoder.encoded == ["a"]


# Calls that fail


class Failing:
    """Makes the Nth call of one function of ``os`` fail, and counts the calls."""

    def __init__(self, monkeypatch, module, name, nth, code):
        self.calls, self.failed = 0, False
        real = getattr(module, name)

        def call(*arguments, **more):
            self.calls += 1
            if self.calls == nth:
                self.failed = True
                raise OSError(code, os.strerror(code))
            return real(*arguments, **more)

        monkeypatch.setattr(module, name, call)


CALLS = [
    (os, "open"),
    (os, "write"),
    (os, "fsync"),
    (os, "replace"),
    (files, "map_pages"),
]


def everything(store):
    """What one does with a store that holds "old"."""
    digest = store.key_of(key_of("old")).digest
    return (
        lambda: store.put(memory_of("new")),
        lambda: store.get(key_of("old")),
        lambda: store.put(memory_of("old")),
        lambda: store.pin(digest),
        lambda: store.unpin(digest),
        lambda: store.get_or_encode(Encoder(), "more"),
        store.gc,
    )


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EMFILE], ids=errno.errorcode.get)
@pytest.mark.parametrize(("module", "name"), CALLS, ids=[name for _, name in CALLS])
def test_the_nth_call_fails_for_every_n(tmp_path, monkeypatch, module, name, code, caplog):
    """A typed error or none, what was there before still there, and whole."""
    caplog.set_level(logging.ERROR)
    for nth in range(1, 100):
        root = tmp_path / str(nth)
        before = MemoryStore(root, ram_bytes=0)
        before.put(memory_of("old"))
        store = MemoryStore(root, ram_bytes=0)
        with monkeypatch.context() as patch:
            failing = Failing(patch, module, name, nth, code)
            for act in everything(store):
                with suppress(StoreError):
                    act()
        assert_same(before.get(key_of("old")), memory_of("old"))
        assert_same(MemoryStore(root).get(key_of("old")), memory_of("old"))
        assert before.verify()[1] == []
        assert not list(root.rglob("tenants/*/??/.partial-*"))
        if not failing.failed:
            break
    assert nth > 1, "the call is made at all"
    assert not failing.failed, "a pass without a failure ends it"


def test_generation_goes_on_when_every_write_fails(tmp_path, monkeypatch, caplog):
    store, encoder = MemoryStore(tmp_path), Encoder()
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        for name in "abc":
            store.get_or_encode(encoder, name)
    assert encoder.encoded == ["a", "b", "c"]
    assert store.counters.failures == 3
    assert len(caplog.records) == 1
    store.get_or_encode(encoder, "d")
    assert MemoryStore(tmp_path).get(key_of("d")) is not None


def test_a_read_only_store_is_read(tmp_path, monkeypatch):
    MemoryStore(tmp_path).put(memory_of("a"))

    def read_only(path, flags, *more, real=os.open, **others):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, *more, **others)

    store, encoder = MemoryStore(tmp_path), Encoder()
    monkeypatch.setattr(os, "open", read_only)
    assert_same(store.get(key_of("a")), memory_of("a"))
    store.get_or_encode(encoder, "b")
    assert encoder.encoded == ["b"]


MOUNTS = pytest.mark.skipif(
    sys.platform != "linux" or os.getuid() != 0, reason="mounts a file system"
)


@contextmanager
def mounted(folder):
    """A disk of 64 MiB at ``folder``."""
    folder.mkdir(mode=0o700)
    options = ["-o", "size=64m,mode=700"]
    done = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)], check=False)
    if done.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@MOUNTS
def test_a_store_that_was_shipped_on_a_read_only_disk(tmp_path):
    mount = tmp_path / "shipped"
    with mounted(mount):
        with MemoryStore(mount / "store") as made:
            digest = made.put(memory_of("a"), encode_seconds=2.0)
        (mount / "store").chmod(0o755)  # as a package brings it
        subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
        store, encoder, bundle = MemoryStore(mount / "store"), Encoder(), io.BytesIO()
        assert_same(store.get(digest), memory_of("a"))
        assert [row.label for row in store.entries()] == ["a"]
        assert store.verify() == (1, [])
        with store.lease(digest):
            assert store.export([digest], bundle) == 1
        store.get_or_encode(encoder, "b")
        assert encoder.encoded == ["b"]
        for change in (store.pin, store.remove):
            with pytest.raises(StoreUnavailableError, match="Read-only file system"):
                change(digest)
        assert MemoryStore(tmp_path / "other").import_bundle(io.BytesIO(bundle.getvalue()))


@MOUNTS
def test_a_full_disk(tmp_path, caplog):
    mount = tmp_path / "small"
    with mounted(mount):
        store, encoder = MemoryStore(mount / "store"), Encoder(positions=20_000)
        (mount / "filler").write_bytes(bytes(60 * 2**20))
        with caplog.at_level(logging.WARNING):
            for n in range(20):
                memory = store.get_or_encode(encoder, str(n))
                assert torch.equal(memory.states_SD, states_of(str(n), 20_000))
        assert store.counters.failures > 0
        assert len([r for r in caplog.records if "is done without" in r.message]) == 1
        whole, bad = MemoryStore(mount / "store").verify()
        assert bad == []
        assert 0 < whole < 20
        (mount / "filler").unlink()
        store.get_or_encode(encoder, "after")
        assert MemoryStore(mount / "store").get(key_of("after")) is not None


def test_an_index_that_is_locked(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("xattn.store.index.BUSY_SECONDS", 0.05)
    store, encoder = MemoryStore(tmp_path), Encoder()
    store.get_or_encode(encoder, "before")
    other = sqlite3.connect(tmp_path / "index-3.sqlite")
    other.execute("BEGIN EXCLUSIVE")
    with caplog.at_level(logging.WARNING):
        for name in "abc":
            store.get_or_encode(encoder, name)
    other.rollback()
    other.close()
    assert encoder.encoded == ["before", "a", "b", "c"]
    assert len(caplog.records) == 1
    assert store.counters.failures > 0
    monkeypatch.setattr(store._tiers, "_index_rests_until", 0.0)
    store.get_or_encode(encoder, "after")
    assert {row.label for row in store.entries()} == {"before", "a", "b", "c", "after"}


# Damage


@pytest.fixture
def written(tmp_path):
    """A store with one entry, the path of its payload, and its bytes."""
    store = MemoryStore(tmp_path / "store", verify="always", ram_bytes=0)
    store.put(memory_of("a", positions=24))
    [path] = store.root.rglob("tenants/*/??/*.safetensors")
    return store, path, path.read_bytes()


def test_flipped_bits_and_cuts_are_all_found(written, caplog):
    caplog.set_level(logging.ERROR)
    store, path, content = written
    random_, count = random.Random(5), times(600, 10_000)
    for n in range(count):
        if n % 4:
            damaged = flip(content, random_.randrange(8 * len(content)))
        else:
            damaged = content[: random_.randrange(len(content))]
        path.write_bytes(damaged)
        assert store.get(key_of("a")) is None, n
        assert not path.exists()
    assert store.counters.quarantined == count
    path.write_bytes(content)
    assert_same(store.get(key_of("a")), memory_of("a", positions=24))


def test_a_payload_of_another_format_is_a_clean_miss(written):
    store, path, content = written
    newer = content.replace(b'\\"format\\": 1', b'\\"format\\": 7')
    newer = newer.replace(b'"format":"1"', b'"format":"7"')
    assert sum(a != b for a, b in zip(newer, content, strict=True)) == 2
    path.write_bytes(newer)
    assert store.get(key_of("a")) is None
    assert path.exists()
    assert store.counters.quarantined == 0


def test_rewritten_payloads_are_refused_where_there_is_a_secret(tmp_path, caplog):
    """The checksums fit, because whoever rewrote them knows how; the secret they do not know."""
    caplog.set_level(logging.ERROR)
    count = times(60, 1000)
    store = MemoryStore(tmp_path, secret=b"known to the owner alone", ram_bytes=0)
    memory = memory_of("a", positions=24)
    digest = store.put(memory)
    [path] = tmp_path.rglob("tenants/*/??/*.safetensors")
    genuine = path.read_bytes()
    forged = replace(memory, key=store.key_of(memory.key))
    for n in range(count):
        states = memory.states_SD + torch.randn(24, 8, generator=torch.Generator().manual_seed(n))
        path.write_bytes(
            pack(
                replace(forged, states_SD=states),
                "float32",
                encode_seconds=1.0,
                created=0.0,
                secret=[None, b"another secret!!", bytes(16)][n % 3],
            )
        )
        assert store.get(digest) is None
    assert store.counters.quarantined == count
    path.write_bytes(genuine)
    assert_same(store.get(digest), memory)


def test_an_index_lost_or_damaged_is_made_again(tmp_path):
    random_ = random.Random(6)
    store = MemoryStore(tmp_path)
    for n in range(12):
        store.put(memory_of(str(n)), encode_seconds=float(n))
    want = {(row.label, row.size_bytes, row.encode_seconds) for row in store.entries()}
    index = tmp_path / "index-3.sqlite"
    for n in range(times(20, 100)):
        store.close()
        if n % 3 == 0:
            for file in tmp_path.glob("index-3.sqlite*"):
                file.unlink()
        elif n % 3 == 1:
            index.write_bytes(random_.randbytes(random_.randrange(1, 9000)))
        else:
            content = bytearray(index.read_bytes())
            start = random_.randrange(len(content))
            content[start : start + 3000] = random_.randbytes(len(content[start : start + 3000]))
            index.write_bytes(bytes(content))
        store = MemoryStore(tmp_path)
        assert_same(store.get(key_of("3")), memory_of("3"))
        found = {(row.label, row.size_bytes, row.encode_seconds) for row in store.entries()}
        assert found == want, n


# Many at once


def put_get_and_evict(root, seed, keys, until, encoded, capacity):
    torch.set_num_threads(1)
    random_, encoder = random.Random(seed), Encoder(positions=64)
    store = MemoryStore(root, capacity_bytes=capacity, ram_bytes=20_000)
    while time.time() < until:
        name = str(random_.randrange(keys))
        memory = store.get_or_encode(encoder, name)
        assert same_as_encoded(memory, name), name
        if random_.random() < 0.02:
            store.gc()
    with open(encoded, "w") as file:
        json.dump(encoder.encoded, file)


@pytest.mark.parametrize("evicting", [False, True])
def test_many_processes(tmp_path, evicting):
    processes, keys = times(4, 16), times(40, 200)
    until = time.time() + times(2, 180)
    size = 64 * 8 * 4 + 64 * 16 + 1200
    capacity = keys * size // 3 if evicting else 2**30
    root, workers = tmp_path / "store", []
    MemoryStore(root)
    for n in range(processes):
        arguments = (root, n, keys, until, tmp_path / f"encoded-{n}", capacity)
        workers.append(FORK.Process(target=put_get_and_evict, args=arguments))
        workers[-1].start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    encoded = [
        n for i in range(processes) for n in json.loads((tmp_path / f"encoded-{i}").read_text())
    ]
    store = MemoryStore(root, capacity_bytes=capacity)
    assert store.verify()[1] == []
    if evicting:
        assert len(encoded) > len(set(encoded))
        store.gc()
        assert sum(row.size_bytes for row in store.entries()) <= capacity
    else:
        assert len(encoded) == len(set(encoded)), "a key was encoded twice"


def test_evictions_under_open_maps(tmp_path):
    """A memory that is in use is mapped from a file that is gone, and stays as it was."""
    store = MemoryStore(tmp_path, ram_bytes=0)
    for n in range(times(100, 1000)):
        name = str(n)
        digest = store.put(memory_of(name, positions=300))
        memory = store.get(digest)
        store.capacity_bytes = 1
        store.gc()
        store.capacity_bytes = 2**30
        assert store.get(digest) is None
        assert same_as_encoded(memory, name)
    assert store.counters.evictions == times(100, 1000)


def test_readers_do_not_wait_for_an_encoder(tmp_path):
    store = MemoryStore(tmp_path, ram_bytes=0)
    store.get_or_encode(Encoder(), "a")
    slow = Encoder(seconds=1.0)
    thread = threading.Thread(target=store.get_or_encode, args=(slow, "b"))
    thread.start()
    time.sleep(0.1)
    read = 0
    while thread.is_alive() and slow.encoded == []:
        assert store.get(key_of("a")) is not None
        read += 1
    thread.join()
    assert read > 20


# Tampering


def test_links_in_the_store_are_not_written_through(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    store = MemoryStore(tmp_path / "store")
    digest = store.put(memory_of("a"))
    [path] = store.root.rglob("tenants/*/??/*.safetensors")
    (outside / "precious").write_text("mine")
    path.unlink()
    path.symlink_to(outside / "precious")
    again = MemoryStore(store.root)
    assert again.get(digest) is None
    again.put(memory_of("a"))
    assert (outside / "precious").read_text() == "mine"
    assert not path.is_symlink()
    assert_same(again.get(digest), memory_of("a"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'\\"expires\\": null', b'\\"expires\\": "no"'),
        (b'\\"width\\": 8', b'\\"width\\": []'),
        (b'\\"label\\": \\"a\\"', b'\\"label\\": null '),
        (b'\\"created\\": ', b'\\"created\\": NaN, \\"x\\": '),
    ],
    ids=["expires", "width", "label", "created"],
)
def test_a_header_of_other_types_is_damage(written, old, new):
    store, path, content = written
    assert old in content
    changed = content.replace(old, new, 1)
    grown = int.from_bytes(content[:8], "little") + len(changed) - len(content)
    path.write_bytes(grown.to_bytes(8, "little") + changed[8:])
    assert store.get(key_of("a")) is None
    assert store.counters.quarantined == 1
    for file in store.root.glob("index-3.sqlite*"):
        file.unlink()
    assert store.entries() == []


def test_many_pieces_need_few_files(tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = len(os.listdir("/proc/self/fd"))
    store, encoder = MemoryStore(tmp_path), Encoder()
    prepared = [encoder.prepare(str(n)) for n in range(200)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 80, hard))
    try:
        store.get_or_encode_prepared(encoder, prepared)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(store.entries()) == 200
    assert store.counters.failures == 0


def hold_on(seconds):
    time.sleep(seconds)


def test_a_forked_child_does_not_keep_the_locks(tmp_path):
    store = MemoryStore(tmp_path)

    class Forking(Encoder):
        def encode_prepared(self, prepared):
            self.child = FORK.Process(target=hold_on, args=(5,))
            self.child.start()
            return super().encode_prepared(prepared)

    forking = Forking()
    store.get_or_encode(forking, "a")
    store.remove(store.key_of(key_of("a")).digest)
    started = time.monotonic()
    MemoryStore(tmp_path).get_or_encode(Encoder(), "a")
    assert time.monotonic() - started < 4, "it waited for the child"
    forking.child.kill()
    forking.child.join()
