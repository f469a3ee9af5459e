"""JSON files of a checkpoint."""

import json
from pathlib import Path
from typing import Any, TypeVar

from xattn.errors import CorruptCheckpointError

T = TypeVar("T", dict[str, Any], list[Any])


def read_json(path: Path) -> Any:
    """The value in ``path``. Raises :class:`CorruptCheckpointError` where there is none."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptCheckpointError(
            f"{path}: not readable as JSON ({error}); download the checkpoint again."
        ) from error


def read_json_as(kind: type[T], path: Path) -> T:
    """The object (``dict``) or ``list`` in ``path``; raises as :func:`read_json` does."""
    value = read_json(path)
    if not isinstance(value, kind):
        names = {dict: "object", list: "list"}
        raise CorruptCheckpointError(
            f"{path}: must hold a JSON {names[kind]}, but holds {type(value).__name__}."
        )
    return value
