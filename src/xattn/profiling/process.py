"""What this process holds in RAM, and who holds which tensor."""

import os
import resource
import sys
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor, nn

_STATUS = Path("/proc/self/status")


def resident_bytes() -> int | None:
    """What is in RAM now; None where the system does not say."""
    return _of_status("VmRSS")


def peak_bytes() -> int:
    """What was in RAM at most, since the process began or :func:`forget_peak`."""
    found = _of_status("VmHWM")
    if found is not None:
        return found
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak() -> None:
    """Begin to look for the peak anew, where the system can."""
    path = Path("/proc/self/clear_refs")
    if path.exists() and os.access(path, os.W_OK):
        path.write_text("5")


def _of_status(name: str) -> int | None:
    if not _STATUS.is_file():
        return None
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
    return 1024 * int(lines[name].split()[0])


def bytes_held(tensors: Iterable[Tensor]) -> int:
    """Bytes of distinct tensors: views of the same numbers count once."""
    return sum({(t.data_ptr(), t.nbytes): t.nbytes for t in tensors}.values())


def weights_held(module: nn.Module) -> int:
    """Bytes of a module's weights and buffers."""
    return bytes_held((*module.parameters(), *module.buffers()))
