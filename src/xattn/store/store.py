"""Memories at rest: encoded once, kept under the name of their content, given back everywhere.

Three tiers, each with a budget: memories of this process, payloads on the local disk, and a place
that machines share. A read goes down until something is found and fills what it passed on the way;
a write goes to the disk before it is acknowledged, and to the shared place when there is time.

What fails makes things slower, never wrong: an entry that is not what was written is set aside and
encoded again, and a disk, index or tier that does not answer is done without, with one warning.
"""

import errno
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from xattn.counts import CODECS, CodecName
from xattn.errors import (
    CorruptEntryError,
    EntryNotFoundError,
    StoreUnavailableError,
    UnsafeStoreError,
    is_number,
    is_whole,
    require,
    shown,
)
from xattn.memory import Memory, MemoryKey
from xattn.store import bundle, files
from xattn.store.codecs import LOSSLESS
from xattn.store.disk import Disk, require_digest
from xattn.store.index import Row
from xattn.store.payload import Payload, pack
from xattn.store.ram import Ram
from xattn.store.root import default_root, open_root, salt_of
from xattn.store.single_flight import Encodes, Named, SingleFlight
from xattn.store.tiers import StoreCounters, Tiers, Verify

DEFAULT_RAM_BYTES = 256 * 2**20
Verification: tuple[Verify, ...] = ("always", "first", "never")


