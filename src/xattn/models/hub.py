"""Checkpoints on the Hugging Face hub, downloaded into its own cache or found there."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from xattn.errors import (
    CheckpointError,
    ModelNotFoundError,
    OfflineError,
    UnsafeCheckpointError,
    UnsupportedModelError,
)
from xattn.models.weights import PICKLE_SUFFIXES, conversion

_SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.spm")
_WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")
_IGNORED = ("*/*",)
"""Exports for other engines lie in folders of their own."""
_EMBEDDER = ("*.json", "*.txt", "*.model", "*.safetensors")
_NO_EMBEDDER = ("onnx/*", "openvino/*", "*/onnx/*", "*/openvino/*")
"""Modules of an embedder lie in folders too, beside those exports."""
_ID = re.compile(r"([\w.-]{1,96}/[\w.-]{1,96})(?:@([\w./-]{1,200}))?")
_CONVERTER, _CONVERSION = "SFconvertbot", "Adding `safetensors` variant of this model"
"""Author and title of the pull requests in which the hub itself offers pickles as safetensors."""


def is_hub_id(name: str) -> bool:
    """Whether ``name`` has the form OWNER/NAME, or OWNER/NAME@REVISION."""
    return _ID.fullmatch(name) is not None and ".." not in name


def is_offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` forbids the network."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def is_cached(hub_id: str) -> bool:
    """Whether config and weights of ``hub_id`` are in the hub's cache; the network is not used."""
    repository, revision = _split(hub_id)
    revisions = [revision] if revision else [None, *_cached_conversions(repository)]
    return any(_is_whole(repository, one) for one in revisions)


def _split(hub_id: str) -> tuple[str, str | None]:
    repository, _, revision = hub_id.partition("@")
    return repository, revision or None


def _is_whole(repository: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    def cached(file: str) -> Path | None:
        path = try_to_load_from_cache(repository, file, revision=revision)
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


def _cached_conversions(repository: str) -> list[str]:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=repository, repo_type="model")
    pulls = Path(constants.HF_HUB_CACHE) / folder / "refs" / "refs" / "pr"
    return [f"refs/pr/{path.name}" for path in sorted(pulls.glob("*"))]


def _conversions(repository: str) -> list[str]:
    """Revisions in which the hub's own converter offers the weights as safetensors."""
    from huggingface_hub import get_repo_discussions

    try:
        found = get_repo_discussions(
            repository,
            author=_CONVERTER,
            discussion_type="pull_request",
            discussion_status="open",
        )
        return [
            pull.git_reference
            for pull in found
            if pull.title == _CONVERSION and pull.git_reference is not None
        ]
    except _transport_errors() as error:
        raise _failed(repository, error) from error


def snapshot(hub_id: str, *, offline: bool) -> Path:
    """The directory with the files of ``hub_id``; with ``offline``, from the cache alone.

    Fetches configs, vocabularies, and safetensors or CTranslate2 weights; never a pickle. Where the
    main branch has pickles alone, the open pull request in which the hub's converter offers them as
    safetensors is taken, as transformers does. Raises
    :class:`ModelNotFoundError` for an unknown id, :class:`OfflineError` where it would have to be
    downloaded, :class:`UnsafeCheckpointError` where the hub has pickles only, and
    :class:`CheckpointError` where the hub does not answer.
    """
    offline = offline or is_offline()
    repository, revision = _split(hub_id)
    directory = _fetch(repository, [*_SMALL_FILES, *_WEIGHTS], revision, offline=offline)
    if any(directory.glob("*.safetensors")):
        if offline and not _is_whole(repository, revision):
            raise _incomplete(hub_id)
        return directory
    if any(directory.glob("*vocabulary.*")):
        patterns = [*_SMALL_FILES, "model.bin"]
        directory = _fetch(repository, patterns, revision, offline=offline)
        if (directory / "model.bin").is_file():
            return directory
    if revision is None:
        for pull in _cached_conversions(repository) if offline else _conversions(repository):
            if not offline or _is_whole(repository, pull):
                return _fetch(repository, [*_SMALL_FILES, *_WEIGHTS], pull, offline=offline)
    if offline:
        raise _incomplete(hub_id)
    raise _without_weights(repository, revision, directory)


def embedder_snapshot(hub_id: str, *, offline: bool) -> Path:
    """The directory with an embedder or reranker of sentence-transformers, its modules included.

    Raises as :func:`snapshot` does.
    """
    offline = offline or is_offline()
    repository, revision = _split(hub_id)
    directory = _fetch(repository, list(_EMBEDDER), revision, offline=offline, ignored=_NO_EMBEDDER)
    if any(directory.rglob("*.safetensors")):
        return directory
    raise _incomplete(hub_id) if offline else _without_weights(repository, revision, directory)


def fetch_config(hub_id: str, *, offline: bool) -> Path:
    """The config.json of ``hub_id``, and nothing else; raises as :func:`snapshot` does."""
    repository, revision = _split(hub_id)
    directory = _fetch(repository, ["config.json"], revision, offline=offline or is_offline())
    path = directory / "config.json"
    if not path.is_file():
        raise UnsupportedModelError(f"{hub_id}: has no config.json, which says what it is.")
    return path


def _fetch(
    hub_id: str,
    patterns: list[str],
    revision: str | None,
    *,
    offline: bool,
    ignored: Sequence[str] = _IGNORED,
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(
            snapshot_download(
                hub_id,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=list(ignored),
                local_files_only=offline,
            )
        )
    except GatedRepoError as error:
        raise CheckpointError(
            f"{hub_id}: its owner asks for consent first; give it on "
            f"https://huggingface.co/{hub_id} and log in with: hf auth login"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelNotFoundError(
            f"{hub_id}: the hub has no revision {revision!r} of it."
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


def _incomplete(hub_id: str) -> OfflineError:
    return OfflineError(
        f"{hub_id}: only parts of it are in the cache, without the weights or some of them; load "
        "it once while online."
    )


def _model_type(directory: Path) -> object:
    try:
        config = json.loads((directory / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return config.get("model_type") if isinstance(config, dict) else None


def _failed(hub_id: str, error: BaseException) -> CheckpointError:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return CheckpointError(f"{hub_id}: could not be downloaded: {reason}")


def _without_weights(hub_id: str, revision: str | None, directory: Path) -> CheckpointError:
    from huggingface_hub import list_repo_files

    try:
        files = list_repo_files(hub_id, revision=revision)
    except _transport_errors() as error:
        raise _failed(hub_id, error) from error
    pickle = next((file for file in files if file.endswith(PICKLE_SUFFIXES)), None)
    if pickle is not None:
        return UnsafeCheckpointError(
            f"{hub_id}: has its weights as {pickle} only, which can run any code when it is "
            "opened, and so is never downloaded; convert it once, where you trust it, with "
            f"transformers: {conversion(hub_id, _model_type(directory))}"
        )
    gguf = next((file for file in files if file.endswith(".gguf")), None)
    if gguf is not None:
        return UnsupportedModelError(
            f"{hub_id}: has GGUF files; download one and give its path: hf download {hub_id} {gguf}"
        )
    return UnsupportedModelError(f"{hub_id}: has neither safetensors nor CTranslate2 weights.")
