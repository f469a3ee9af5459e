"""The nearest tier: memories of this process, evicted as those of the disk are (``index.py``)."""

from collections import OrderedDict
from copy import deepcopy
from dataclasses import dataclass, replace

from xattn.memory import Memory
from xattn.store.disk import Stamp
from xattn.store.files import ThreadLock


@dataclass(frozen=True, kw_only=True, eq=False)
class Held:
    """A memory in this process."""

    memory: Memory
    expires: float | None
    stamp: Stamp | None
    """Of the file that it was read from; None where it came from elsewhere."""
    seconds: float
    """What encoding it took."""
    version: int
    """How often its states had been written to in place: a hit after that is none."""

    def given(self) -> Memory:
        """The memory for one who asks: the states are shared, the rest is a copy."""
        memory = self.memory
        mask_S = None if memory.mask_S is None else memory.mask_S.clone()
        return replace(memory, mask_S=mask_S, details=deepcopy(memory.details))

    @property
    def is_as_read(self) -> bool:
        """Whether nobody has written to the states, which all who ask share."""
        return _version(self.memory) == self.version


def _version(memory: Memory) -> int:
    states_SD = memory.states_SD
    return 0 if states_SD.is_inference() else states_SD._version


class Ram:
    """Memories up to ``capacity_bytes``; safe to use from many threads."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self._held: OrderedDict[str, Held] = OrderedDict()
        self._worth: dict[str, float] = {}
        self._clock, self._size_bytes = 0.0, 0
        self._lock = ThreadLock()

    @property
    def size_bytes(self) -> int:
        """Bytes held."""
        return self._size_bytes

    def get(self, digest: str, now: float) -> Held | None:
        """What is held of a key, unless it has expired or was written to."""
        with self._lock:
            found = self._held.get(digest)
            if found is None:
                return None
            late = found.expires is not None and found.expires < now
            if late or not found.is_as_read:
                self._drop(digest)
                return None
            self._use(digest, found)
            return found

    def put(
        self,
        digest: str,
        memory: Memory,
        *,
        seconds: float,
        expires: float | None,
        stamp: Stamp | None,
    ) -> None:
        """Hold a memory, at the cost of those worth least; one that is too large is not.

        ``seconds`` is what encoding it took: a memory is worth the seconds that it saves per byte.
        """
        with self._lock:
            self._drop(digest)
            if memory.size_bytes > self.capacity_bytes:
                return
            self._held[digest] = Held(
                memory=memory,
                expires=expires,
                stamp=stamp,
                seconds=seconds,
                version=_version(memory),
            )
            self._size_bytes += memory.size_bytes
            self._use(digest, self._held[digest])
            while self._size_bytes > self.capacity_bytes:
                others = (other for other in self._held if other != digest)
                least = min(others, key=self._worth.__getitem__)
                self._clock = max(self._clock, self._worth[least])
                self._drop(least)

    def _use(self, digest: str, held: Held) -> None:
        """Worth as much as when it came, from now on; of equals, the one used longest ago goes."""
        self._held.move_to_end(digest)
        self._worth[digest] = self._clock + held.seconds / max(held.memory.size_bytes, 1)

    def drop(self, digest: str) -> None:
        """Hold it no longer."""
        with self._lock:
            self._drop(digest)

    def _drop(self, digest: str) -> None:
        found = self._held.pop(digest, None)
        if found is not None:
            self._worth.pop(digest, None)
            self._size_bytes -= found.memory.size_bytes