class MemoryStore:
    """Memories in the directory ``root`` (``~/.cache/xattn`` if not given), for one tenant.

    ``capacity_bytes`` is the budget of the local disk, for all tenants together: it is kept with
    the directory (20 GiB where nobody said), and set by whoever opens it without a tenant; for a
    tenant it bounds its own. ``quota_bytes`` is this tenant's budget, ``ram_bytes`` that of this
    process; entries that save the fewest seconds of encoding per byte, and were not used lately,
    make room. ``codec`` says how states are written: ``float32``, ``bfloat16``, ``float16``,
    ``int8`` or ``int4``. ``secret`` (32 bytes) makes every payload prove that it was written by
    someone who knows it; a store with another secret finds other entries. ``verify`` says when a
    payload's digest is taken again: at every read, at the first in a process, or never.
    ``ttl_seconds`` is how long entries last. ``cold`` is an fsspec URL of a tier that machines
    share, with a budget of ``cold_bytes``.

    Raises :class:`~xattn.errors.UsageError` for a value out of its bounds,
    :class:`~xattn.errors.UnsafeStoreError` where others can write ``root``,
    :class:`~xattn.errors.StoreFormatError` where a newer version made it, and
    :class:`~xattn.errors.StoreUnavailableError` where it cannot be made.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        *,
        capacity_bytes: int | None = None,
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
        require(is_whole(ram_bytes, 0), "ram_bytes", "at least 0", ram_bytes)
        budgets = {"capacity_bytes": capacity_bytes, "quota_bytes": quota_bytes}
        for name, value in (budgets | {"cold_bytes": cold_bytes}).items():
            require(value is None or is_whole(value, 1), name, "at least 1, or None", value)
        require(codec in CODECS, "codec", f"one of {', '.join(CODECS)}", codec)
        require(isinstance(tenant, str), "tenant", "text", tenant)
        if secret is not None:
            require(isinstance(secret, bytes), "secret", "bytes", type(secret).__name__)
            require(len(secret) >= 16, "secret", "16 bytes or more", len(secret))
        require(verify in Verification, "verify", f"one of {', '.join(Verification)}", verify)
        _require_ttl(ttl_seconds)
        require(root is None or os.fspath(root) != "", "root", "a directory", root)
        self.root = Path(default_root() if root is None else root).expanduser().absolute()
        self.codec, self.ttl_seconds = codec, ttl_seconds
        self.tenant, self._secret = tenant, secret
        self._salt = salt_of(tenant, secret)
        whole = open_root(self.root, capacity_bytes, owner=not tenant)
        own = [size for size in (quota_bytes, capacity_bytes if tenant else None) if size]
        disk = Disk.of_tenant(self.root, tenant)
        self._tiers = Tiers(
            disk=disk,
            ram=Ram(ram_bytes),
            cold=None if cold is None else (cold, cold_bytes),
            capacity_bytes=whole,
            quota_bytes=min(own, default=None),
            secret=secret,
            salt=self._salt,
            verify=verify,
            codec=codec,
        )
        self._flight = SingleFlight(
            self._tiers,
            self.key_of,
            lambda memory, seconds: self.put(memory, encode_seconds=seconds),
        )

    @property
    def counters(self) -> StoreCounters:
        """What this object has done."""
        return self._tiers.counters

    @property
    def capacity_bytes(self) -> int:
        """Budget of the local disk."""
        return self._tiers.capacity_bytes

    @capacity_bytes.setter
    def capacity_bytes(self, value: int) -> None:
        require(is_whole(value, 1), "capacity_bytes", "at least 1", value)
        self._tiers.capacity_bytes = value

    @property
    def held_bytes(self) -> int:
        """Bytes of the memories that this process holds."""
        return self._tiers.ram.size_bytes

    def __repr__(self) -> str:
        tenant = f", tenant {self.tenant!r}" if self.tenant else ""
        return f"MemoryStore({str(self.root)!r}, {self.codec}{tenant})"

    def __enter__(self) -> "MemoryStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write down what waits to be written. The store can still be used."""
        self._tiers.note_uses(at_once=True)
        if self._tiers.cold is not None:
            self._tiers.cold.flush()
        self._tiers.index.close()

    # One memory

    def key_of(self, key: MemoryKey, codec: CodecName | None = None) -> MemoryKey:
        """``key`` with this tenant's salt and the codec: what the memory is called in here."""
        return replace(key, tenant=self._salt, codec=codec or self.codec)

    def get(self, key: MemoryKey | str) -> Memory | None:
        """The memory of a key, or of its digest; None where there is none that may be read.

        A key is that of :attr:`codec`, or else of one that loses nothing.

        Raises :class:`~xattn.errors.StoreUnavailableError` where the disk does not answer.
        """
        digests = [key] if isinstance(key, str) else self._names(key)
        found = (self._tiers.find(require_digest(digest)) for digest in digests)
        memory = next((memory for memory in found if memory is not None), None)
        if memory is None:
            self.counters.misses += 1
        return memory

    def _names(self, key: MemoryKey) -> list[str]:
        """What a memory may be called here, the first name first."""
        return [self.key_of(key, codec).digest for codec in dict.fromkeys((self.codec, LOSSLESS))]

    def put(
        self, memory: Memory, *, encode_seconds: float = 0.0, ttl_seconds: float | None = None
    ) -> str:
        """Keep a memory; returns its key here, and only once it is on the disk.

        Raises :class:`~xattn.errors.StoreUnavailableError` where it could not be written; what was
        there before is then still there.
        """
        _require_ttl(ttl_seconds)
        fits = is_number(encode_seconds) and encode_seconds >= 0
        require(fits, "encode_seconds", "a number of at least 0", encode_seconds)
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
        self._put(memory, content)
        return digest

    def _put(self, memory: Memory, content: bytes) -> None:
        budget, digest = self._tiers.budget_bytes, memory.key.digest
        if len(content) > budget:
            raise StoreUnavailableError(
                f"{memory!r} takes {len(content)} bytes, more than the store's {budget}."
            )
        self._tiers.keep(digest, content)
        self.counters.puts += 1
        if self._tiers.cold is not None:
            self._tiers.cold.put_behind(digest, content)

    def get_or_encode(self, model: Encodes, source: Any, **how: Any) -> Memory:
        """The memory of ``source``: from the store, or by one encoder pass that is then kept.

        However many ask at once, in however many processes, one of them encodes. ``how`` are the
        keywords of :meth:`xattn.Model.encode`. Raises what that raises; a store that fails does
        not stop it.
        """
        return self.get_or_encode_prepared(model, [model.prepare(source, **how)])[0]

    def get_or_encode_prepared(self, model: Encodes, prepared: Sequence[Named]) -> list[Memory]:
        """The same for sources that have their names, those missing in batches."""
        return self._flight.memories(model, prepared)

    @contextmanager
    def lease(self, *keys: MemoryKey | str) -> Iterator[None]:
        """While it lasts, in this process and for all others, these entries are not evicted."""
        leases = []
        try:
            for key in keys:
                try:
                    for digest in [key] if isinstance(key, str) else self._names(key):
                        leases.append(files.Lease(self._tiers.disk.path(digest)))
                except OSError as error:
                    # Where nothing can be written, nothing is evicted either.
                    if error.errno not in (errno.EROFS, errno.EACCES):
                        self._tiers.do_without(files.unavailable(self.root, error))
                except UnsafeStoreError as error:
                    self._tiers.do_without(error)
            yield
        finally:
            for lease in leases:
                lease.release()

    # Many memories

    def __contains__(self, key: MemoryKey | str) -> bool:
        digests = [key] if isinstance(key, str) else self._names(key)
        return any(self._tiers.disk.path(digest).exists() for digest in digests)

    def entries(self) -> list[Row]:
        """What this tenant has here, the newest first."""
        self._tiers.note_uses(at_once=True)
        return self._tiers.index.rows(self._tiers.disk.tenant)

    def entry(self, digest: str) -> Row:
        """One entry. Raises :class:`~xattn.errors.EntryNotFoundError`."""
        row = self._tiers.index.get(require_digest(digest))
        if row is None or row.tenant != self._tiers.disk.tenant:
            raise EntryNotFoundError(f"there is no entry {digest}; `xattn cache ls` lists them.")
        return row

    def pin(self, digest: str) -> None:
        """Keep an entry whatever the budget, until :meth:`unpin`."""
        if digest not in self:
            self.entry(digest)
        with files.answering(self.root):
            self._tiers.disk.pin(digest)

    def unpin(self, digest: str) -> None:
        """Let an entry go again when room is needed."""
        with files.answering(self.root):
            self._tiers.disk.unpin(digest)

    def is_pinned(self, digest: str) -> bool:
        """Whether an entry stays whatever the budget."""
        return self._tiers.disk.is_pinned(digest)

    def remove(self, digest: str) -> bool:
        """Remove an entry, here and in the shared tier; whether there was one here."""
        removed = self._remove_here(digest)
        if self._tiers.cold is not None:
            self._tiers.cold.remove(digest)
        return removed

    def clear(self) -> int:
        """Remove this tenant's entries, pinned ones too, then those in the shared tier; how many.

        Raises :class:`~xattn.errors.StoreUnavailableError` where a tier does not answer; what is
        here is gone then.
        """
        digests = list(self._tiers.disk.digests())
        for digest in digests:
            self._remove_here(digest)
        elsewhere = 0 if self._tiers.cold is None else self._tiers.cold.clear()
        return max(len(digests), elsewhere)

    def _remove_here(self, digest: str) -> bool:
        with files.answering(self.root):
            removed = files.remove(self._tiers.disk.path(digest))
            self._tiers.disk.unpin(digest)
        self._tiers.forget(digest)
        self._tiers.indexed(lambda: self._tiers.index.remove([digest]))
        return removed

    def verify(self) -> tuple[int, list[str]]:
        """Read everything; returns how many entries are whole, and those set aside."""
        whole, bad = 0, []
        for digest in list(self._tiers.disk.digests()):
            try:
                with files.answering(self.root):
                    whole += self._tiers.require_whole(digest)
            except CorruptEntryError as error:
                if self._tiers.set_aside(digest, error):
                    bad.append(digest)
        return whole, bad

    def gc(self) -> int:
        """Make the index agree with the disk, remove what expired or does not fit; how many.

        So go partial files of processes that died, and what was set aside a month ago.
        """
        with files.answering(self.root):
            return self._tiers.collect()

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
                found = self._tiers.disk.open(digest)
                if found is None:
                    raise EntryNotFoundError(f"there is no entry {digest} any more.")
                try:
                    found[0].verify(digest, self._secret)
                except CorruptEntryError as error:
                    raise CorruptEntryError(
                        f"{digest} cannot be exported: {error} `xattn cache verify` sets it aside."
                    ) from error
                yield digest, bytes(found[0].content)

        with files.answering(self.root):
            return bundle.write(stream, payloads())

    def import_bundle(self, stream: IO[bytes], *, trust: bool = False) -> list[str]:
        """Take the memories of a bundle; returns their keys here.

        Each is verified before it is taken, and gets this store's tenant and secret; one that is
        here already stays as it is. A store with a secret takes only what was written with it, or
        everything where ``trust`` says so. Raises
        :class:`~xattn.errors.CorruptEntryError` for one that is not what it claims; those before it
        stay.
        """
        taken = []
        for claimed, content in bundle.read(stream):
            try:
                payload = Payload(bytearray(content))
                payload.verify(claimed, None if trust else self._secret)
                memory, header = payload.memory(), payload.header
            except CorruptEntryError as error:
                raise CorruptEntryError(f"the bundle's {shown(claimed, 64)}: {error}") from error
            memory = replace(memory, key=self.key_of(memory.key, header.codec))
            taken.append(memory.key.digest)
            if self._tiers.find(memory.key.digest, len(memory), near=True) is None:
                packed = pack(
                    memory,
                    header.codec,
                    encode_seconds=header.encode_seconds,
                    created=header.created,
                    expires=header.expires,
                    secret=self._secret,
                    lost=header.error,
                )
                self._put(memory, packed)
        return taken


def _require_ttl(ttl_seconds: float | None) -> None:
    fits = ttl_seconds is None or (is_number(ttl_seconds) and ttl_seconds > 0)
    require(fits, "ttl_seconds", "above 0, or None", ttl_seconds)
