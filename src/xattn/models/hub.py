"""Checkpoints on the Hugging Face hub, downloaded into its own cache or found there."""

import json
import re
from pathlib import Path

from xattn.errors import (
    CheckpointError,
    ModelNotFoundError,
    OfflineError,
    UnsafeCheckpointError,
    UnsupportedModelError,
)
from xattn.models.weights import PICKLE_SUFFIXES

_SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.spm")
_WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")
_IGNORED = ("*/*",)
"""Exports for other engines lie in folders of their own."""
_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")


def is_hub_id(name: str) -> bool:
    """Whether ``name`` has the form OWNER/NAME."""
    return _ID.fullmatch(name) is not None and ".." not in name


def is_offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` forbids the network."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def is_cached(hub_id: str) -> bool:
    """Whether config and weights of ``hub_id`` are in the hub's cache; the network is not used."""
    from huggingface_hub import try_to_load_from_cache

    def cached(file: str) -> Path | None:
        path = try_to_load_from_cache(hub_id, file)
        return Path(path) if isinstance(path, str) else None

    if cached("config.json") is None:
        return False
    if cached("model.safetensors") is not None or cached("model.bin") is not None:
        return True
    index = cached("model.safetensors.index.json")
    if index is None:
        return False
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError):
        return False
    return bool(shards) and all(cached(str(shard)) is not None for shard in shards)


def snapshot(hub_id: str, *, offline: bool) -> Path:
    """The directory with the files of ``hub_id``; with ``offline``, from the cache alone.

    Fetches configs, vocabularies, and safetensors or CTranslate2 weights; never a pickle. Raises
    :class:`ModelNotFoundError` for an unknown id, :class:`OfflineError` where it would have to be
    downloaded, :class:`UnsafeCheckpointError` where the hub has pickles only, and
    :class:`CheckpointError` where the hub does not answer.
    """
    offline = offline or is_offline()
    directory = _fetch(hub_id, [*_SMALL_FILES, *_WEIGHTS], offline=offline)
    if any(directory.glob("*.safetensors")):
        return directory
    if any(directory.glob("*vocabulary.*")):
        directory = _fetch(hub_id, [*_SMALL_FILES, "model.bin"], offline=offline)
        if (directory / "model.bin").is_file():
            return directory
    if offline:
        raise OfflineError(
            f"{hub_id}: only parts of it are in the cache, without the weights; load it once while "
            "online."
        )
    raise _without_weights(hub_id)


def _fetch(hub_id: str, patterns: list[str], *, offline: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(
            snapshot_download(
                hub_id,
                allow_patterns=patterns,
                ignore_patterns=list(_IGNORED),
                local_files_only=offline,
            )
        )
    except GatedRepoError as error:
        raise CheckpointError(
            f"{hub_id}: its owner asks for consent first; give it on "
            f"https://huggingface.co/{hub_id} and log in with: hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"{hub_id}: the hub has no model of this id, or it is private."
        ) from error
    except LocalEntryNotFoundError as error:
        if offline:
            raise OfflineError(
                f"{hub_id}: is not in the cache, and downloading is switched off (--offline or "
                "HF_HUB_OFFLINE); load it once while online."
            ) from error
        raise CheckpointError(
            f"{hub_id}: the hub cannot be reached and it is not in the cache; check the connection."
        ) from error
    except _transport_errors() as error:
        raise _failed(hub_id, error) from error


def _transport_errors() -> tuple[type[BaseException], ...]:
    """What a broken download raises, whichever HTTP client this version of the hub's uses."""
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, ValueError, RuntimeError, *HfHubHTTPError.__bases__)


def _failed(hub_id: str, error: BaseException) -> CheckpointError:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return CheckpointError(f"{hub_id}: could not be downloaded: {reason}")


def _without_weights(hub_id: str) -> CheckpointError:
    from huggingface_hub import list_repo_files

    try:
        files = list_repo_files(hub_id)
    except _transport_errors() as error:
        raise _failed(hub_id, error) from error
    pickle = next((file for file in files if file.endswith(PICKLE_SUFFIXES)), None)
    if pickle is not None:
        return UnsafeCheckpointError(
            f"{hub_id}: has its weights as {pickle} only, which can run any code when it is "
            "opened, and so is never downloaded; convert it once, where you trust it, with "
            f"transformers: AutoModel.from_pretrained({hub_id!r}).save_pretrained(DIRECTORY)"
        )
    gguf = next((file for file in files if file.endswith(".gguf")), None)
    if gguf is not None:
        return UnsupportedModelError(
            f"{hub_id}: has GGUF files; download one and give its path: hf download {hub_id} {gguf}"
        )
    return UnsupportedModelError(f"{hub_id}: has neither safetensors nor CTranslate2 weights.")
