"""The far tier: any place that fsspec knows, shared by machines, written behind."""

import json
import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from xattn.errors import MissingExtraError, StoreUnavailableError, UsageError
from xattn.store.files import ThreadLock

T = TypeVar("T")

FLUSH_SECONDS = 30.0
READ_SECONDS = 30.0
"""A place that has not answered by then is done without."""
REST_SECONDS = 5.0
"""A place that did not answer is left in peace so long."""
MOST_HEADER_BYTES = 2**20
WAITING_BYTES = 256 * 2**20
"""Payloads that may wait to be written; beyond it they stay on the local disk alone."""


class Cold:
    """Payloads under a URL (``s3://…``, ``file://…``, ``memory://…``).

    Raises :class:`StoreUnavailableError` where the place does not answer; ``on_failure`` is told
    what could not be written behind, from the thread that writes.
    """

    def __init__(
        self,
        url: str,
        folder: str,
        capacity_bytes: int | None,
        on_failure: Callable[[StoreUnavailableError], None],
    ) -> None:
        try:
            import fsspec
        except ImportError as error:
            raise MissingExtraError("fsspec", "store", f"keeping memories at {url}") from error
        try:
            self._system, base = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise UsageError(f"`cold` must be a URL that fsspec knows: {error}.") from error
        self.url, self.capacity_bytes = url, capacity_bytes
        self._base = f"{base.rstrip('/')}/{folder}"
        self._on_failure = on_failure
        self._seconds: dict[str, float] = {}
        """What encoding took, of the payloads whose headers were looked at."""
        self._lock, self._rests_until = ThreadLock(), 0.0
        self._begin()

    def _begin(self) -> None:
        """Nothing waits, and nobody writes: as in a process that has just begun."""
        self._pid = os.getpid()
        self._waiting: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
        self._unwritten, self._waiting_bytes = 0, 0
        self._removed: set[str] = set()
        """Keys whose payloads wait to be written, and are not wanted any more."""
        self._writer: threading.Thread | None = None

    def get(self, digest: str) -> bytes | None:
        """The bytes of a payload, or None; None, too, for a while after it did not answer."""
        if time.monotonic() < self._rests_until:
            return None
        try:
            content = self._asked(lambda: self._system.cat_file(self._path(digest)))
        except FileNotFoundError:
            return None
        except StoreUnavailableError:
            self._rests_until = time.monotonic() + REST_SECONDS
            raise
        if not isinstance(content, bytes | bytearray):
            raise self._unavailable(TypeError(f"it gave a {type(content).__name__}, not bytes"))
        return bytes(content)

    def put_behind(self, digest: str, content: bytes) -> None:
        """Write a payload when there is time for it, and if it fits."""
        most = self.capacity_bytes
        if most is not None and len(content) > most:
            self._fail(f"a payload of {len(content)} bytes is more than its budget of {most}")
            return
        with self._lock:
            if self._pid != os.getpid():  # a fork has no thread, and another's queue
                self._begin()
            fits = not self._unwritten or self._waiting_bytes + len(content) <= WAITING_BYTES
            self._removed.discard(digest)
            if fits:
                self._unwritten += 1
                self._waiting_bytes += len(content)
                self._waiting.put((digest, content))
            if self._writer is None:
                self._writer = threading.Thread(target=self._write, name="xattn-cold", daemon=True)
                self._writer.start()
        if not fits:
            self._fail(f"it is slower than what is written: {WAITING_BYTES} bytes wait already")

    def remove(self, digest: str) -> None:
        """Remove a payload, if it is there, or waits to be."""
        with self._lock:
            if self._unwritten:
                self._removed.add(digest)
        with suppress(FileNotFoundError):
            self._asked(lambda: self._system.rm_file(self._path(digest)))

    def clear(self) -> int:
        """Remove all payloads of this tenant; how many."""
        self.flush()
        try:
            found = self._asked(lambda: list(self._system.find(self._base)))
        except FileNotFoundError:
            return 0
        for path in found:
            with suppress(FileNotFoundError):
                self._asked(partial(self._system.rm_file, path))
        return len(found)

    def flush(self) -> None:
        """Wait until all that waits is written, or has failed, or does not answer in time."""
        until = time.monotonic() + FLUSH_SECONDS
        while self._pid == os.getpid() and self._unwritten and time.monotonic() < until:
            time.sleep(0.005)

    def _asked(self, ask: Callable[[], T]) -> T:
        """What the place says to ``ask``, if it says so in time.

        Raises FileNotFoundError, and :class:`StoreUnavailableError` for all else.
        """
        answers: queue.SimpleQueue[tuple[T | None, Exception | None]] = queue.SimpleQueue()

        def work() -> None:
            try:
                answers.put((ask(), None))
            except Exception as error:  # noqa: BLE001  (a place of strangers may raise anything)
                answers.put((None, error))

        threading.Thread(target=work, name="xattn-cold-read", daemon=True).start()
        try:
            answer, error = answers.get(timeout=READ_SECONDS)
        except queue.Empty as late:
            raise self._unavailable(TimeoutError(f"no answer within {READ_SECONDS:g} s")) from late
        if isinstance(error, FileNotFoundError):
            raise error
        if error is not None:
            raise self._unavailable(error) from error
        return answer  # type: ignore[return-value]  # None only where that is the answer

    def _write(self) -> None:
        while True:
            digest, content = self._waiting.get()
            try:
                if digest not in self._removed:
                    self._write_one(digest, content)
                if digest in self._removed:  # meanwhile, or before
                    with suppress(FileNotFoundError):
                        self._system.rm_file(self._path(digest))
            except Exception as error:  # noqa: BLE001  (a place of strangers may raise anything)
                self._on_failure(self._unavailable(error))
            finally:
                with self._lock:
                    self._unwritten -= 1
                    self._waiting_bytes -= len(content)
                    if not self._unwritten:
                        self._removed.clear()

    def _write_one(self, digest: str, content: bytes) -> None:
        path = self._path(digest)
        self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
        # Under another name first: a reader must not find half a file.
        unfinished = f"{path}.partial-{time.time_ns()}"
        try:
            self._system.pipe_file(unfinished, content)
            self._system.mv(unfinished, path)
        except BaseException:
            with suppress(Exception):  # what failed is said, and not that its rest stayed
                self._system.rm_file(unfinished)
            raise
        if self.capacity_bytes is not None:
            self._make_room(self.capacity_bytes, f"{digest}.safetensors")

    def _make_room(self, capacity_bytes: int, spare: str) -> None:
        """Remove payloads until the rest fits, those worth least first, and not ``spare``.

        Worth are the seconds of encoding that a payload saves per byte, the less the longer ago it
        was written: when it was read, places of this kind do not say.
        """
        found: dict[str, dict[str, Any]] = self._system.find(self._base, detail=True)
        size = sum(int(entry["size"]) for entry in found.values())
        if size <= capacity_bytes:
            return
        now = time.time()

        def worth(name: str) -> float:
            age = max(0.0, now - _written(found[name]))
            return self._seconds_of(name) / max(int(found[name]["size"]), 1) / (1.0 + age)

        for name in sorted(found, key=lambda name: (worth(name), _written(found[name]))):
            if size <= capacity_bytes:
                return
            if not name.endswith(spare):
                self._system.rm_file(name)
                self._seconds.pop(name, None)
                size -= int(found[name]["size"])

    def _seconds_of(self, name: str) -> float:
        """What encoding a payload took, by its header; 0 for what is none, which goes first."""
        if name not in self._seconds:
            try:
                length = int.from_bytes(self._system.cat_file(name, start=0, end=8), "little")
                content = self._system.cat_file(
                    name, start=8, end=8 + min(length, MOST_HEADER_BYTES)
                )
                header = json.loads(json.loads(content)["__metadata__"]["xattn"])
                self._seconds[name] = float(header["encode_seconds"])
            except (ValueError, KeyError, TypeError, OverflowError):
                self._seconds[name] = 0.0
        return self._seconds[name]

    def _path(self, digest: str) -> str:
        return f"{self._base}/{digest[:2]}/{digest}.safetensors"

    def _fail(self, why: str) -> None:
        self._on_failure(StoreUnavailableError(f"{self.url}: {why}."))

    def _unavailable(self, error: Exception) -> StoreUnavailableError:
        return StoreUnavailableError(f"{self.url}: {str(error) or type(error).__name__}.")


def _written(entry: dict[str, Any]) -> float:
    """Unix time at which an object was written, as the file system says it; 0 if it does not."""
    written = entry.get("mtime") or entry.get("LastModified") or entry.get("created")
    written = written or entry.get("updated") or 0.0
    if isinstance(written, str):
        written = datetime.fromisoformat(written)
    return written.timestamp() if isinstance(written, datetime) else float(written)
