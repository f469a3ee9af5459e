"""Documents into a library: only what changed, in memory that does not grow with them.

Passages go through a buffer. When it is full they are embedded, handed to whoever makes memories of
them, and written; then the files that were read to their end are committed. A process that dies
loses the buffer and no more: :mod:`xattn.library.catalogue` says why.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from xattn.errors import InvalidSourceError, XattnError, shown
from xattn.library.catalogue import Catalogue, File, Staged
from xattn.library.embedder import Embedder
from xattn.library.filters import BUILT_IN, RESERVED, Field, kind_of
from xattn.library.indexes import PassageIndex
from xattn.library.passage import Metadata, Passage
from xattn.library.rows import Row
from xattn.library.scratch import Counts

Encode = Callable[[Sequence[Passage]], None]
"""What makes memories of new passages; it is called before these can be found."""

BATCH_PASSAGES = 256
"""Passages that are embedded and written at once."""
MOST_ENDED = 64
"""Files that wait for their commit together."""
TIDY_EACH = 64
"""Batches between two tidyings of the database."""
MOST_FIELDS = 200
"""Names of metadata in one library."""
MOST_FAILURES = 100
"""That a report tells one by one."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A document to be read: a file, or a text under a name."""

    name: str
    size: int
    """Bytes."""
    modified: int
    """Nanoseconds since 1970; -1 where only the digest tells whether it changed."""
    digest: Callable[[], str]
    passages: Callable[[Metadata], Iterable[Passage]]
    """They are read one after the other, and get this metadata."""
    metadata: Metadata | None = None
    """None: what they had."""
    is_same: Callable[[], bool] = lambda: True
    """Whether it is still as it was when it was found."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A document that could not be read."""

    source: str
    reason: str


@dataclass(kw_only=True)
class Report:
    """What indexing did."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    failed: int = 0
    failures: list[Failure] = field(default_factory=list)
    """The first hundred."""
    passages_added: int = 0
    """Embedded and written."""
    passages_kept: int = 0
    """Of added and changed files, and not embedded again."""
    passages_removed: int = 0
    seconds: float = 0.0

    def fail(self, source: str, reason: str) -> None:
        """Count a document that cannot be read, and say why."""
        self.failed += 1
        if len(self.failures) < MOST_FAILURES:
            self.failures.append(Failure(source=source, reason=reason))


class Indexing:
    """One run: :meth:`read` documents, :meth:`remove` others, and :meth:`finish`.

    It is for the one who holds the library's lock. What an earlier run left undone is done first.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        index: PassageIndex,
        embedder: Embedder,
        *,
        encode: Encode | None = None,
        progress: Callable[[int], None] = lambda done_bytes: None,
        full: bool = False,
        batch_passages: int = BATCH_PASSAGES,
    ) -> None:
        self._catalogue, self._index, self._embedder = catalogue, index, embedder
        self._encode, self._progress, self._full = encode, progress, full
        self._batch_passages = batch_passages
        self.report = Report()
        self._started = time.perf_counter()
        self._done_bytes, self._batches = 0, 0
        self._staged: list[Staged] = []
        self._new: list[Staged] = []
        self._ended: list[File] = []
        self._fields: dict[str, Field] = {}
        self._generation = catalogue.begin()
        recover(catalogue, index)
        self._know_fields()

    # One document

    def read(self, source: Source) -> None:
        """Bring the passages of ``source`` up to date; why one cannot be read is reported."""
        try:
            self._read(source)
        except _UnreadableError as error:
            self._fail(source.name, str(error))
        self._done_bytes += source.size
        self._progress(self._done_bytes)

    def _read(self, source: Source) -> None:
        known = self._catalogue.file(source.name)
        before = known if known is not None and known.generation > 0 else None
        kept = {} if before is None else json.loads(before.metadata)
        metadata = kept if source.metadata is None else dict(source.metadata)
        now = File(
            source=source.name,
            size=source.size,
            modified=source.modified,
            metadata=json.dumps(metadata, sort_keys=True),
        )
        if before is not None and not self._full and _looks_like(before, now):
            self.report.unchanged += 1
            return
        with _reading():
            now = replace(now, digest=source.digest())
        if before is not None and (before.digest, before.metadata) == (now.digest, now.metadata):
            self._catalogue.note(source.name, seen=(now.size, now.modified))
            self.report.unchanged += 1
            return
        self._generation += 1
        many = self._put_all(source, metadata)
        self._ended.append(replace(now, generation=self._generation, passages=many))
        self.report.added += before is None
        self.report.changed += before is not None
        if len(self._ended) >= MOST_ENDED:
            self._flush()

    def _put_all(self, source: Source, metadata: Metadata) -> int:
        """Take in the passages of a document; how many it has."""
        many = 0
        with Counts() as said:
            for passage in _readable(source, metadata, self._fields):
                self._put(Staged.of(_told_apart(passage, said), self._generation, many))
                many += 1
                self._progress(self._done_bytes + min(passage.end, source.size))
        return many

    def _put(self, staged: Staged) -> None:
        self._add_fields(staged.passage.metadata)
        self._staged.append(staged)
        if len(self._staged) >= self._batch_passages:
            self._stage()
        if len(self._new) >= self._batch_passages:
            self._flush()

    def _add_fields(self, metadata: Metadata) -> None:
        for name, value in metadata.items():
            kind = kind_of(value)
            if name not in self._fields and kind is not None:
                self._catalogue.add_field(name, kind)
                self._know_fields()

    def _know_fields(self) -> None:
        fields = self._catalogue.fields()
        # Again for those that a run before noted, and died before the database had them.
        self._index.add_fields(fields[len(BUILT_IN) :])
        self._fields.update((field.name, field) for field in fields)

    def _fail(self, name: str, reason: str) -> None:
        """Go on without a document; the library keeps what it had of it."""
        self._staged = [one for one in self._staged if one.passage.source != name]
        self._catalogue.discard(name)
        self._catalogue.note(name, problem=reason)
        self.report.fail(name, reason)

    # Into the database

    def _stage(self) -> None:
        """Note what was read, and let those into the next batch that have no row yet."""
        if not self._staged:
            return
        self._catalogue.stage(self._staged)
        written = self._catalogue.written([one.id for one in self._staged])
        new = [one for one in self._staged if one.id not in written]
        self.report.passages_kept += len(self._staged) - len(new)
        self._new += new
        self._staged = []

    def _flush(self) -> None:
        """Write the batch, and commit the files that were read to their end."""
        self._stage()
        new, ended = self._new, self._ended
        self._new, self._ended = [], []
        if new:
            self._write(new)
        if new or ended:
            leaving = self._catalogue.commit([one.id for one in new], ended)
            self.report.passages_removed += leaving
            let_leave(self._catalogue, self._index)

    def _write(self, new: Sequence[Staged]) -> None:
        rows = [Row.of(one.passage, one.generation, self._fields) for one in new]
        vectors = self._embedder.embed_passages([row.words for row in rows])
        if self._encode is not None:
            self._encode([one.passage for one in new])
        self._catalogue.announce(row.id for row in rows)
        self._index.add(rows, vectors)
        self.report.passages_added += len(new)
        self._batches += 1
        if self._batches % TIDY_EACH == 0:
            self._index.tidy(alone=False)

    # Others

    def remove(self, name: str) -> None:
        """Take a document out."""
        self.report.passages_removed += self._catalogue.remove(name)
        self.report.removed += 1
        let_leave(self._catalogue, self._index)

    def finish(self, *, alone: bool) -> Report:
        """Write what is left, and tidy up; ``alone`` if nobody else reads the library."""
        self._flush()
        self._catalogue.end()
        let_leave(self._catalogue, self._index)
        self._catalogue.rest()
        if self.report.passages_added or self.report.passages_removed:
            self._index.tidy(alone=alone)
        self.report.seconds = time.perf_counter() - self._started
        return self.report


