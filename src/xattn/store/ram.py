"""The nearest tier: memories of this process, the least recently used leaving first."""

import threading
from collections import OrderedDict

from xattn.memory import Memory


class Ram:
    """Memories up to ``capacity_bytes``; safe to use from many threads."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self._held: OrderedDict[str, tuple[Memory, float | None]] = OrderedDict()
        self._size_bytes = 0
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """Bytes held."""
        return self._size_bytes

    def get(self, digest: str, now: float) -> Memory | None:
        """The memory, unless it is not held or has expired."""
        with self._lock:
            found = self._held.get(digest)
            if found is None:
                return None
            memory, expires = found
            if expires is not None and expires < now:
                self._drop(digest)
                return None
            self._held.move_to_end(digest)
            return memory

    def put(self, digest: str, memory: Memory, expires: float | None) -> None:
        """Hold a memory, at the cost of those used longest ago; one that is too large is not."""
        with self._lock:
            self._drop(digest)
            if memory.size_bytes > self.capacity_bytes:
                return
            self._held[digest] = (memory, expires)
            self._size_bytes += memory.size_bytes
            while self._size_bytes > self.capacity_bytes:
                self._drop(next(iter(self._held)))

    def drop(self, digest: str) -> None:
        """Hold it no longer."""
        with self._lock:
            self._drop(digest)

    def clear(self) -> None:
        """Hold nothing."""
        with self._lock:
            self._held.clear()
            self._size_bytes = 0

    def _drop(self, digest: str) -> None:
        found = self._held.pop(digest, None)
        if found is not None:
            self._size_bytes -= found[0].size_bytes
