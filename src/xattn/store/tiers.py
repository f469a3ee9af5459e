"""Where a memory may be, from near to far, and what happens where a place does not answer."""

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from xattn.counts import CodecName
from xattn.errors import (
    CorruptEntryError,
    StoreError,
    StoreFormatError,
    StoreUnavailableError,
    UnsafeStoreError,
)
from xattn.memory import Memory
from xattn.store import files
from xattn.store.cold import Cold
from xattn.store.disk import Disk, Stamp, every_row, every_tenant, sweep, trim_quarantine
from xattn.store.index import Index, Row
from xattn.store.payload import Header, Payload
from xattn.store.ram import Ram

log = logging.getLogger("xattn.store")

INDEX_REST_SECONDS = 5.0
"""An index that did not answer is left in peace so long."""
TOUCH_SECONDS = 5.0
"""Uses are noted in the index this often, and when the store is closed."""
QUARANTINE_SHARE = 0.1
"""Of the budget of the disk, what was set aside may take at most."""

Verify = Literal["always", "first", "never"]


@dataclass
class StoreCounters:
    """What one :class:`MemoryStore` object has done."""

    ram_hits: int = 0
    disk_hits: int = 0
    cold_hits: int = 0
    misses: int = 0
    puts: int = 0
    evictions: int = 0
    expired: int = 0
    quarantined: int = 0
    """Entries that were not what was written, set aside."""
    failures: int = 0
    """Times that the disk, the index or a tier did not answer and was done without."""
    encode_seconds_saved: float = 0.0

    @property
    def hits(self) -> int:
        """Memories that were given back and not encoded."""
        return self.ram_hits + self.disk_hits + self.cold_hits


