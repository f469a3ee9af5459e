"""Memories at rest: encoded once, kept under the name of their content, given back everywhere.

Three tiers, each with a budget: memories of this process, payloads on the local disk, and a place
that machines share. A read goes down until something is found and fills what it passed on the way;
a write goes to the disk before it is acknowledged, and to the shared place when there is time.

What fails makes things slower, never wrong: an entry that is not what was written is set aside and
encoded again, and a disk, index or tier that does not answer is done without, with one warning.
"""

import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from xattn.errors import (
    CorruptEntryError,
    EntryNotFoundError,
    StoreError,
    StoreFormatError,
    StoreUnavailableError,
    is_number,
    is_whole,
    require,
    shown,
)
from xattn.memory import Memory, MemoryKey, Span, digest_of
from xattn.store import bundle, files
from xattn.store.codecs import CODECS, CodecName
from xattn.store.cold import Cold
from xattn.store.disk import Disk, Stamp, every_row, require_digest
from xattn.store.index import Index, Row
from xattn.store.payload import Payload, pack
from xattn.store.ram import Ram

log = logging.getLogger("xattn.store")

FORMAT = 1
DEFAULT_CAPACITY_BYTES = 20 * 2**30
DEFAULT_RAM_BYTES = 256 * 2**20
STRIPES = 4096
"""Locks that encoders share: a key has one of them, so that each is encoded once."""
INDEX_REST_SECONDS = 5.0
TOUCH_SECONDS = 5.0
"""Uses are noted in the index this often, and when the store is closed."""

Verify = Literal["always", "first", "never"]
Verification: tuple[Verify, ...] = ("always", "first", "never")


class Named(Protocol):
    """A source that has its key and is not encoded yet."""

    @property
    def key(self) -> MemoryKey:
        """The key of the memory that it makes."""
        ...

    @property
    def spans(self) -> Sequence[Span]:
        """Where in this source each position comes from."""
        ...

    @property
    def label(self) -> str:
        """What a person would call it."""
        ...

    @property
    def details(self) -> dict[str, Any]:
        """What its input side wants to remember."""
        ...


class Encodes(Protocol):
    """What the store needs of a model."""

    @property
    def prepare(self) -> Callable[..., Any]:
        """Names a source without encoding it."""
        ...

    @property
    def encode_prepared(self) -> Callable[[Sequence[Any]], list[Memory]]:
        """Encodes named sources."""
        ...


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


