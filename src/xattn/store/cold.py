"""The far tier: any place that fsspec knows, shared by machines, written behind."""

import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from xattn.errors import MissingExtraError, StoreUnavailableError, UsageError

FLUSH_SECONDS = 30.0
WAITING = 256
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
        self._waiting: queue.Queue[tuple[str, bytes] | None] = queue.Queue(WAITING)
        self._writer: threading.Thread | None = None
        self._lock, self._pid = threading.Lock(), os.getpid()
        self._on_failure = on_failure

    def get(self, digest: str) -> bytes | None:
        """The bytes of a payload, or None."""
        try:
            content: bytes = self._system.cat_file(self._path(digest))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._unavailable(error) from error
        return content

    def put_behind(self, digest: str, content: bytes) -> None:
        """Write a payload when there is time for it."""
        with self._lock:
            if self._pid != os.getpid():  # a fork has no thread, and another's queue
                self._pid, self._writer = os.getpid(), None
                self._waiting = queue.Queue(WAITING)
            if self._writer is None:
                self._writer = threading.Thread(target=self._write, name="xattn-cold", daemon=True)
                self._writer.start()
        try:
            self._waiting.put_nowait((digest, content))
        except queue.Full:
            self._on_failure(
                StoreUnavailableError(
                    f"{self.url} is slower than what is written: {WAITING} payloads wait already."
                )
            )

    def remove(self, digest: str) -> None:
        """Remove a payload, if it is there, or waits to be."""
        self.flush()
        try:
            self._system.rm_file(self._path(digest))
        except FileNotFoundError:
            return
        except Exception as error:
            raise self._unavailable(error) from error

    def clear(self) -> int:
        """Remove all payloads of this tenant; how many."""
        self.flush()
        try:
            found = self._system.find(self._base)
            for path in found:
                self._system.rm_file(path)
        except FileNotFoundError:
            return 0
        except Exception as error:
            raise self._unavailable(error) from error
        return len(found)

    def flush(self) -> None:
        """Wait until all that waits is written, or has failed, or does not answer in time."""
        if self._pid != os.getpid() or self._writer is None:
            return
        until = time.monotonic() + FLUSH_SECONDS
        while self._waiting.unfinished_tasks and time.monotonic() < until:
            time.sleep(0.005)

    def _write(self) -> None:
        while True:
            item = self._waiting.get()
            try:
                if item is None:
                    return
                self._write_one(*item)
            except Exception as error:  # noqa: BLE001  (a store of strangers may raise anything)
                self._on_failure(self._unavailable(error))
            finally:
                self._waiting.task_done()

    def _write_one(self, digest: str, content: bytes) -> None:
        path = self._path(digest)
        self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
        # Under another name first: a reader must not find half a file.
        partial = f"{path}.partial-{time.time_ns()}"
        self._system.pipe_file(partial, content)
        self._system.mv(partial, path)
        if self.capacity_bytes is not None:
            self._make_room(self.capacity_bytes)

    def _make_room(self, capacity_bytes: int) -> None:
        """Remove those written longest ago until the rest fits."""
        found: dict[str, dict[str, Any]] = self._system.find(self._base, detail=True)
        held = sorted(found.values(), key=_age)
        size = sum(int(entry["size"]) for entry in held)
        for entry in held:
            if size <= capacity_bytes:
                return
            self._system.rm_file(entry["name"])
            size -= int(entry["size"])

    def _path(self, digest: str) -> str:
        return f"{self._base}/{digest[:2]}/{digest}.safetensors"

    def _unavailable(self, error: Exception) -> StoreUnavailableError:
        return StoreUnavailableError(f"{self.url}: {str(error) or type(error).__name__}.")


def _age(entry: dict[str, Any]) -> str:
    """When an object was written, as file systems say it; equal kinds sort by time."""
    written = entry.get("created") or entry.get("LastModified") or entry.get("updated")
    return str(written or entry["name"])
