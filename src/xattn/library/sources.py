"""Files and texts as sources of passages, and a run over them."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from xattn.library.cutting import cut
from xattn.library.documents import digest_of_file, document_of, read_document
from xattn.library.embedder import Embedder
from xattn.library.indexing import BATCH_PASSAGES, Encode, Indexing, Report, Source
from xattn.library.opening import Opened
from xattn.library.passage import Metadata, Passage
from xattn.library.settings import Settings
from xattn.memory import digest_of

Progress = Callable[[int, int], None]
"""Told (bytes that are done, bytes of all files)."""


def file_source(
    path: Path, settings: Settings, embedder: Embedder, metadata: Metadata | None
) -> Source:
    """A file, to be cut as ``settings`` say."""

    def passages(about: Metadata) -> Iterator[Passage]:
        return cut(
            read_document(path),
            count=embedder.count_tokens,
            most=settings.passage_tokens,
            overlap=settings.overlap,
            metadata=about,
        )

    size, modified = seen = look(path)
    return Source(
        name=str(path),
        size=size,
        modified=modified,
        digest=lambda: digest_of_file(path),
        passages=passages,
        metadata=metadata,
        is_same=lambda: look(path) == seen,
    )


def look(path: Path) -> tuple[int, int]:
    """Bytes and time of change of a file; (0, -1) where it cannot be asked, as reading it says."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return 0, -1
    return status.st_size, status.st_mtime_ns


def text_source(
    name: str, text: str, settings: Settings, embedder: Embedder, metadata: Metadata | None
) -> Source:
    """A text of a caller's, under a name of theirs."""
    encoded = text.encode("utf-8", "surrogatepass")

    def passages(about: Metadata) -> Iterator[Passage]:
        return cut(
            document_of(text, name),
            count=embedder.count_tokens,
            most=settings.passage_tokens,
            overlap=settings.overlap,
            metadata=about,
        )

    return Source(
        name=name,
        size=len(encoded),
        modified=-1,
        digest=lambda: digest_of(encoded),
        passages=passages,
        metadata=metadata,
    )


def update(
    opened: Opened,
    embedder: Embedder,
    sources: Iterable[Source],
    *,
    gone: Iterable[str] = (),
    size_bytes: int = 0,
    encode: Encode | None = None,
    progress: Progress | None = None,
    full: bool = False,
    batch_passages: int = BATCH_PASSAGES,
) -> Report:
    """Bring ``sources`` up to date and take out those ``gone``; for the one who may write."""

    def tell(done_bytes: int) -> None:
        if progress is not None:
            progress(done_bytes, max(done_bytes, size_bytes))

    run = Indexing(
        opened.catalogue,
        opened.index,
        embedder,
        encode=encode,
        progress=tell,
        full=full,
        batch_passages=batch_passages,
    )
    for source in sources:
        run.read(source)
    for name in gone:
        run.remove(name)
    return run.finish(alone=opened.reading.is_alone())


def is_file_name(name: str) -> bool:
    """Whether a source is a file, and no text of a caller's."""
    return os.path.isabs(name)
