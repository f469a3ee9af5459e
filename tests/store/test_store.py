"""What the store keeps and gives back, and what it is told."""

import io
import logging
import stat
import threading
import time
from dataclasses import replace

import pytest
import torch
from making import Encoder, assert_same, key_of, memory_of
from scale import times

import xattn
from xattn.errors import (
    CorruptEntryError,
    EntryNotFoundError,
    StoreError,
    StoreFormatError,
    StoreUnavailableError,
    UnsafeStoreError,
    UsageError,
)
from xattn.store import CODECS, MemoryStore


@pytest.fixture
def store(tmp_path):
    with MemoryStore(tmp_path / "store") as store:
        yield store


def again(store, **options):
    """Another store object on the same directory, as another process has it."""
    return MemoryStore(store.root, **options)


def test_what_is_put_is_given_back(store):
    memory = memory_of("a")
    digest = store.put(memory, encode_seconds=2.0)
    assert_same(store.get(memory.key), memory)
    assert_same(again(store).get(digest), memory)
    assert store.get(key_of("b")) is None
    assert memory.key in store
    assert key_of("b") not in store
    assert (store.counters.puts, store.counters.hits, store.counters.misses) == (1, 1, 1)


def test_masks_come_back(store):
    mask = torch.tensor([True, True, False, True, False, False])
    memory = replace(memory_of("a"), mask_S=mask)
    store.put(memory)
    assert torch.equal(again(store).get(memory.key).mask_S, mask)


def test_nothing_is_encoded_twice(store):
    encoder = Encoder()
    first = store.get_or_encode(encoder, "a")
    assert encoder.encoded == ["a"]
    assert_same(store.get_or_encode(encoder, "a"), first)
    other = again(store)
    assert_same(other.get_or_encode(encoder, "a"), first)
    assert encoder.encoded == ["a"]
    assert (other.counters.disk_hits, other.counters.misses) == (1, 0)


def test_a_batch_encodes_what_is_missing_together_and_once(store):
    encoder = Encoder()
    store.get_or_encode(encoder, "b")
    prepared = [encoder.prepare(name) for name in "abcac"]
    found = store.get_or_encode_prepared(encoder, prepared)
    assert [memory.label for memory in found] == list("abcac")
    assert encoder.encoded == ["b", "a", "c"]


def test_a_hit_has_the_place_of_the_source_that_asked(store):
    encoder = Encoder()
    store.get_or_encode(encoder, "a")
    elsewhere = replace(encoder.prepare("a"), label="the same elsewhere", details={"page": 3})
    [found] = store.get_or_encode_prepared(encoder, [elsewhere])
    assert (found.label, found.details) == ("the same elsewhere", {"page": 3})
    assert encoder.encoded == ["a"]


def test_sixteen_threads_encode_once(store):
    encoder, barrier, found = Encoder(seconds=0.05), threading.Barrier(16), []

    def ask():
        barrier.wait()
        found.append(store.get_or_encode(encoder, "a"))

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert encoder.encoded == ["a"]
    assert len(found) == 16
    for memory in found:
        assert_same(memory, found[0])


@pytest.mark.parametrize("codec", CODECS)
def test_codecs_come_back_in_the_dtype_of_the_key(tmp_path, codec):
    store = MemoryStore(tmp_path, codec=codec, ram_bytes=0)
    memory = memory_of("a", positions=40, width=72)
    store.put(memory)
    found = store.get(memory.key)
    assert found.states_SD.dtype == torch.float32
    error = (found.states_SD - memory.states_SD).norm() / memory.states_SD.norm()
    worst = {"float32": 0, "bfloat16": 3e-3, "float16": 4e-4, "int8": 9e-3, "int4": 0.09}[codec]
    assert error <= worst
    assert (error == 0) == (codec == "float32")


