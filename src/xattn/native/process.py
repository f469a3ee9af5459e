"""What this process holds in RAM, and what is left for it."""

import resource
import sys
from pathlib import Path

_STATUS, _MEMORY = Path("/proc/self/status"), Path("/proc/meminfo")
_GROUP, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def resident_bytes() -> int | None:
    """What is in RAM now; None where the system does not say."""
    return _of_status("VmRSS")


def peak_bytes() -> int:
    """What was in RAM at most, since the process began."""
    found = _of_status("VmHWM")
    if found is not None:
        return found
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_bytes() -> int | None:
    """What it could still take before the system, or its control group, has no more.

    None where the system does not say.
    """
    found = [_field(_MEMORY, "MemAvailable"), *(_left_in(group) for group in _groups())]
    return min((one for one in found if one is not None), default=None)


def _groups() -> list[Path]:
    """Control groups (v2) that this process is in, from the innermost on."""
    if not _GROUP.is_file():
        return []
    for line in _GROUP.read_text().splitlines():
        if line.startswith("0::/"):
            own = _GROUPS / line.removeprefix("0::/")
            return [own, *(one for one in own.parents if one.is_relative_to(_GROUPS))]
    return []


def _left_in(group: Path) -> int | None:
    try:
        most, now = (
            (group / name).read_text().strip() for name in ("memory.max", "memory.current")
        )
    except OSError:  # the root has no bounds, and another's may not be ours to see
        return None
    return None if most == "max" else max(0, int(most) - int(now))


def _of_status(name: str) -> int | None:
    return _field(_STATUS, name)


def _field(path: Path, name: str) -> int | None:
    """Bytes that a file of lines like ``Name: 12 kB`` says."""
    if not path.is_file():
        return None
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    return 1024 * int(lines[name].split()[0]) if name in lines else None
