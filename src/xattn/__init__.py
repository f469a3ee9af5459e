"""xattn: encode once, attend everywhere.

The encoded input of a model with cross-attention is a :class:`Memory`: computed once, named by its
content, and attended to by as many beams, prompts and requests as one likes.

::

    model  = xattn.load("whisper-tiny.en")
    memory = model.encode("talk.flac")          # one encoder pass
    print(model.generate(memory, num_beams=5).text)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xattn.decoding.segments import Segment, Word
    from xattn.decoding.transcript import Transcript
    from xattn.engine import Engine, EngineStats, Ticket
    from xattn.errors import (
        AbsorptionError,
        CapacityError,
        CheckpointError,
        CorruptCheckpointError,
        CorruptEntryError,
        DeadlineError,
        EngineClosedError,
        EngineError,
        EntryNotFoundError,
        InvalidSourceError,
        LibraryBusyError,
        LibraryError,
        LibraryFormatError,
        LibraryMismatchError,
        MissingExtraError,
        ModelNotFoundError,
        OfflineError,
        PromptError,
        QueueFullError,
        RequestCancelledError,
        SaveError,
        SourceError,
        SourceNotFoundError,
        StoreError,
        StoreFormatError,
        StoreUnavailableError,
        TensorError,
        UnreadableSourceError,
        UnsafeCheckpointError,
        UnsafeStoreError,
        UnsupportedModelError,
        UsageError,
        XattnError,
    )
    from xattn.generation import Generation
    from xattn.inputs.table import Table, read_table
    from xattn.ledger import Account, Ledger, plan
    from xattn.library.library import Library
    from xattn.memory import Memory, MemoryKey, Span
    from xattn.model import Model, load
    from xattn.models.parallel import Parallel
    from xattn.models.pictures import PictureEncoder
    from xattn.models.texts import TextEncoder
    from xattn.spec import DecoderSpec, EncoderSpec, ModelSpec
    from xattn.store import MemoryStore
    from xattn.tuning.graft import graft

__version__ = "0.1.0"

__all__ = [
    "AbsorptionError",
    "Account",
    "CapacityError",
    "CheckpointError",
    "CorruptCheckpointError",
    "CorruptEntryError",
    "DeadlineError",
    "DecoderSpec",
    "EncoderSpec",
    "Engine",
    "EngineClosedError",
    "EngineError",
    "EngineStats",
    "EntryNotFoundError",
    "Generation",
    "InvalidSourceError",
    "Ledger",
    "Library",
    "LibraryBusyError",
    "LibraryError",
    "LibraryFormatError",
    "LibraryMismatchError",
    "Memory",
    "MemoryKey",
    "MemoryStore",
    "MissingExtraError",
    "Model",
    "ModelNotFoundError",
    "ModelSpec",
    "OfflineError",
    "Parallel",
    "PictureEncoder",
    "PromptError",
    "QueueFullError",
    "RequestCancelledError",
    "SaveError",
    "Segment",
    "SourceError",
    "SourceNotFoundError",
    "Span",
    "StoreError",
    "StoreFormatError",
    "StoreUnavailableError",
    "Table",
    "TensorError",
    "TextEncoder",
    "Ticket",
    "Transcript",
    "UnreadableSourceError",
    "UnsafeCheckpointError",
    "UnsafeStoreError",
    "UnsupportedModelError",
    "UsageError",
    "Word",
    "XattnError",
    "__version__",
    "graft",
    "load",
    "plan",
    "read_table",
]

_HOMES = {
    "xattn.decoding.segments": ("Segment", "Word"),
    "xattn.decoding.transcript": ("Transcript",),
    "xattn.engine": ("Engine", "EngineStats", "Ticket"),
    "xattn.generation": ("Generation",),
    "xattn.inputs.table": ("Table", "read_table"),
    "xattn.ledger": ("Account", "Ledger", "plan"),
    "xattn.library.library": ("Library",),
    "xattn.memory": ("Memory", "MemoryKey", "Span"),
    "xattn.model": ("Model", "load"),
    "xattn.models.parallel": ("Parallel",),
    "xattn.models.pictures": ("PictureEncoder",),
    "xattn.models.texts": ("TextEncoder",),
    "xattn.spec": ("DecoderSpec", "EncoderSpec", "ModelSpec"),
    "xattn.store": ("MemoryStore",),
    "xattn.tuning.graft": ("graft",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that the command line starts at once."""
    if name not in __all__:
        raise AttributeError(f"module 'xattn' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF.get(name, "xattn.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
