"""What stores on one directory, or one shared tier, owe each other."""

import io
import json
import logging
import os
import time
from dataclasses import replace

import pytest
import torch
from making import Encoder, assert_same, flip, header_size, key_of, memory_of

from xattn.errors import EntryNotFoundError, StoreError, UsageError
from xattn.store import MemoryStore, files

OURS, THEIRS = b"one secret of sixteen", b"another of sixteen b."


def payload_of(store):
    [path] = store.root.rglob("tenants/*/??/*.safetensors")
    return path


def test_a_lease_outlives_a_second_put(tmp_path):
    store, other = MemoryStore(tmp_path), MemoryStore(tmp_path)
    digest = store.put(memory_of("a"))
    with store.lease(digest):
        other.put(memory_of("a"))  # the file is another one now
        other.capacity_bytes = 1
        other.gc()
        assert digest in store
    other.gc()
    assert digest not in store


def test_what_was_written_anew_is_not_evicted_or_set_aside(tmp_path, monkeypatch):
    """A slow reader of a bad file must not take away the good one that has replaced it."""
    store, other = MemoryStore(tmp_path, verify="always", ram_bytes=0), MemoryStore(tmp_path)
    digest = store.put(memory_of("a"))
    path, bad = payload_of(store), payload_of(store).read_bytes()
    path.write_bytes(flip(bad, 8 * len(bad) - 3))
    verify = type(store._tiers.disk.open(digest)[0]).verify

    def verify_slowly(payload, *arguments):
        try:
            verify(payload, *arguments)
        except StoreError:
            monkeypatch.undo()
            other.put(memory_of("a"))  # meanwhile, elsewhere
            raise

    monkeypatch.setattr("xattn.store.payload.Payload.verify", verify_slowly)
    assert_same(store.get(digest), memory_of("a"))
    assert store.counters.quarantined == 0
    assert not list(tmp_path.glob("quarantine/*.safetensors"))


def test_changes_of_one_folder_wait_for_each_other(tmp_path):
    store = MemoryStore(tmp_path)
    path = store._tiers.disk.path(store.put(memory_of("a")))
    pid = None
    with files.changing(path.parent):
        pid = os.fork()
        if pid == 0:
            try:
                files.remove_unless(path, files.is_leased)
            finally:
                os._exit(0)
        time.sleep(0.2)
        assert path.exists()
    os.waitpid(pid, 0)
    assert not path.exists()


def test_what_is_removed_is_removed_for_all(tmp_path):
    store, other = MemoryStore(tmp_path), MemoryStore(tmp_path)
    digest = store.put(memory_of("a"))
    assert other.get(digest) is not None
    assert other.get(digest) is not None
    assert other.counters.ram_hits == 1
    store.remove(digest)
    assert other.get(digest) is None


def test_a_memory_that_was_written_to_is_read_again(tmp_path):
    store = MemoryStore(tmp_path)
    digest = store.put(memory_of("a"))
    store.get(digest).states_SD.zero_()
    assert_same(store.get(digest), memory_of("a"))


def test_an_index_that_another_process_replaced_is_left(tmp_path):
    store, other = MemoryStore(tmp_path), MemoryStore(tmp_path)
    store.put(memory_of("a"))
    for file in tmp_path.glob("index-*.sqlite*"):
        file.unlink()
    other.put(memory_of("b"))
    store.put(memory_of("c"))
    assert {row.label for row in other.entries()} == {"a", "b", "c"}
    assert {row.label for row in store.entries()} == {"a", "b", "c"}


def test_a_damaged_index_is_made_again_at_once(tmp_path):
    store = MemoryStore(tmp_path)
    store.put(memory_of("a"))
    store.close()
    [index] = tmp_path.glob("index-?.sqlite")
    index.write_bytes(b"no index at all" * 1000)
    assert [row.label for row in MemoryStore(tmp_path).entries()] == ["a"]