def recover(catalogue: Catalogue, index: PassageIndex) -> None:
    """Do what a run before this one left undone, and make catalogue and database agree."""
    while ids := catalogue.announced():
        catalogue.settle(ids, index.present(ids))
    catalogue.discard()
    let_leave(catalogue, index)
    if index.count() == catalogue.count_rows():
        return
    for ids in catalogue.row_ids():
        present = index.present(ids)
        catalogue.lost([id for id in ids if id not in present])
    for ids in index.ids():
        known = catalogue.written(ids)
        index.remove([id for id in ids if id not in known])


def let_leave(catalogue: Catalogue, index: PassageIndex) -> None:
    """Remove rows that no file has any more."""
    while ids := catalogue.leaving():
        index.remove(ids)
        catalogue.left(ids)


class _UnreadableError(Exception):
    """It is the document's fault."""


def _looks_like(before: File, now: File) -> bool:
    """Whether a file is as it was, as far as can be told without reading it."""
    told = now.modified >= 0 and not before.problem
    seen = (before.size, before.modified, before.metadata)
    return told and seen == (now.size, now.modified, now.metadata)


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except XattnError as error:
        raise _UnreadableError(str(error)) from error
    except OSError as error:
        raise _UnreadableError(f"{error.strerror or error}.") from error


def _readable(source: Source, metadata: Metadata, fields: Mapping[str, Field]) -> Iterator[Passage]:
    """Passages that can be kept; raises :class:`_UnreadableError` where the document cannot be."""
    with _reading():
        for passage in source.passages(metadata):
            _require_kept(passage, fields)
            yield passage
        if not source.is_same():
            raise InvalidSourceError(f"{source.name!r} was changed while it was read.")


def _require_kept(passage: Passage, fields: Mapping[str, Field]) -> None:
    for name, value in passage.metadata.items():
        field, kind = fields.get(name), kind_of(value)
        if name in RESERVED:
            raise InvalidSourceError(
                f"the metadata {name!r} has the name of what every passage has; take another."
            )
        if kind is None or (field is not None and field.kind != kind):
            bound = "text, a number, or true or false" if field is None else f"of kind {field.kind}"
            raise InvalidSourceError(
                f"the metadata {name!r} must be {bound}, as for other passages of the library, but "
                f"is {shown(value)} instead."
            )
        if field is None and len(fields) >= MOST_FIELDS:
            raise InvalidSourceError(
                f"the metadata {name!r} is one name more than the {MOST_FIELDS} of a library."
            )
    said = (passage.title, *passage.heading, passage.text, *map(str, passage.metadata.values()))
    try:
        "".join(said).encode()
    except UnicodeEncodeError as error:
        raise InvalidSourceError(f"holds text that is no Unicode: {error.reason}.") from error


def _told_apart(passage: Passage, said: Counts) -> Passage:
    """The passage, numbered among those of its document that say the same."""
    copy = said.add(passage.id)
    return replace(passage, copy=copy) if copy else passage
