"""Weights that lie inside installed Python packages: ``pkg:PACKAGE/PATH``."""

import sys
from importlib.util import find_spec
from pathlib import Path

from xattn.errors import ModelNotFoundError

PREFIX = "pkg:"


def package_directory(package: str) -> Path | None:
    """Where the package ``package`` is installed, without importing it; None if it is not.

    A distribution's name will do where only hyphens set it apart from the package's.
    """
    module = package.replace("-", "_")
    if not module.isidentifier():
        return None
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def package_file(reference: str) -> Path:
    """The file or directory that ``pkg:PACKAGE/PATH`` names; the package is not imported.

    Raises :class:`ModelNotFoundError` if the package is not installed, has no such file, or the
    path leads out of it.
    """
    package, _, inside = reference.removeprefix(PREFIX).partition("/")
    if not package.replace("-", "_").isidentifier():
        raise ModelNotFoundError(f"{reference}: must be pkg:PACKAGE/PATH.")
    directory = package_directory(package)
    if directory is None and package in sys.modules | dict.fromkeys(sys.stdlib_module_names):
        raise ModelNotFoundError(f"{reference}: {package!r} is a module and holds no files.")
    if directory is None:
        raise ModelNotFoundError(
            f"{reference}: the package {package!r} is not installed; install it with: "
            f"pip install {package.replace('_', '-')}"
        )
    root = directory.resolve()
    path = (root / inside).resolve()
    if not path.is_relative_to(root) or not path.exists():
        raise ModelNotFoundError(f"{reference}: the package {package!r} has no {inside!r}.")
    return path
