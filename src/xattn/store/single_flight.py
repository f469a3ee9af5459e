"""One encoder pass per key, however many ask at once, in however many threads and processes.

Who finds a key missing takes its lock, looks again, and encodes; who waits for the lock finds the
memory then. The lock of a process that dies is free, and the next one encodes. (The single flight
of Go's ``golang.org/x/sync/singleflight``, across processes.)
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Protocol

from xattn.errors import StoreError, UnsafeStoreError
from xattn.memory import Memory, MemoryKey, Span
from xattn.store import files
from xattn.store.codecs import LOSSLESS
from xattn.store.payload import as_kept
from xattn.store.tiers import Tiers

BATCH = 32
"""Sources that are encoded together, and kept before the next ones are."""
ENCODER_SECONDS = 600.0
"""Who waits for another's encoder so long takes it for one that hangs, and encodes itself."""
STRIPES = 4096
"""Locks that encoders share: a key has one of them, so that each is encoded once."""


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


class SingleFlight:
    """Memories from the tiers of a store, and from an encoder where those have none.

    ``key_of`` is what the store calls a key, and ``put`` keeps a memory, given the seconds that it
    took. A store that fails is done without.
    """

    def __init__(
        self,
        tiers: Tiers,
        key_of: Callable[..., MemoryKey],
        put: Callable[[Memory, float], object],
    ) -> None:
        self._tiers, self._key_of, self._put = tiers, key_of, put
        self._own = threading.local()
        """Locks that this thread holds: an encoder may itself ask the store."""

    def memories(self, model: Encodes, prepared: Sequence[Named]) -> list[Memory]:
        """A memory for each source, with that source's places and name. Raises as ``model``."""
        digests = [self._key_of(item.key).digest for item in prepared]
        named = dict(zip(digests, prepared, strict=True))
        found: dict[str, Memory] = {}
        self._collect(named, found)
        missing = [digest for digest in named if digest not in found]
        for start in range(0, len(missing), BATCH):
            some = {digest: named[digest] for digest in missing[start : start + BATCH]}
            with self._one_encoder(list(some)):
                self._collect(some, found, near=True)  # somebody may have been faster
                self._encode_missing(model, some, found)
        return [
            replace(found[digest], spans=item.spans, label=item.label, details=item.details)
            for digest, item in zip(digests, prepared, strict=True)
        ]

    def _collect(
        self, named: dict[str, Named], found: dict[str, Memory], *, near: bool = False
    ) -> None:
        for digest, item in named.items():
            if digest in found:
                continue
            try:
                memory = self._find(digest, item, near=near)
            except StoreError as error:
                self._tiers.do_without(error)
                continue
            if memory is not None:
                found[digest] = memory

    def _encode_missing(
        self, model: Encodes, named: dict[str, Named], found: dict[str, Memory]
    ) -> None:
        missing = [digest for digest in named if digest not in found]
        if not missing:
            return
        self._tiers.counters.misses += len(missing)
        started = time.perf_counter()
        memories = model.encode_prepared([named[digest] for digest in missing])
        seconds = (time.perf_counter() - started) / len(missing)
        for digest, memory in zip(missing, memories, strict=True):
            try:
                self._put(memory, seconds)
                # The first time is no better than the times after it: what a codec loses is lost.
                memory = as_kept(memory, self._tiers.codec)
            except StoreError as error:
                self._tiers.do_without(error)
            found[digest] = replace(memory, key=self._key_of(memory.key))

    def _find(self, digest: str, item: Named, *, near: bool) -> Memory | None:
        """Under its own name, or as it is without the loss that the codec would bring."""
        positions = len(item.spans)
        memory = self._tiers.find(digest, positions, near=near)
        if memory is None and self._tiers.codec != LOSSLESS:
            whole = self._key_of(item.key, LOSSLESS).digest
            memory = self._tiers.find(whole, positions, near=near)
        return memory

    @contextmanager
    def _one_encoder(self, digests: Sequence[str]) -> Iterator[None]:
        """Hold the locks of these keys, so that nobody else encodes them meanwhile."""
        held: set[int] = self._own.__dict__.setdefault("stripes", set())
        stripes = sorted({int(digest[:8], 16) % STRIPES for digest in digests} - held)
        with ExitStack() as stack:
            stack.callback(held.difference_update, stripes)
            held.update(stripes)
            try:
                folder = files.require_real(self._tiers.root, "locks")
                for stripe in stripes:
                    lock = files.locked(folder / f"{stripe:03x}", ENCODER_SECONDS)
                    stack.enter_context(lock)
            except OSError as error:
                self._tiers.do_without(files.unavailable(self._tiers.root / "locks", error))
            except UnsafeStoreError as error:
                self._tiers.do_without(error)
            yield