class Tiers:
    """The places of one store: RAM, disk with its index, and a shared one.

    A read goes from near to far and fills what it passed; a write is on the disk before it is
    acknowledged. Raises :class:`StoreUnavailableError` where the disk does not answer.
    """

    def __init__(
        self,
        *,
        disk: Disk,
        ram: Ram,
        cold: tuple[str, int | None] | None,
        capacity_bytes: int,
        quota_bytes: int | None,
        secret: bytes | None,
        salt: str,
        verify: Verify,
        codec: CodecName,
    ) -> None:
        self.disk, self.ram = disk, ram
        self.cold = None if cold is None else Cold(cold[0], disk.tenant, cold[1], self.do_without)
        self.root, self._salt = disk.root, salt
        self.index = Index(self.root, lambda: every_row(self.root))
        self.capacity_bytes, self.quota_bytes = capacity_bytes, quota_bytes
        self.verify_when, self._secret, self.codec = verify, secret, codec
        self.counters = StoreCounters()
        self._verified: dict[str, Stamp] = {}
        self._uses: Counter[str] = Counter()
        self._touched = time.monotonic()
        self._warned: set[str] = set()
        self._index_rests_until = 0.0
        self._index_is_behind, self._caught_up = False, False
        self._lock = files.ThreadLock()

    def find(
        self, digest: str, positions: int | None = None, *, near: bool = False
    ) -> Memory | None:
        """The memory from the nearest place that has it, or None.

        ``positions`` is how many it must have, where that is known. The shared tier is not asked
        where only what is ``near`` may have changed.
        """
        memory = self._held(digest, positions)
        if memory is not None:
            self.counters.ram_hits += 1
            self._note_use(digest)
            return memory
        try:
            memory = self._read(digest, positions)
        except StoreUnavailableError as error:
            if self.cold is None or near:
                raise
            self.do_without(error)  # another tier may have it
        if memory is not None:
            self.counters.disk_hits += 1
            self._note_use(digest)
            return memory
        return None if near else self._fetch(digest, positions)

    def _held(self, digest: str, positions: int | None) -> Memory | None:
        """The memory that this process holds, if the disk still has what it was read from."""
        if self.verify_when == "always":
            return None  # what is in memory was not read
        held = self.ram.get(digest, time.time())
        if held is None:
            return None
        try:
            same = held.stamp is None or held.stamp == self.disk.stamp(digest)
        except OSError:
            same = True  # the disk does not answer, and need not
        if same and positions in (None, len(held.memory)):
            return held.given()
        self.forget(digest)
        return None

    def _read(self, digest: str, positions: int | None, *, again: bool = False) -> Memory | None:
        """The memory on the local disk, or None; what is not what was written is set aside."""
        try:
            found = self.disk.open(digest)
            if found is None:
                return None
            payload, stamp = found
            if self._is_anothers(payload, digest):
                return None
            if self._must_verify(digest, stamp):
                payload.verify(digest, self._secret)
                self._verified[digest] = stamp
            header, memory = payload.header, _sized(payload, positions)
            if _is_late(header) and not self.disk.is_pinned(digest):
                self.counters.expired += 1
                return None
        except CorruptEntryError as error:
            if self.set_aside(digest, error, positions) or again:
                return None
            return self._read(digest, positions, again=True)
        except OSError as error:
            raise files.unavailable(self.disk.root, error) from error
        self.counters.encode_seconds_saved += header.encode_seconds
        self._hold(digest, memory, header, stamp)
        return memory

    def _is_anothers(self, payload: Payload, digest: str) -> bool:
        """Whether it is whole and belongs to a store with another tenant or secret."""
        key = payload.header.key
        return key.tenant != self._salt and key.digest == digest

    def require_whole(self, digest: str, positions: int | None = None) -> bool:
        """Read an entry, all of it; whether there is one.

        Raises :class:`CorruptEntryError` where it is not what was written.
        """
        found = self.disk.open(digest)
        if found is None:
            return False
        payload = found[0]
        payload.verify(digest, None if self._is_anothers(payload, digest) else self._secret)
        _sized(payload, positions)
        return True

    def _hold(self, digest: str, memory: Memory, header: Header, stamp: Stamp | None) -> None:
        seconds, expires = header.encode_seconds, header.expires
        self.ram.put(digest, memory, seconds=seconds, expires=expires, stamp=stamp)

    def _must_verify(self, digest: str, stamp: Stamp) -> bool:
        if self.verify_when == "first":
            return self._verified.get(digest) != stamp
        return self.verify_when == "always"

    def _fetch(self, digest: str, positions: int | None) -> Memory | None:
        """The memory of the shared tier, verified, and kept on the disk from now on; or None.

        What is there belongs to all machines: what this one cannot use is left where it is.
        """
        content = None if self.cold is None else self.cold.get(digest)
        if content is None:
            return None
        try:
            payload = Payload(bytearray(content))
            payload.verify(digest, self._secret)
            header, memory = payload.header, _sized(payload, positions)
        except StoreFormatError:
            return None
        except CorruptEntryError as error:
            self.counters.quarantined += 1
            log.warning("entry %s of the shared tier is not used: %s", digest, error)
            return None
        if _is_late(header):
            self._remove_elsewhere(digest)
            return None
        self.counters.cold_hits += 1
        self.counters.encode_seconds_saved += header.encode_seconds
        stamp = None
        if len(content) <= self.budget_bytes:
            try:
                self.keep(digest, content)
                with files.answering(self.root):
                    stamp = self.disk.stamp(digest)
            except StoreUnavailableError as error:
                self.do_without(error)
        self._hold(digest, memory, header, stamp)
        return memory

    def _remove_elsewhere(self, digest: str) -> None:
        """Remove an entry from the shared tier, if there is one that answers."""
        if self.cold is None:
            return
        try:
            self.cold.remove(digest)
        except StoreUnavailableError as error:
            self.do_without(error)

    @property
    def budget_bytes(self) -> int:
        """What one entry may take at most."""
        return min(self.capacity_bytes, self.quota_bytes or self.capacity_bytes)

    def keep(self, digest: str, content: bytes) -> None:
        """Put a payload on the disk and into the index, and make room for it."""
        with files.answering(self.disk.path(digest)):
            self.disk.write(digest, content)
        self.forget(digest)
        row = self.disk.row(digest)
        if row is not None:
            self.indexed(lambda: self.index.put([row]))
        self.indexed(lambda: self.make_room(spare=digest))

    def make_room(self, *, spare: str = "") -> None:
        """Evict until the budgets hold, or nothing is left that may go; not the entry ``spare``.

        The first time in this object, what the index was never told of is counted too: a process
        may have died between writing a payload and saying so.
        """
        if not self._caught_up:
            self.catch_up()
            self._caught_up = True
        for tenant, budget in ((self.disk.tenant, self.quota_bytes), (None, self.capacity_bytes)):
            if budget is None or self.index.size_bytes(tenant) <= budget:
                continue
            for row in chain(self.index.expired(tenant), self.index.cheapest(tenant)):
                if row.digest == spare:
                    continue  # it has just been acknowledged
                if self.evict(row) and self.index.size_bytes(tenant) <= budget:
                    break

    def evict(self, row: Row, *, expired: bool = False) -> bool:
        """Remove an entry of any tenant, unless it is pinned or leased; whether it is gone."""
        disk = Disk(self.root, row.tenant)
        try:
            if not disk.remove_unless_in_use(row.digest):
                return False
        except (OSError, UnsafeStoreError) as error:
            what = error if isinstance(error, StoreError) else files.unavailable(self.root, error)
            self.do_without(what)
            return False
        self.index.evicted(row.digest)
        self.forget(row.digest)
        if expired:
            self.counters.expired += 1
        else:
            self.counters.evictions += 1
        return True

    def collect(self) -> int:
        """Make the index agree with the disk, remove what expired or does not fit; how many."""
        before = self.counters.evictions + self.counters.expired
        swept = sweep(self.root) + self._trim_quarantine()
        self.catch_up()
        for row in self.index.expired(self.disk.tenant):
            self.evict(row, expired=True)
        self.make_room()
        return swept + self.counters.evictions + self.counters.expired - before

    def _trim_quarantine(self) -> int:
        return trim_quarantine(self.root, int(self.capacity_bytes * QUARANTINE_SHARE))

    def forget(self, digest: str) -> None:
        """Hold nothing of an entry in this process."""
        self.ram.drop(digest)
        self._verified.pop(digest, None)

    def set_aside(
        self, digest: str, error: CorruptEntryError, positions: int | None = None
    ) -> bool:
        """Quarantine an entry that is not what was written; False if it is whole by now."""
        self.forget(digest)

        def is_bad() -> bool:
            try:
                return not self.require_whole(digest, positions)
            except CorruptEntryError:
                return True

        with files.answering(self.disk.quarantine_folder):
            target = self.disk.quarantine(digest, is_bad)
            if target is None:
                return False
            self._trim_quarantine()
        self.counters.quarantined += 1
        log.warning("entry %s was set aside, and is encoded again: %s (%s)", digest, error, target)
        self.indexed(lambda: self.index.remove([digest]))
        return True

    def catch_up(self) -> None:
        """Make the index agree with the payloads, those of all tenants."""
        self.index.check()
        known = {(row.tenant, row.digest, row.size_bytes) for row in self.index.rows()}
        present = {
            (disk.tenant, digest, size)
            for disk in every_tenant(self.root)
            for digest, size in disk.sizes()
        }
        self.index.remove(digest for _, digest, _ in known - present)
        lost = [Disk(self.root, tenant).row(digest) for tenant, digest, _ in present - known]
        self.index.put([row for row in lost if row is not None])

    def do_without(self, error: StoreError) -> None:
        """Count a failure, and say so the first time."""
        self.counters.failures += 1
        kind = type(error).__name__
        with self._lock:
            first = kind not in self._warned
            self._warned.add(kind)
        if first:
            log.warning("the memory store is done without: %s", error)

    def indexed(self, work: Callable[[], None]) -> None:
        """Do what needs the index; without it the entry is there all the same.

        One that does not answer is left in peace for a while, and told later what it missed.
        """
        if time.monotonic() < self._index_rests_until:
            self.counters.failures += 1
            return
        try:
            if self._index_is_behind:
                self.catch_up()
                self._index_is_behind = False
            work()
        except StoreUnavailableError as error:
            self._index_rests_until = time.monotonic() + INDEX_REST_SECONDS
            self._index_is_behind = True
            self.do_without(error)
        except OSError as error:
            self.do_without(files.unavailable(self.root, error))

    def _note_use(self, digest: str) -> None:
        with self._lock:
            self._uses[digest] += 1
        self.note_uses(at_once=False)

    def note_uses(self, *, at_once: bool) -> None:
        """Tell the index what was used, ``at_once`` or if it was not told for a while."""
        with self._lock:
            late = time.monotonic() - self._touched > TOUCH_SECONDS
            if not self._uses or not (at_once or late):
                return
            uses, self._uses = dict(self._uses), Counter()
            self._touched = time.monotonic()
        self.indexed(lambda: self.index.touch(uses))


def _is_late(header: Header) -> bool:
    return header.expires is not None and header.expires < time.time()


def _sized(payload: Payload, positions: int | None) -> Memory:
    """The memory; :class:`CorruptEntryError` where it has another number of positions."""
    memory = payload.memory()
    if positions not in (None, len(memory)):
        raise CorruptEntryError(f"it has {len(memory)} positions, and its source {positions}.")
    return memory