def test_a_budget_belongs_to_the_directory(tmp_path):
    MemoryStore(tmp_path, capacity_bytes=10**6)
    assert MemoryStore(tmp_path).capacity_bytes == 10**6
    MemoryStore(tmp_path, capacity_bytes=2 * 10**6)
    assert MemoryStore(tmp_path).capacity_bytes == 2 * 10**6
    ours = MemoryStore(tmp_path, tenant="ours")
    for name in "abcde":
        ours.put(memory_of(name))
    size = ours.entries()[0].size_bytes
    small = MemoryStore(tmp_path, tenant="small", capacity_bytes=2 * size)
    for name in "abcde":
        small.put(memory_of(name))
    assert (len(ours.entries()), len(small.entries())) == (5, 2)
    assert MemoryStore(tmp_path).capacity_bytes == 2 * 10**6


def test_another_secret_finds_other_entries_and_harms_none(tmp_path):
    ours, theirs = MemoryStore(tmp_path, secret=OURS), MemoryStore(tmp_path, secret=THEIRS)
    digest = ours.put(memory_of("a"))
    assert theirs.get(key_of("a")) is None
    assert theirs.get(digest) is None
    assert MemoryStore(tmp_path).get(digest) is None
    theirs.put(memory_of("a"))
    assert theirs.verify() == (2, [])
    assert ours.counters.quarantined == theirs.counters.quarantined == 0
    assert_same(ours.get(key_of("a")), memory_of("a"))


def test_the_shared_tier_keeps_what_a_wrong_secret_cannot_read(tmp_path):
    url = f"file://{tmp_path / 'shared'}"
    with MemoryStore(tmp_path / "one", cold=url, secret=OURS) as one:
        one.put(memory_of("a"))
    with MemoryStore(tmp_path / "two", cold=url, secret=THEIRS) as two:
        two.get_or_encode(Encoder(), "a")
    with MemoryStore(tmp_path / "three", cold=url, secret=OURS) as three:
        assert_same(three.get(key_of("a")), memory_of("a"))


def test_a_pin_outlives_its_ttl(tmp_path):
    store = MemoryStore(tmp_path)
    pinned, other = (store.put(memory_of(name), ttl_seconds=0.1) for name in "ab")
    store.pin(pinned)
    time.sleep(0.15)
    assert store.get(other) is None
    assert_same(store.get(pinned), memory_of("a"))
    assert store.gc() == 1
    assert [row.digest for row in store.entries()] == [pinned]


def test_damage_is_found_before_a_ttl_is_believed(tmp_path):
    store = MemoryStore(tmp_path, ttl_seconds=1000, ram_bytes=0)
    digest = store.put(memory_of("a"))
    path, content = payload_of(store), payload_of(store).read_bytes()
    place = content.index(b'expires\\":') + len(b'expires\\": ')
    assert place < header_size(content)
    path.write_bytes(content[:place] + b"0" + content[place + 1 :])
    assert store.get(digest) is None
    assert (store.counters.quarantined, store.counters.expired) == (1, 0)


def test_gc_sweeps_what_the_dead_left(tmp_path):
    store = MemoryStore(tmp_path, capacity_bytes=10_000)
    other = MemoryStore(tmp_path, tenant="other")
    kept, theirs = store.put(memory_of("a")), other.put(memory_of("b"))
    left = [
        tmp_path / ".partial-1-a",
        store._tiers.disk.path(kept).with_name(".partial-1-b"),
        other._tiers.disk.path(theirs).with_name(".partial-1-c"),
        other._tiers.disk.folder / "pins" / ".partial-1-d",
        tmp_path / "quarantine" / f"{'0' * 64}-1.safetensors",
        tmp_path / "index-3.sqlite.damaged-1",
    ]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 800)  # of what was set aside, 1000 bytes may stay: the newest
        os.utime(path, (1e9, 1e9))
    fresh = tmp_path / ".partial-2-e"
    fresh.write_bytes(b"being written")
    strange = store._tiers.disk.path("ab" + "0" * 62)
    strange.mkdir(parents=True)
    assert store.gc() == len(left)
    assert not any(path.exists() for path in left)
    assert fresh.exists()
    assert strange.exists()
    assert len(store.entries()) == len(other.entries()) == 1


def test_a_shared_tier_that_cannot_be_written_is_counted_and_said_once(
    tmp_path, caplog, monkeypatch
):
    import fsspec

    def down(*_, **__):
        raise PermissionError("403 Forbidden")

    monkeypatch.setattr(fsspec.filesystem("memory"), "pipe_file", down)
    with caplog.at_level(logging.WARNING):
        store = MemoryStore(tmp_path, cold="memory://read-only")
        for name in "abc":
            store.put(memory_of(name))
        store.close()
    assert store.counters.failures == 3
    assert len(caplog.records) == 1
    assert "403 Forbidden" in caplog.text