def test_dear_entries_outlive_cheap_ones(tmp_path):
    encoder = Encoder(positions=200)
    size = len_of_payload(tmp_path, encoder)
    store = MemoryStore(tmp_path / "s", capacity_bytes=10 * size + size // 2, ram_bytes=0)
    for name in "abcde":
        store.put(memory_of(name, 200), encode_seconds=100.0)
    for name in "0123456789":
        store.put(memory_of(name, 200), encode_seconds=0.001)
    held = {row.label for row in store.entries()}
    assert set("abcde") <= held
    assert len(held) == 10
    assert store.counters.evictions == 5
    assert all(store.get(key_of(name)) is None for name in set("0123456789") - held)


def len_of_payload(tmp_path, encoder):
    probe = MemoryStore(tmp_path / "probe")
    probe.get_or_encode(encoder, "a")
    return probe.entries()[0].size_bytes


def test_what_is_used_outlives_what_is_not(tmp_path):
    encoder = Encoder(positions=200)
    size = len_of_payload(tmp_path, encoder)
    store = MemoryStore(tmp_path / "s", capacity_bytes=4 * size + size // 2)
    for name in "abcdefgh":
        store.put(memory_of(name, 200), encode_seconds=1.0)
        store.get(key_of("a"))
        store.entries()  # notes the uses
    assert "a" in {row.label for row in store.entries()}


def test_pins_and_leases_are_never_evicted(tmp_path):
    encoder = Encoder(positions=200)
    size = len_of_payload(tmp_path, encoder)
    store = MemoryStore(tmp_path / "s", capacity_bytes=3 * size + size // 2)
    pinned, leased = (store.put(memory_of(name, 200)) for name in "pq")
    store.pin(pinned)
    with again(store).lease(leased):
        for name in "abcdef":
            store.put(memory_of(name, 200), encode_seconds=9.0)
        assert pinned in store
        assert leased in store
    store.unpin(pinned)
    for name in "ghijkl":
        store.put(memory_of(name, 200), encode_seconds=9.0)
    assert pinned not in store
    assert leased not in store


def test_a_memory_too_large_for_the_store_is_refused_and_harms_nothing(tmp_path):
    store = MemoryStore(tmp_path / "s", capacity_bytes=4000)
    store.put(memory_of("small"))
    with pytest.raises(StoreUnavailableError, match=r"takes \d+ bytes, more than the store's 4000"):
        store.put(memory_of("large", positions=500))
    assert store.get(key_of("small")) is not None


def test_entries_expire(tmp_path):
    store = MemoryStore(tmp_path, ttl_seconds=0.2)
    store.put(memory_of("a"))
    store.put(memory_of("b"), ttl_seconds=100)
    assert store.get(key_of("a")) is not None
    time.sleep(0.25)
    assert store.get(key_of("a")) is None
    assert again(store).get(key_of("a")) is None
    assert store.get(key_of("b")) is not None
    assert store.gc() == 1
    assert [row.label for row in store.entries()] == ["b"]


def test_a_tenant_sees_its_own(tmp_path):
    """The same documents, and nothing of one is the other's."""
    count = times(50, 1000)
    ours, theirs = (MemoryStore(tmp_path, tenant=name) for name in ("ours", "../theirs"))
    digests = {ours.put(memory_of(str(n))) for n in range(count)}
    assert all(theirs.get(key_of(str(n))) is None for n in range(count))
    assert all(theirs.get(digest) is None for digest in digests)
    assert theirs.entries() == []
    with pytest.raises(EntryNotFoundError):
        theirs.entry(next(iter(digests)))
    with pytest.raises(EntryNotFoundError):
        theirs.pin(next(iter(digests)))
    encoder = Encoder()
    theirs.get_or_encode(encoder, "0")
    assert encoder.encoded == ["0"]
    assert {path.parent for path in tmp_path.rglob("tenants/*")} == {tmp_path / "tenants"}
    assert theirs.clear() == 1
    assert len(ours.entries()) == count


def test_a_quota_is_the_tenants_own(tmp_path):
    size = len_of_payload(tmp_path, Encoder(positions=200))
    small = MemoryStore(tmp_path / "s", tenant="small", quota_bytes=2 * size + size // 2)
    large = MemoryStore(tmp_path / "s", tenant="large")
    for name in "abcdef":
        small.put(memory_of(name, 200))
        large.put(memory_of(name, 200))
    assert (len(small.entries()), len(large.entries())) == (2, 6)


def test_the_shared_tier_is_read_through_and_written_behind(tmp_path):
    url, encoder = f"file://{tmp_path / 'shared'}", Encoder()
    with MemoryStore(tmp_path / "one", cold=url) as one:
        want = one.get_or_encode(encoder, "a")
    with MemoryStore(tmp_path / "two", cold=url) as two:
        assert_same(two.get_or_encode(encoder, "a"), want)
        assert two.counters.cold_hits == 1
        assert_same(two.get_or_encode(encoder, "a"), want)
        assert two.counters.ram_hits == 1
    assert encoder.encoded == ["a"]
    with MemoryStore(tmp_path / "two") as without:
        assert_same(without.get(want.key), want)


def test_the_shared_tier_has_a_budget(tmp_path):
    url = f"file://{tmp_path / 'shared'}"
    with MemoryStore(tmp_path / "one", cold=url, cold_bytes=10_000) as one:
        for n in range(20):
            one.put(memory_of(str(n), 40))
    held = [path.stat().st_size for path in (tmp_path / "shared").rglob("*.safetensors")]
    assert held
    assert sum(held) <= 10_000


def test_a_shared_tier_that_lies_is_found_out(tmp_path):
    url, encoder = f"file://{tmp_path / 'shared'}", Encoder()
    with MemoryStore(tmp_path / "one", cold=url) as one:
        for name in "ab":
            one.get_or_encode(encoder, name)
    first, second = sorted((tmp_path / "shared").rglob("*.safetensors"))
    first.write_bytes(second.read_bytes())
    with MemoryStore(tmp_path / "two", cold=url, verify="never") as two:
        found = {name: two.get_or_encode(encoder, name) for name in "ab"}
        for name, memory in found.items():
            assert_same(memory, replace(memory_of(name), details={}))
        assert two.counters.quarantined >= 1


def test_a_shared_tier_that_does_not_answer_is_done_without(tmp_path, caplog, monkeypatch):
    import fsspec

    store = MemoryStore(tmp_path / "one", cold="memory://somewhere")
    system = fsspec.filesystem("memory")

    def down(*_, **__):
        raise ConnectionError("no route to host")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(system, "cat_file", down)
        encoder = Encoder()
        for name in "abc":
            store.get_or_encode(encoder, name)
        assert encoder.encoded == ["a", "b", "c"]
        assert store.counters.failures == 1  # it is left in peace for a while
        assert len(caplog.records) == 1
        assert "no route to host" in caplog.text
    store._tiers.cold._rests_until = 0.0
    store.get_or_encode(encoder, "d")
    store.close()
    assert MemoryStore(tmp_path / "two", cold="memory://somewhere").get(key_of("d")) is not None


def test_the_root_is_private(tmp_path):
    root = tmp_path / "store"
    MemoryStore(root).put(memory_of("a"))
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    for path in root.rglob("*"):
        assert not path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH), path
    root.chmod(0o770)
    with pytest.raises(UnsafeStoreError, match=r"can be written by others.*chmod 700"):
        MemoryStore(root)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(UnsafeStoreError, match="is a link"):
        MemoryStore(link)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity_bytes": 0}, "`capacity_bytes` must be at least 1, or None, but is 0"),
        ({"capacity_bytes": -5}, "`capacity_bytes` must be at least 1, or None, but is -5"),
        ({"capacity_bytes": 1.5}, "`capacity_bytes`"),
        ({"ram_bytes": -1}, "`ram_bytes` must be at least 0"),
        ({"quota_bytes": 0}, "`quota_bytes`"),
        ({"codec": "int3"}, "`codec` must be one of float32, .*int4, but is 'int3'"),
        ({"verify": "sometimes"}, "`verify` must be one of always, first, never"),
        ({"ttl_seconds": 0}, "`ttl_seconds` must be above 0"),
        ({"secret": b"short"}, "`secret` must be 16 bytes or more, but is 5"),
        ({"tenant": 3}, "`tenant` must be text"),
        ({"cold": "nowhere://x"}, "`cold` must be a URL that fsspec knows"),
    ],
)
def test_options_out_of_bounds_are_named(tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        MemoryStore(tmp_path, **options)


def test_a_file_is_no_store(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreUnavailableError, match="is a file; a store is a directory"):
        MemoryStore(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_store_of_a_newer_version_is_left_alone(tmp_path):
    MemoryStore(tmp_path)
    (tmp_path / "store.json").write_text('{"format": 99}')
    with pytest.raises(StoreFormatError, match="is a store of format 99, and this xattn reads 1"):
        MemoryStore(tmp_path)


@pytest.mark.parametrize("digest", ["", "a", "../" * 20 + "x", "A" * 64, "/etc/passwd", "\0" * 64])
def test_a_key_that_is_none_leads_nowhere(store, digest):
    for call in (store.get, store.pin, store.remove, store.entry):
        with pytest.raises(UsageError, match="64 hexadecimal characters"):
            call(digest)


def test_the_public_name(tmp_path):
    assert isinstance(xattn.MemoryStore(tmp_path), MemoryStore)


def exported(store, *digests):
    stream = io.BytesIO()
    assert store.export(digests, stream) == len(digests)
    return stream.getvalue()


def test_a_bundle_takes_memories_elsewhere(store, tmp_path):
    memories = [memory_of(name) for name in "ab"]
    content = exported(store, *[store.put(memory, encode_seconds=2.0) for memory in memories])
    other = MemoryStore(tmp_path / "other", tenant="t", secret=b"s" * 32)
    with pytest.raises(CorruptEntryError, match="not written with this store's secret"):
        other.import_bundle(io.BytesIO(content))
    assert len(other.import_bundle(io.BytesIO(content), trust=True)) == 2
    for memory in memories:
        assert_same(again(other, tenant="t", secret=b"s" * 32).get(memory.key), memory)
    assert {row.encode_seconds for row in other.entries()} == {2.0}
    genuine = replace(memories[0], states_SD=memories[0].states_SD + 1)
    fresh = MemoryStore(tmp_path / "fresh")
    fresh.put(genuine)
    fresh.import_bundle(io.BytesIO(content))
    assert_same(fresh.get(genuine.key), genuine)  # what is here already stays


def test_a_bundle_takes_the_loss_along(tmp_path):
    coarse = MemoryStore(tmp_path / "coarse", codec="int4")
    content = exported(coarse, coarse.put(memory_of("a"), ttl_seconds=1000))
    fine = MemoryStore(tmp_path / "fine")
    fine.import_bundle(io.BytesIO(content))
    [entry] = fine.entries()
    assert entry.codec == "int4"
    assert entry.expires is not None
    assert fine.get(key_of("a")) is None
    assert MemoryStore(tmp_path / "fine", codec="int4").get(key_of("a")) is not None


def test_a_bundle_that_lies_is_refused(store, tmp_path):
    first, second = (store.put(memory_of(name)) for name in "ab")
    content = exported(store, first, second)
    swapped = content.replace(first.encode(), b"?" * 64, 1).replace(
        second.encode(), first.encode(), 1
    )
    other = MemoryStore(tmp_path / "other")
    with pytest.raises(CorruptEntryError, match="another memory than its name says"):
        other.import_bundle(io.BytesIO(swapped))
    assert other.entries() == []
    lie = content.replace(first.encode(), b"../../../../etc/passwd".ljust(64, b"/"), 1)
    with pytest.raises(CorruptEntryError, match=r"bundle's '\.\./\.\."):
        other.import_bundle(io.BytesIO(lie))
    for cut in (0, 5, len(content) // 2, len(content) - 1):
        with pytest.raises(CorruptEntryError):
            other.import_bundle(io.BytesIO(content[:cut]))
    with pytest.raises(EntryNotFoundError):
        store.export(["f" * 64], io.BytesIO())


def test_a_loss_is_chosen_by_who_reads(tmp_path):
    encoder = Encoder()
    coarse = MemoryStore(tmp_path, codec="int4").get_or_encode(encoder, "a")
    assert not torch.equal(coarse.states_SD, memory_of("a").states_SD)
    fine = MemoryStore(tmp_path).get_or_encode(encoder, "a")
    assert torch.equal(fine.states_SD, memory_of("a").states_SD)
    assert encoder.encoded == ["a", "a"]
    # What lost nothing is good enough for everybody.
    MemoryStore(tmp_path, codec="int4").get_or_encode(encoder, "a")
    assert encoder.encoded == ["a", "a"]


@pytest.mark.parametrize("codec", CODECS)
def test_the_first_time_is_no_better_than_the_next(tmp_path, codec):
    encoder = Encoder()
    first = MemoryStore(tmp_path, codec=codec).get_or_encode(encoder, "a")
    again = MemoryStore(tmp_path, codec=codec).get_or_encode(encoder, "a")
    assert torch.equal(first.states_SD, again.states_SD)
    assert encoder.encoded == ["a"]


@pytest.mark.parametrize(("value", "codec"), [(1e5, "float16"), (float("nan"), "int8")])
def test_what_a_codec_cannot_hold_is_not_kept(tmp_path, value, codec):
    memory = memory_of("a")
    memory.states_SD[2, 3] = value
    store = MemoryStore(tmp_path, codec=codec)
    with pytest.raises(StoreError, match=f"cannot be kept as {codec}"):
        store.put(memory)
    assert store.entries() == []
