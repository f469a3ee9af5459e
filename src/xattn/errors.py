"""Every error that xattn raises on purpose.

A message names what was wrong, the bound, the value found, and what to do.

::

    XattnError
    ├── UsageError (ValueError)            an argument is out of its bounds
    │   ├── PromptError                    an empty prompt, or one the model has no room for
    │   └── AbsorptionError                absorbed attention is not legal for this spec
    ├── SourceError                        an input cannot be read
    │   ├── SourceNotFoundError
    │   ├── UnreadableSourceError          a file that is not what its name says
    │   └── InvalidSourceError             readable, but empty, not finite, or too long
    ├── CheckpointError                    weights cannot be loaded
    │   ├── ModelNotFoundError             no such id, directory or package
    │   ├── OfflineError                   it would have to be downloaded
    │   ├── UnsupportedModelError          a family or an option we do not run
    │   ├── UnsafeCheckpointError          pickle only
    │   ├── CorruptCheckpointError         truncated or malformed file
    │   └── TensorError                    a tensor is missing or has another shape
    ├── StoreError                         memories cannot be kept or given back
    │   ├── StoreUnavailableError          the disk, the index or a tier does not answer
    │   ├── StoreFormatError               made by another version
    │   ├── CorruptEntryError              an entry is not what was written
    │   ├── EntryNotFoundError             no such key, or another tenant's
    │   └── UnsafeStoreError               a root that others can write
    ├── LibraryError                       a library of passages cannot be used
    │   ├── LibraryBusyError               another process writes to it
    │   ├── LibraryFormatError             made by another version, or damaged
    │   └── LibraryMismatchError           made with another embedder or other settings
    ├── EngineError                        an engine does not answer a request
    │   ├── CapacityError                  it needs more bytes or rows than there will ever be
    │   ├── QueueFullError                 too many wait already
    │   ├── DeadlineError                  its time ran out
    │   ├── RequestCancelledError          somebody called it off
    │   └── EngineClosedError              the engine was closed, or failed
    ├── SaveError                          a model cannot be written
    └── MissingExtraError (ImportError)    an optional package is not installed

The command line turns :class:`UsageError` into exit code 2 and the rest into exit code 1.
"""

import math
from numbers import Integral, Real
from typing import Any


class XattnError(Exception):
    """Base of all errors raised on purpose."""


class UsageError(XattnError, ValueError):
    """An argument is out of its bounds."""


class PromptError(UsageError):
    """The prompt is empty, or longer than the model allows."""


class AbsorptionError(UsageError):
    """Absorbed attention was asked for where it would not equal materialised attention."""


class SourceError(XattnError):
    """An input cannot be turned into what an encoder reads."""


class SourceNotFoundError(SourceError):
    """The file does not exist."""


class UnreadableSourceError(SourceError):
    """The file exists and no reader understands it."""


class InvalidSourceError(SourceError):
    """The input was read, and is empty, not finite, or longer than one memory holds."""


class CheckpointError(XattnError):
    """Weights cannot be loaded."""


class ModelNotFoundError(CheckpointError):
    """No alias, directory, package path or hub id of this name."""


class OfflineError(CheckpointError):
    """The checkpoint is not on this machine and downloading is switched off."""


class UnsupportedModelError(CheckpointError):
    """The checkpoint needs a family or an option that xattn does not run."""


class UnsafeCheckpointError(CheckpointError):
    """The checkpoint holds its weights in pickle files only, which are never opened."""


class CorruptCheckpointError(CheckpointError):
    """A file of the checkpoint is truncated or malformed."""


class TensorError(CheckpointError):
    """A tensor of the checkpoint is missing, or has another shape than its config says."""


class StoreError(XattnError):
    """Memories cannot be kept or given back."""


class StoreUnavailableError(StoreError):
    """The disk, the index or a tier does not answer."""


class StoreFormatError(StoreError):
    """The store, or an entry of it, was made by another version."""


class CorruptEntryError(StoreError):
    """An entry is not what was written."""


class EntryNotFoundError(StoreError):
    """There is no entry of this key, or it is another tenant's."""


class UnsafeStoreError(StoreError):
    """The store's directory can be written by others."""


class LibraryError(XattnError):
    """A library of passages cannot be used."""


class LibraryBusyError(LibraryError):
    """Another process writes to the library."""


class LibraryFormatError(LibraryError):
    """The library was made by another version, or is not what was written."""


class LibraryMismatchError(LibraryError):
    """The library was made with another embedder, or other settings, than were asked for."""


class EngineError(XattnError):
    """An engine does not answer a request."""

    def __init__(self, message: str, tokens: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.tokens = tokens
        """New tokens that had been chosen by then."""


class CapacityError(EngineError):
    """The request needs more bytes or rows than the engine may ever hold."""


class QueueFullError(EngineError):
    """As many requests wait as may."""


class DeadlineError(EngineError):
    """The request's time ran out, in the queue or while it was decoded."""


class RequestCancelledError(EngineError):
    """The request was cancelled."""


class EngineClosedError(EngineError):
    """The engine was closed or failed, and answers nothing any more."""


class SaveError(XattnError):
    """A model cannot be written; what was there before is as it was."""


class MissingExtraError(XattnError, ImportError):
    """An optional package is needed for what was asked."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed; "
            f"install it with: pip install 'xattn[{extra}]'"
        )
        self.package, self.extra = package, extra


def require(holds: bool, name: str, bound: str, value: Any) -> None:
    """Raise :class:`UsageError` unless ``holds``; ``bound`` completes "`name` must be …"."""
    if not holds:
        raise UsageError(f"`{name}` must be {bound}, but is {shown(value)} instead.")


def shown(value: object, most: int = 200) -> str:
    """``repr(value)``, cut where it is too long for a message."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of thousands of digits
        text = f"a {type(value).__name__} of thousands of digits"
    return text if len(text) <= most else f"{text[:most]}…"


def is_number(value: object) -> bool:
    """A finite real number, numpy's included; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


def is_whole(value: object, least: int | None = None) -> bool:
    """A whole number of 63 bits, numpy's included, not below ``least``; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        return False
    return abs(int(value)) < 2**63 and (least is None or int(value) >= least)