class MemoryStore:
    """Memories in the directory ``root`` (``~/.cache/xattn`` if not given), for one tenant.

    ``capacity_bytes`` is the budget of the local disk, for all tenants together, ``ram_bytes`` that
    of this process, ``quota_bytes`` this tenant's own; entries that save the fewest seconds of
    encoding per byte, and were not used lately, make room. ``codec`` says how states are written:
    ``float32``, ``bfloat16``, ``float16``, ``int8`` or ``int4``. ``secret`` (32 bytes) makes every
    payload prove that it was written by someone who knows it. ``verify`` says when a payload's
    digest is taken again: at every read, at the first in a process, or never. ``ttl_seconds`` is
    how long entries last. ``cold`` is an fsspec URL of a tier that machines share, with a budget of
    ``cold_bytes``.

    Raises :class:`~xattn.errors.UsageError` for a value out of its bounds,
    :class:`~xattn.errors.UnsafeStoreError` where others can write ``root``,
    :class:`~xattn.errors.StoreFormatError` where a newer version made it, and
    :class:`~xattn.errors.StoreUnavailableError` where it cannot be made.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        *,
        capacity_bytes: int = DEFAULT_CAPACITY_BYTES,
        ram_bytes: int = DEFAULT_RAM_BYTES,
        codec: CodecName = "float32",
        tenant: str = "",
        quota_bytes: int | None = None,
        secret: bytes | None = None,
        verify: Verify = "first",
        ttl_seconds: float | None = None,
        cold: str | None = None,
        cold_bytes: int | None = None,
    ) -> None:
        require(is_whole(capacity_bytes, 1), "capacity_bytes", "at least 1", capacity_bytes)
        require(is_whole(ram_bytes, 0), "ram_bytes", "at least 0", ram_bytes)
        for name, value in (("quota_bytes", quota_bytes), ("cold_bytes", cold_bytes)):
            require(value is None or is_whole(value, 1), name, "at least 1, or None", value)
        require(codec in CODECS, "codec", f"one of {', '.join(CODECS)}", codec)
        require(isinstance(tenant, str), "tenant", "text", tenant)
        secret_bytes = None if secret is None else len(secret)
        require(secret is None or len(secret) >= 16, "secret", "16 bytes or more", secret_bytes)
        require(verify in Verification, "verify", f"one of {', '.join(Verification)}", verify)
        fits = ttl_seconds is None or (is_number(ttl_seconds) and ttl_seconds > 0)
        require(fits, "ttl_seconds", "above 0, or None", ttl_seconds)
        self.root = Path(default_root() if root is None else root).expanduser().absolute()
        self.capacity_bytes, self.quota_bytes = capacity_bytes, quota_bytes
        self.codec, self.verify_when, self.ttl_seconds = codec, verify, ttl_seconds
        self.tenant, self._secret = tenant, secret
        self._salt = digest_of(tenant.encode(), secret or b"") if tenant else ""
        self.counters = StoreCounters()
        files.make_private(self.root)
        _require_format(self.root / "store.json")
        self._disk = Disk.of_tenant(self.root, tenant)
        self._index = Index(self.root / "index.sqlite", lambda: every_row(self.root))
        self._ram = Ram(ram_bytes)
        self._cold = None if cold is None else Cold(cold, self._disk.tenant, cold_bytes)
        self._verified: dict[str, Stamp] = {}
        self._uses: Counter[str] = Counter()
        self._touched = time.monotonic()
        self._warned: set[str] = set()
        self._index_rests_until = 0.0
        self._index_is_behind = False
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        tenant = f", tenant {self.tenant!r}" if self.tenant else ""
        return f"MemoryStore({str(self.root)!r}, {self.codec}{tenant})"

    def __enter__(self) -> "MemoryStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write down what waits to be written. The store can still be used."""
        self._note_uses(at_once=True)
        if self._cold is not None:
            self._cold.flush()
        self._index.close()

    # One memory

    def key_of(self, key: MemoryKey) -> MemoryKey:
        """``key`` with this tenant's salt: what the memory is called in here."""
        return replace(key, tenant=self._salt)

    def get(self, key: MemoryKey | str) -> Memory | None:
        """The memory of a key, or of its digest; None where there is none that may be read.

        Raises :class:`~xattn.errors.StoreUnavailableError` where the disk does not answer.
        """
        digest = key if isinstance(key, str) else self.key_of(key).digest
        require_digest(digest)
        memory = self._find(digest)
        if memory is None:
            self.counters.misses += 1
        return memory

    def put(
        self, memory: Memory, *, encode_seconds: float = 0.0, ttl_seconds: float | None = None
    ) -> str:
        """Keep a memory; returns its key here, and only once it is on the disk.

        Raises :class:`~xattn.errors.StoreUnavailableError` where it could not be written; what was
        there before is then still there.
        """
        memory = replace(memory, key=self.key_of(memory.key))
        digest, now = memory.key.digest, time.time()
        lasts = self.ttl_seconds if ttl_seconds is None else ttl_seconds
        content = pack(
            memory,
            self.codec,
            encode_seconds=encode_seconds,
            created=now,
            expires=None if lasts is None else now + lasts,
            secret=self._secret,
        )
        budget = min(self.capacity_bytes, self.quota_bytes or self.capacity_bytes)
        if len(content) > budget:
            raise StoreUnavailableError(
                f"{memory!r} takes {len(content)} bytes, more than the store's {budget}."
            )
        self._keep(digest, content)
        self.counters.puts += 1
        if self._cold is not None:
            self._cold.put_behind(digest, content)
        return digest

    def get_or_encode(self, model: Encodes, source: Any, **how: Any) -> Memory:
        """The memory of ``source``: from the store, or by one encoder pass that is then kept.

        However many ask at once, in however many processes, one of them encodes. ``how`` are the
        keywords of :meth:`xattn.Model.encode`. Raises what that raises; a store that fails does
        not stop it.
        """
        return self.get_or_encode_prepared(model, [model.prepare(source, **how)])[0]

    def get_or_encode_prepared(self, model: Encodes, prepared: Sequence[Named]) -> list[Memory]:
        """The same for sources that have their names, those missing in one batch."""
        digests = [self.key_of(item.key).digest for item in prepared]
        named = dict(zip(digests, prepared, strict=True))
        found: dict[str, Memory] = {}
        self._collect(named, found)
        if len(found) < len(named):
            with self._one_encoder([digest for digest in named if digest not in found]):
                self._collect(named, found)  # somebody may have been faster
                self._encode_missing(model, named, found)
        return [
            replace(found[digest], spans=item.spans, label=item.label, details=item.details)
            for digest, item in zip(digests, prepared, strict=True)
        ]

    @contextmanager
    def lease(self, *keys: MemoryKey | str) -> Iterator[None]:
        """While it lasts, in this process and for all others, these entries are not evicted."""
        leases = []
        try:
            for key in keys:
                digest = key if isinstance(key, str) else self.key_of(key).digest
                try:
                    leases.append(files.Lease(self._disk.path(digest)))
                except OSError:
                    continue  # not on the disk: nothing that could be evicted
            yield
        finally:
            for lease in leases:
                lease.release()

    # Many memories

    def __contains__(self, key: MemoryKey | str) -> bool:
        digest = key if isinstance(key, str) else self.key_of(key).digest
        return self._disk.path(digest).exists()

    def entries(self) -> list[Row]:
        """What this tenant has here, the newest first."""
        self._note_uses(at_once=True)
        return self._index.rows(self._disk.tenant)

    def entry(self, digest: str) -> Row:
        """One entry. Raises :class:`~xattn.errors.EntryNotFoundError`."""
        row = self._index.get(require_digest(digest))
        if row is None or row.tenant != self._disk.tenant:
            raise EntryNotFoundError(f"there is no entry {digest}; `xattn cache ls` lists them.")
        return row

    def pin(self, digest: str) -> None:
        """Keep an entry whatever the budget, until :meth:`unpin`."""
        if digest not in self:
            self.entry(digest)
        with files.answering(self.root):
            self._disk.pin(digest)

    def unpin(self, digest: str) -> None:
        """Let an entry go again when room is needed."""
        with files.answering(self.root):
            self._disk.unpin(digest)

    def is_pinned(self, digest: str) -> bool:
        """Whether an entry stays whatever the budget."""
        return self._disk.is_pinned(digest)

    def remove(self, digest: str) -> bool:
        """Remove an entry; whether there was one."""
        with files.answering(self.root):
            removed = files.remove(self._disk.path(digest))
        self._forget(digest)
        self._indexed(lambda: self._index.remove([digest]))
        if self._cold is not None:
            self._cold.remove(digest)
        return removed

    def clear(self) -> int:
        """Remove this tenant's entries, pinned ones too; how many."""
        digests = list(self._disk.digests())
        for digest in digests:
            self.unpin(digest)
            self.remove(digest)
        return len(digests)

    def verify(self) -> tuple[int, list[str]]:
        """Read everything; returns how many entries are whole, and those set aside."""
        whole, bad = 0, []
        for digest in list(self._disk.digests()):
            try:
                with files.answering(self.root):
                    found = self._disk.open(digest)
                if found is None:
                    continue
                found[0].verify(digest, self._secret)
                whole += 1
            except CorruptEntryError as error:
                self._set_aside(digest, error)
                bad.append(digest)
        return whole, bad

    def gc(self) -> int:
        """Make the index agree with the disk, remove what expired or does not fit; how many."""
        before = self.counters.evictions + self.counters.expired
        with files.answering(self.root):
            self._disk.sweep()
            self._catch_up()
            for row in self._index.rows(self._disk.tenant):
                if row.expires is not None and row.expires < time.time():
                    self._evict(row, expired=True)
            self._make_room()
        return self.counters.evictions + self.counters.expired - before

    # To and from other stores

    def export(self, digests: Sequence[str], stream: IO[bytes]) -> int:
        """Write entries into a bundle; how many.

        Raises :class:`~xattn.errors.EntryNotFoundError` before anything is written where one is
        missing, and :class:`~xattn.errors.CorruptEntryError` where one is not what was written.
        """
        for digest in digests:
            self.entry(digest)

        def payloads() -> Iterator[tuple[str, bytes]]:
            for digest in digests:
                found = self._disk.open(digest)
                if found is None:
                    raise EntryNotFoundError(f"there is no entry {digest} any more.")
                found[0].verify(digest, self._secret)
                yield digest, self._disk.path(digest).read_bytes()

        return bundle.write(stream, payloads())

    def import_bundle(self, stream: IO[bytes]) -> list[str]:
        """Take the memories of a bundle; returns their keys here.

        Each is verified before it is taken, and gets this store's tenant and secret. Raises
        :class:`~xattn.errors.CorruptEntryError` for one that is not what it claims; those before it
        stay.
        """
        taken = []
        incoming = self.root / "incoming"
        for claimed, content in bundle.read(stream):
            path = incoming / f"{os.getpid()}-{time.time_ns()}"
            try:
                with files.answering(path):
                    files.write_whole(path, content)
                    payload = Payload(path)
                payload.verify(claimed)
                memory, seconds = payload.memory(), payload.header.encode_seconds
                taken.append(self.put(memory, encode_seconds=seconds))
            except CorruptEntryError as error:
                raise CorruptEntryError(f"the bundle's {shown(claimed, 64)}: {error}") from error
            finally:
                files.remove(path)
        return taken

    # Inside

    def _catch_up(self) -> None:
        """Make the index agree with this tenant's payloads."""
        known = {row.digest for row in self._index.rows(self._disk.tenant)}
        present = set(self._disk.digests())
        self._index.remove(known - present)
        lost = [self._disk.row(digest) for digest in present - known]
        self._index.put([row for row in lost if row is not None])

    def _find(self, digest: str) -> Memory | None:
        memory = self._ram.get(digest, time.time())
        if memory is not None:
            self.counters.ram_hits += 1
            self._note_use(digest)
            return memory
        memory = self._read(digest)
        if memory is not None:
            self.counters.disk_hits += 1
            self._note_use(digest)
            return memory
        return self._fetch(digest)

    def _read(self, digest: str, *, from_afar: bool = False) -> Memory | None:
        """The memory on the local disk, or None; what is not what was written is set aside.

        What has just come ``from_afar`` is verified whatever the setting.
        """
        try:
            found = self._disk.open(digest)
            if found is None:
                return None
            payload, stamp = found
            expires = payload.header.expires
            if expires is not None and expires < time.time():
                self.counters.expired += 1
                return None
            if from_afar or self._must_verify(digest, stamp):
                payload.verify(digest, self._secret)
                self._verified[digest] = stamp
            memory = payload.memory()
        except CorruptEntryError as error:
            self._set_aside(digest, error)
            return None
        except OSError as error:
            raise files.unavailable(self._disk.path(digest), error) from error
        self.counters.encode_seconds_saved += payload.header.encode_seconds
        self._ram.put(digest, memory, expires)
        return memory

    def _must_verify(self, digest: str, stamp: Stamp) -> bool:
        if self.verify_when == "first":
            return self._verified.get(digest) != stamp
        return self.verify_when == "always"

    def _fetch(self, digest: str) -> Memory | None:
        """The memory of the shared tier, kept on the disk from now on, or None."""
        if self._cold is None:
            return None
        content = self._cold.get(digest)
        if content is None:
            return None
        self._keep(digest, content)
        memory = self._read(digest, from_afar=True)
        if memory is None:
            self._cold.remove(digest)
        else:
            self.counters.cold_hits += 1
        return memory

    def _keep(self, digest: str, content: bytes) -> None:
        """Put a payload on the disk and into the index, and make room for it."""
        with files.answering(self._disk.path(digest)):
            self._disk.write(digest, content)
        self._forget(digest)
        row = self._disk.row(digest)
        if row is not None:
            self._indexed(lambda: self._index.put([row]))
        self._indexed(self._make_room)

    def _make_room(self) -> None:
        """Evict until the budgets hold, or nothing is left that may go."""
        for tenant, budget in ((self._disk.tenant, self.quota_bytes), (None, self.capacity_bytes)):
            if budget is None:
                continue
            tried: set[str] = set()
            while self._index.size_bytes(tenant) > budget:
                rows = self._index.cheapest(tenant, limit=len(tried) + 64)
                row = next((row for row in rows if row.digest not in tried), None)
                if row is None:
                    break
                tried.add(row.digest)
                self._evict(row)

    def _evict(self, row: Row, *, expired: bool = False) -> bool:
        """Remove an entry of any tenant, unless it is pinned or leased; whether it is gone."""
        disk = Disk(self.root, row.tenant)
        if disk.is_pinned(row.digest) and not expired:
            return False
        if not files.remove_unless_leased(disk.path(row.digest)):
            return False
        self._index.evicted(row.digest)
        self._forget(row.digest)
        if expired:
            self.counters.expired += 1
        else:
            self.counters.evictions += 1
        return True

    def _forget(self, digest: str) -> None:
        self._ram.drop(digest)
        self._verified.pop(digest, None)

    def _set_aside(self, digest: str, error: CorruptEntryError) -> None:
        self.counters.quarantined += 1
        self._forget(digest)
        with files.answering(self._disk.quarantine_folder):
            target = self._disk.quarantine(digest)
        log.warning("entry %s was set aside, and is encoded again: %s (%s)", digest, error, target)
        self._indexed(lambda: self._index.remove([digest]))

    def _collect(self, named: dict[str, Named], found: dict[str, Memory]) -> None:
        for digest in named:
            if digest not in found:
                try:
                    memory = self._find(digest)
                except StoreError as error:
                    self._do_without(error)
                    continue
                if memory is not None:
                    found[digest] = memory

    def _encode_missing(
        self, model: Encodes, named: dict[str, Named], found: dict[str, Memory]
    ) -> None:
        missing = [digest for digest in named if digest not in found]
        if not missing:
            return
        self.counters.misses += len(missing)
        started = time.perf_counter()
        memories = model.encode_prepared([named[digest] for digest in missing])
        seconds = (time.perf_counter() - started) / len(missing)
        for digest, memory in zip(missing, memories, strict=True):
            found[digest] = replace(memory, key=self.key_of(memory.key))
            try:
                self.put(memory, encode_seconds=seconds)
            except StoreError as error:
                self._do_without(error)

    @contextmanager
    def _one_encoder(self, digests: Sequence[str]) -> Iterator[None]:
        """Hold the locks of these keys, so that nobody else encodes them meanwhile."""
        stripes = sorted({int(digest[:8], 16) % STRIPES for digest in digests})
        with ExitStack() as stack:
            try:
                for stripe in stripes:
                    stack.enter_context(files.locked(self.root / "locks" / f"{stripe:03x}"))
            except OSError as error:
                self._do_without(files.unavailable(self.root / "locks", error))
            yield

    def _do_without(self, error: StoreError) -> None:
        """Count a failure, and say so the first time."""
        self.counters.failures += 1
        kind = type(error).__name__
        if kind not in self._warned:
            self._warned.add(kind)
            log.warning("the memory store does not answer and is done without: %s", error)

    def _indexed(self, work: Callable[[], None]) -> None:
        """Do what needs the index; without it the entry is there all the same.

        One that does not answer is left in peace for a while, and told later what it missed.
        """
        if time.monotonic() < self._index_rests_until:
            self.counters.failures += 1
            return
        try:
            if self._index_is_behind:
                self._catch_up()
                self._index_is_behind = False
            work()
        except StoreUnavailableError as error:
            self._index_rests_until = time.monotonic() + INDEX_REST_SECONDS
            self._index_is_behind = True
            self._do_without(error)
        except OSError as error:
            self._do_without(files.unavailable(self.root, error))

    def _note_use(self, digest: str) -> None:
        with self._lock:
            self._uses[digest] += 1
        self._note_uses(at_once=False)

    def _note_uses(self, *, at_once: bool) -> None:
        with self._lock:
            late = time.monotonic() - self._touched > TOUCH_SECONDS
            if not self._uses or not (at_once or late):
                return
            uses, self._uses = dict(self._uses), Counter()
            self._touched = time.monotonic()
        self._indexed(lambda: self._index.touch(uses))


def default_root() -> Path:
    """``~/.cache/xattn``, or where ``XDG_CACHE_HOME`` says."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "xattn"


def _require_format(path: Path) -> None:
    """Write the store's version where there is none; raise where it is another."""
    try:
        if not path.exists():
            files.write_whole(path, json.dumps({"format": FORMAT}).encode())
            return
        found = json.loads(path.read_bytes())["format"]
    except OSError as error:
        raise files.unavailable(path, error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise StoreFormatError(
            f"{path} does not say which version of a store it is; remove the directory."
        ) from error
    if found != FORMAT:
        raise StoreFormatError(
            f"{path.parent} is a store of format {found}, and this xattn reads {FORMAT}; "
            "update xattn, or give another directory."
        )
