"""The local tier: one payload per file, under the tenant that it belongs to."""

import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from xattn.errors import CorruptEntryError, StoreFormatError, UsageError, shown
from xattn.memory import digest_of
from xattn.store import files
from xattn.store.index import Row
from xattn.store.payload import Header, Payload

SUFFIX = ".safetensors"
PARTIAL_SECONDS = 3600.0
"""A partial file of this age was left by a process that died."""
QUARANTINE_SECONDS = 30 * 86400.0
"""What was set aside can be looked at for so long."""
MOST_SET_ASIDE = 100
"""Files that are kept of what was set aside, the newest."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """What tells one version of a file from another without reading it."""

    inode: int
    size_bytes: int
    changed_ns: int
    """When the system saw it change last, which nobody can put back."""

    @classmethod
    def of(cls, status: os.stat_result) -> "Stamp":
        """What the system says of a file."""
        return cls(inode=status.st_ino, size_bytes=status.st_size, changed_ns=status.st_ctime_ns)


def require_digest(value: str) -> str:
    """``value``; :class:`UsageError` unless it is a digest, and so leads nowhere as a path."""
    if not _DIGEST.fullmatch(str(value)):
        raise UsageError(
            f"a memory's key must be 64 hexadecimal characters, but is {shown(value)} instead."
        )
    return value


class Disk:
    """Payloads of one tenant. OSError is passed on as it comes."""

    def __init__(self, root: Path, folder: str) -> None:
        self.root, self.tenant = root, folder

    @property
    def folder(self) -> Path:
        """What is the tenant's; :class:`UnsafeStoreError` where it leads elsewhere."""
        return files.require_real(self.root, "tenants", self.tenant)

    @property
    def quarantine_folder(self) -> Path:
        """Where bad entries are set aside; :class:`UnsafeStoreError` where it leads elsewhere."""
        return files.require_real(self.root, "quarantine")

    @classmethod
    def of_tenant(cls, root: Path, tenant: str) -> "Disk":
        """That of a tenant, whatever is in the name."""
        return cls(
            root, digest_of(tenant.encode("utf-8", "surrogatepass"))[:24] if tenant else "default"
        )

    def path(self, digest: str) -> Path:
        """Where the payload of a key is, or would be.

        Raises :class:`UnsafeStoreError` where a folder on the way to it leads elsewhere.
        """
        folder = files.require_real(self.root, "tenants", self.tenant, require_digest(digest)[:2])
        return folder / f"{digest}{SUFFIX}"

    def open(self, digest: str) -> tuple[Payload, Stamp] | None:
        """The payload, unverified, or None; one of another format's version is none, too."""
        try:
            payload, status = Payload.open(self.path(digest))
        except (FileNotFoundError, StoreFormatError):
            return None
        return payload, Stamp.of(status)

    def stamp(self, digest: str) -> Stamp | None:
        """That of the payload which is there now, or None."""
        try:
            return Stamp.of(self.path(digest).lstat())
        except FileNotFoundError:
            return None

    def write(self, digest: str, content: bytes) -> None:
        """Put a payload where its key says."""
        files.write_whole(self.path(digest), content)

    def quarantine(self, digest: str, is_bad: Callable[[], bool]) -> Path | None:
        """Set an entry aside, where it can be looked at and is never read again.

        None where it is no longer there, or no longer bad: somebody has written it anew.
        """
        folder = self.quarantine_folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        target = folder / f"{digest}-{time.time_ns()}{SUFFIX}"
        path = self.path(digest)
        with files.changing(path.parent):
            if not is_bad():
                return None
            try:
                os.replace(path, target)
            except FileNotFoundError:
                return None
        return target

    # Pins are files, so that they outlive the index.

    def pin(self, digest: str) -> None:
        """Keep the entry whatever the budget."""
        with files.changing(self.path(digest).parent):
            files.write_whole(self._pin(digest), b"")

    def unpin(self, digest: str) -> bool:
        """Let the entry go when room is needed; whether it was pinned."""
        return files.remove(self._pin(digest))

    def is_pinned(self, digest: str) -> bool:
        """Whether it stays whatever the budget."""
        return self._pin(digest).exists()

    def _pin(self, digest: str) -> Path:
        folder = files.require_real(self.root, "tenants", self.tenant, "pins")
        return folder / require_digest(digest)

    def remove_unless_in_use(self, digest: str) -> bool:
        """Remove a payload that is neither pinned nor leased; whether it is gone."""
        return files.remove_unless(
            self.path(digest), lambda path: self.is_pinned(digest) or files.is_leased(path)
        )

    # All of them

    def digests(self) -> Iterator[str]:
        """Every key that has a payload."""
        for digest, _ in self.sizes():
            yield digest

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Every key that has a payload, and its bytes."""
        for folder in sorted(_within(self.folder, "[0-9a-f][0-9a-f]")):
            for path in sorted(_within(folder, f"*{SUFFIX}")):
                status = _status(path)
                ours = _DIGEST.fullmatch(path.stem) and folder.name == path.stem[:2]
                if ours and status is not None and stat.S_ISREG(status.st_mode):
                    yield path.stem, status.st_size

    def row(self, digest: str) -> Row | None:
        """What the index should say of an entry, from the payload itself."""
        try:
            found = self.open(digest)
        except (CorruptEntryError, OSError):
            return None  # it is found out, and counted, when somebody asks for it
        return None if found is None else row_of(digest, self.tenant, found[0].header, found[1])


def row_of(digest: str, tenant: str, header: Header, stamp: Stamp) -> Row:
    """The index's row for a payload."""
    return Row(
        digest=digest,
        tenant=tenant,
        size_bytes=stamp.size_bytes,
        encode_seconds=float(header.encode_seconds),
        modality=header.key.modality,
        codec=header.codec,
        positions=header.positions,
        label=header.label,
        created=float(header.created),
        expires=None if header.expires is None else float(header.expires),
        used=float(header.created),
        relative_l2=header.error.relative_l2,
        largest=header.error.largest,
    )


