"""Compiling the kernels: once for each compiler, processor and version of their source."""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

SOURCE = Path(__file__).parent / "kernels"
FLAGS = (
    *("-O3", "-march=native", "-std=c++17", "-fPIC", "-ffp-contract=fast", "-fopenmp"),
    *("-Wno-psabi", "-Wno-maybe-uninitialized"),
)
COMPILERS = ("g++", "c++")
"""GNU's first: what it makes of a parallel region calls the OpenMP that torch brings."""
ROOT = 0
PATIENCE = 300
"""Seconds that a compiler may take."""


class NativeError(Exception):
    """Why there are no kernels; what it says is for the user."""


def compiled(directory: Path) -> Path:
    """The shared library in ``directory``, compiled if it is not there; :class:`NativeError`.

    A half-written library is never seen: it gets its name when it is whole.
    """
    compiler = compiler_command()
    target = directory / f"kernels-{_fingerprint(compiler)}.so"
    try:
        if target.is_file() and _is_ours(target):
            return target
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not _is_ours(directory):
            raise NativeError(
                f"{directory} belongs to another user; set XDG_CACHE_HOME to one of yours"
            )
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            built = _compile(compiler, Path(scratch))
            os.replace(built, target)
    except OSError as error:
        raise NativeError(
            f"{directory}: {error.strerror or error}; set XDG_CACHE_HOME to a directory of yours"
        ) from error
    return target


def compiler_command() -> list[str]:
    """The C++ compiler that is used here, and its options; :class:`NativeError` without one."""
    named = os.environ.get("CXX")
    for command in (named,) if named else COMPILERS:
        name, *options = shlex.split(command) or [""]
        found = shutil.which(name)
        if found is not None:
            return [found, *options]
    wanted = f"CXX={named}" if named else " or ".join(COMPILERS)
    raise NativeError(f"no C++ compiler was found ({wanted}); install one")


def _is_ours(path: Path) -> bool:
    """Nobody else can have put something there for us to run, but who made the system."""
    status = path.stat()
    if not hasattr(os, "getuid"):
        return True
    return status.st_uid in (os.getuid(), ROOT) and not status.st_mode & 0o022


def _fingerprint(compiler: Sequence[str]) -> str:
    """Changes with everything that the library is made of."""
    digest = hashlib.sha256()
    for path in sorted(SOURCE.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    about = Path(compiler[0]).resolve().stat()
    parts = (*FLAGS, *compiler, about.st_size, about.st_mtime_ns, platform.machine(), _features())
    digest.update(repr(parts).encode())
    return digest.hexdigest()[:16]


def _features() -> str:
    """What the processor can do: a home directory may be shared by different ones."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _compile(compiler: Sequence[str], scratch: Path) -> Path:
    compiled, linked = scratch / "kernels.o", scratch / "kernels.so"
    _run([*compiler, *FLAGS, "-c", str(SOURCE / "decoder.cpp"), "-o", str(compiled)])
    # Not linked with OpenMP: torch has brought its own, and its threads are the ones to use.
    _run([*compiler, "-shared", str(compiled), "-o", str(linked), "-lm"])
    if not linked.is_file():
        raise NativeError(f"{compiler[0]} compiled nothing")
    os.chmod(linked, 0o700)
    return linked


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired as error:
        raise NativeError(f"{command[0]} took longer than {PATIENCE} seconds") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or ["no message"]
        raise NativeError(f"{command[0]} failed: {lines[0].strip()}")