def test_clear_clears_the_shared_tier(tmp_path):
    url = f"file://{tmp_path / 'shared'}"
    with MemoryStore(tmp_path / "one", cold=url) as one:
        one.put(memory_of("a"))
    two = MemoryStore(tmp_path / "two", cold=url)
    assert two.clear() == 1
    assert two.get(key_of("a")) is None
    assert not list((tmp_path / "shared").rglob("*.safetensors"))


def test_a_local_disk_that_does_not_answer_is_no_reason_to_encode(tmp_path, monkeypatch):
    url = f"file://{tmp_path / 'shared'}"
    with MemoryStore(tmp_path / "one", cold=url) as one:
        one.put(memory_of("a"))
    store, encoder = MemoryStore(tmp_path / "two", cold=url), Encoder()

    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("xattn.store.files.map_private", broken)
    assert torch.equal(store.get_or_encode(encoder, "a").states_SD, memory_of("a").states_SD)
    assert encoder.encoded == []
    assert store.counters.failures == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ttl_seconds": -1}, "`ttl_seconds` must be above 0"),
        ({"encode_seconds": float("inf")}, "`encode_seconds` must be a number of at least 0"),
        ({"encode_seconds": -1.0}, "`encode_seconds` must be a number of at least 0"),
    ],
)
def test_what_a_put_is_told_has_bounds(tmp_path, options, message):
    store = MemoryStore(tmp_path)
    with pytest.raises(UsageError, match=message):
        store.put(memory_of("a"), **options)
    assert store.entries() == []


def test_details_that_are_no_json_are_not_kept(tmp_path):
    store = MemoryStore(tmp_path)
    with pytest.raises(StoreError, match="its details are no JSON"):
        store.put(replace(memory_of("a"), details={"a": {1, 2}}))
    with pytest.raises(UsageError, match="`secret` must be bytes, but is 'str'"):
        MemoryStore(tmp_path, secret="a text of sixteen")


def test_entries_say_what_their_codec_lost(tmp_path):
    for codec, least, most in (("float32", 0, 0), ("int8", 1e-4, 1e-2), ("int4", 1e-2, 0.2)):
        store = MemoryStore(tmp_path / codec, codec=codec)
        store.put(memory_of("a", 40, 64))
        [row] = store.entries()
        assert least <= row.relative_l2 <= most
        assert (row.largest > 0) == (codec != "float32")


def test_a_memory_of_keys_and_values_has_a_scale_for_each_of_them(tmp_path):
    """Values are far smaller than keys, and those of one layer than another's."""
    size = torch.tensor([100.0, 0.01, 3.0, 0.5]).repeat_interleave(64)
    states_SD = torch.randn(12, 256, generator=torch.Generator().manual_seed(1)) * size
    kept = MemoryStore(tmp_path, codec="int8", ram_bytes=0)
    memory = replace(memory_of("a", 12, 256, preprocessing="kv/1 text/1"), states_SD=states_SD)
    kept.put(memory)
    found_S4K = kept.get(memory.key).states_SD.view(12, 4, 64)
    want_S4K = states_SD.view(12, 4, 64)
    for part in range(4):
        error = (found_S4K[:, part] - want_S4K[:, part]).norm() / want_S4K[:, part].norm()
        assert error < 0.01


def test_entries_of_others_are_not_found(tmp_path):
    store, other = MemoryStore(tmp_path), MemoryStore(tmp_path, tenant="\udc80 strange")
    digest = other.put(memory_of("a"))
    for call in (store.entry, store.pin):
        with pytest.raises(EntryNotFoundError):
            call(digest)
    with pytest.raises(EntryNotFoundError):
        store.export([digest], io.BytesIO())


def test_a_store_without_a_budget_of_its_own_has_the_usual_one(tmp_path):
    MemoryStore(tmp_path)
    (tmp_path / "store.json").write_text(json.dumps({"format": 1}))
    assert MemoryStore(tmp_path).capacity_bytes == 20 * 2**30