def every_row(root: Path) -> Iterator[Row]:
    """Rows for all payloads of all tenants: what an index that was lost is made of again."""
    for disk in every_tenant(root):
        for digest in disk.digests():
            row = disk.row(digest)
            if row is not None:
                yield row


def every_tenant(root: Path) -> list[Disk]:
    """The tenants that have something here."""
    folders = sorted(_within(root / "tenants"))
    return [Disk(root, folder.name) for folder in folders if not folder.is_symlink()]


def sweep(root: Path) -> int:
    """Remove what processes left that died while they wrote; how many files."""
    now = time.time()
    tenants = [tenant for tenant in _within(root / "tenants") if tenant.is_dir()]
    folders = [root, root / "quarantine", root / "locks"]
    folders += [folder for tenant in tenants for folder in _within(tenant)]
    left = [
        partial
        for folder in folders
        for partial in _within(folder, f"{files.PARTIAL}*")
        if (status := _status(partial)) and now - status.st_mtime > PARTIAL_SECONDS
    ]
    return sum(map(_unlinked, left))


def trim_quarantine(root: Path, most: int) -> int:
    """Remove what was set aside long ago, and all but the newest ``most`` bytes; how many files."""
    aside = _within(root, "index*.damaged-*") + _within(root / "quarantine", f"*{SUFFIX}")
    dated = [(status, path) for path in aside if (status := _status(path))]
    now, held, left = time.time(), 0, []
    for count, (status, path) in enumerate(sorted(dated, key=_age), start=1):
        held += status.st_size
        late = now - status.st_mtime > QUARANTINE_SECONDS
        if late or held > most or count > MOST_SET_ASIDE:
            left.append(path)
    return sum(map(_unlinked, left))


def _within(folder: Path, pattern: str = "*") -> list[Path]:
    """What matches in a folder, which is not followed where it is a link."""
    return [] if folder.is_symlink() else list(folder.glob(pattern))


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except FileNotFoundError:  # its writer has just finished, or somebody else has swept
        return None


def _age(dated: tuple[os.stat_result, Path]) -> float:
    return -dated[0].st_mtime


def _unlinked(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True
