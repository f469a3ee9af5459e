"""From a name to a spec: built-in shapes, configs on disk and on the hub, checkpoints.

Most configs are of families that xattn runs, and are read as a checkpoint's are. The others can be
described, and not run: :mod:`xattn.ledger.described`.
"""

import json
from difflib import get_close_matches
from pathlib import Path

from xattn.errors import UnsupportedModelError, UsageError
from xattn.ledger.described import DESCRIBED
from xattn.ledger.shapes import Config, shapes
from xattn.models.catalog import find
from xattn.models.families import FAMILIES, family_of
from xattn.models.hub import fetch_config, is_hub_id
from xattn.models.packages import PREFIX
from xattn.models.resolve import resolve
from xattn.spec import ModelSpec


def spec_of(name: str | Path, *, offline: bool = True) -> ModelSpec:
    """The spec of what ``name`` is, in this order: a built-in shape or its hub id, a config.json or
    a directory with one, whatever :func:`xattn.load` finds on disk, a hub id.

    Of a hub id the config alone is fetched, and nothing with ``offline``. torch is imported only
    for checkpoints that have no config of Hugging Face's: CTranslate2's, GGUF files.

    Raises :class:`UsageError`, with near names, where it is none of these, and a
    :class:`~xattn.errors.CheckpointError` for a config that cannot be understood.
    """
    text = str(name)
    known = {shape.name: shape for shape in shapes().values()}
    by_hub = {shape.hub_id: shape for shape in known.values()}
    shape = known.get(text) or by_hub.get(text)
    if shape is not None:
        return spec_from_config(shape.config)
    config = _config_at(Path(name))
    if config is not None:
        return spec_from_config(config)
    if find(text) is not None or text.startswith(PREFIX) or Path(name).exists():
        from xattn.models.formats import read_checkpoint

        return read_checkpoint(resolve(text, offline=offline), text).spec
    if is_hub_id(text):
        return spec_from_config(_read(fetch_config(text, offline=offline)))
    near = get_close_matches(text, [*known, *by_hub], n=2, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise UsageError(
        "`model` must be a shape (`xattn plan --list`), a config.json, a model on disk, or a hub "
        f"id, but is {text!r} instead.{hint}"
    )


def spec_from_config(config: Config) -> ModelSpec:
    """The spec that a Hugging Face config describes."""
    name = config.get("model_type")
    describe = DESCRIBED.get(str(name))
    if describe is not None:
        return describe(config)
    if name not in FAMILIES:
        known = sorted({*DESCRIBED, *FAMILIES})
        near = get_close_matches(str(name), known, n=1, cutoff=0.75)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UnsupportedModelError(
            "config.json: `model_type` must be of a model with cross-attention, or of a decoder "
            f"that takes memories ({', '.join(known)}), but is {name!r} instead.{hint}"
        )
    return family_of(config).spec(config, {})


def _config_at(path: Path) -> Config | None:
    """The config at this path or in this directory; None where there is none of Hugging Face's."""
    if path.is_file() and path.suffix == ".json":
        return _read(path)
    inside = path / "config.json"
    if not inside.is_file():
        return None
    config = _read(inside)
    return config if "model_type" in config else None  # CTranslate2's says no such thing


def _read(path: Path) -> Config:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UsageError(f"{path} is no JSON: {error}.") from error
    if not isinstance(document, dict):
        raise UsageError(f"{path} must hold a JSON object, but holds a {type(document).__name__}.")
    return document
