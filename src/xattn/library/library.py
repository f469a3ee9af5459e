"""A library: a directory with what is known of documents, and what finds passages of them.

::

    corpus.xattn/
      library.json        what it was made with
      catalogue.sqlite    its files, and the places of their passages
      passages.lance/     the passages and their vectors, unless a server has them
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from glob import has_magic
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from xattn.errors import LibraryError, UsageError, is_whole, require
from xattn.library.answer import Answer
from xattn.library.asking import answer, answers, require_question
from xattn.library.catalogue import File
from xattn.library.documents import find_files, has_name, is_document, shown_name
from xattn.library.embedder import DEFAULT, Embedder, SentenceEmbedder
from xattn.library.filters import Where
from xattn.library.indexes import LANGUAGES
from xattn.library.indexing import BATCH_PASSAGES, Encode, Report
from xattn.library.locks import writing
from xattn.library.opening import Opened, as_kept, make_directory, open_library, version_of
from xattn.library.passage import Metadata, Passage
from xattn.library.quoting import checked
from xattn.library.readers import Reader, reader_for
from xattn.library.remaking import changed, drop_remains, remaking, source_again
from xattn.library.reranker import CrossEncoderReranker, Reranker
from xattn.library.retrieval import Found, Retriever, passages_of
from xattn.library.scratch import Seen
from xattn.library.settings import (
    LANCE,
    Settings,
    read_settings,
    require_identity,
    require_same,
    write_settings,
)
from xattn.library.sources import Progress, file_source, is_file_name, look, text_source, update
from xattn.model import Model, load
from xattn.store import MemoryStore

PathName = str | os.PathLike[str]
Paths = PathName | Iterable[PathName]

PASSAGE_TOKENS = 220
"""Of a passage at most: with its title and headings within what MiniLM reads."""
OVERLAP = 32
LANGUAGE = "english"
PASSAGES_FOUND = 8
REMEMBERED_AT_ONCE = 16


class Library:
    """Passages of documents in the directory ``root``, found by meaning and by words.

    The first :meth:`add` makes it, with these settings, which are kept; later they may be left out.
    ``embedder`` is a model of sentence-transformers as
    :class:`~xattn.library.embedder.SentenceEmbedder` names it, or an
    :class:`~xattn.library.embedder.Embedder`. Passages have up to ``passage_tokens`` tokens (220)
    of its tokenizer, of which up to ``overlap`` (32) are the last sentences of the one before.
    ``language`` is whose stems the search for words knows (``english``). ``database`` is ``lance``,
    in the directory itself, or the URL of a PostgreSQL server with pgvector
    (``postgresql://…``), whose password is not kept.

    ``reranker``, the name of a cross-encoder or a :class:`~xattn.library.reranker.Reranker`, looks
    again at what was found. ``model``, or the name of one, answers questions, and reads new
    passages into ``store`` as they come in. ``device``, ``batch_size`` and ``offline`` are of the
    embedder and reranker that are given by name.

    Raises :class:`~xattn.errors.LibraryMismatchError` where the library was made with others,
    :class:`~xattn.errors.LibraryFormatError` where it is damaged or another version's, and
    :class:`~xattn.errors.UsageError` for a value out of its bounds.
    """

    def __init__(
        self,
        root: PathName,
        *,
        embedder: str | Embedder | None = None,
        passage_tokens: int | None = None,
        overlap: int | None = None,
        language: str | None = None,
        database: str | None = None,
        reranker: str | Reranker | None = None,
        device: str = "cpu",
        batch_size: int = 32,
        offline: bool = False,
        model: str | Model | None = None,
        store: MemoryStore | None = None,
    ) -> None:
        require(os.fspath(root) != "", "root", "a directory", root)
        _require_bounds(passage_tokens, overlap, language)
        self.root = Path(root).expanduser().absolute()
        self._how: dict[str, Any] = {
            "device": device,
            "batch_size": batch_size,
            "offline": offline,
        }
        self._wanted = {
            "passage_tokens": passage_tokens,
            "overlap": overlap,
            "language": language,
            "database": None if database is None else as_kept(database),
        }
        self._database = database
        self._given = self._named(embedder) if isinstance(embedder, str) else embedder
        self._embedders: dict[str, Embedder] = {}
        if isinstance(reranker, str):
            reranker = CrossEncoderReranker(reranker, device=device, offline=offline)
        self._reranker = reranker
        self.reader: Reader | None = None if model is None else _reader_of(model, store, offline)
        """How questions are answered; :mod:`xattn.library.readers` has others."""
        self._opened: Opened | None = None
        self._version: tuple[int, int] | None = None
        self._is_closed = False
        self._reopen()

    def _named(self, name: str) -> Embedder:
        return SentenceEmbedder(name, **self._how)

    def _reopen(self) -> Opened | None:
        """What is there now: it was made meanwhile, or made again, or is as it was."""
        require(not self._is_closed, "library", "open", "closed")
        version = version_of(self.root)
        if version != self._version:
            self._let_go()
            settings = read_settings(self.root)
            if settings is not None:
                require_same(self.root, settings, self._wanted)
                if self._given is not None:
                    self._require_identity(settings, self._given)
                self._opened = open_library(self.root, settings, self._database)
            self._version = version
        return self._opened

    def _require_identity(self, settings: Settings, embedder: Embedder) -> None:
        require_identity(self.root, settings, embedder.name, embedder.identity)

    def _there(self) -> Opened:
        opened = self._reopen()
        if opened is None:
            raise LibraryError(
                f"there is no library in {self.root}; make it with: xattn index PATHS "
                f"--library {self.root}"
            )
        return opened

    def _let_go(self) -> None:
        if self._opened is not None:
            self._opened.close()
        self._opened = self._version = None

    def close(self) -> None:
        """Let go of its files. The library cannot be used after that."""
        self._let_go()
        self._is_closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Library({str(self.root)!r})"

    @property
    def embedder(self) -> Embedder:
        """What makes its vectors; one that was not given is loaded by the name that was kept."""
        settings = self._there().settings
        if self._given is not None:
            return self._given
        known = self._embedders.get(settings.identity)
        if known is None:
            known = self._named(settings.embedder)
            self._require_identity(settings, known)
            self._embedders = {settings.identity: known}
        return known

    @property
    def settings(self) -> Settings:
        """What it was made with."""
        return self._there().settings

    # Writing

    def add(
        self,
        paths: Paths = (),
        *,
        metadata: Metadata | None = None,
        full: bool = False,
        remove_missing: bool = False,
        hidden: bool = False,
        encode: Encode | None = None,
        progress: Progress | None = None,
        batch_passages: int = BATCH_PASSAGES,
    ) -> Report:
        """Bring the passages of files up to date: of those named, in directories, or by patterns.

        Files that look as they did (size and time) are not read, or, with ``full``, whose bytes are
        the same; of others only new passages are embedded. Files below ``paths`` that are gone
        leave; with ``remove_missing`` those anywhere. Without ``paths`` all files of the library
        are looked at. ``metadata`` is what their passages can be filtered by; None leaves it as it
        was. ``encode`` is given new passages before they can be found; they are embedded, encoded
        and written ``batch_passages`` at a time.

        A file that cannot be read is told in the report, and what the library had of it stays. A
        run that dies is gone on with by the next. Raises
        :class:`~xattn.errors.SourceNotFoundError` for a path that names nothing,
        :class:`~xattn.errors.LibraryBusyError` where another process writes, and
        :class:`~xattn.errors.MissingExtraError`.
        """
        encode = self._remembering() if encode is None else encode
        require(is_whole(batch_passages, 1), "batch_passages", "at least 1", batch_passages)
        named = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        with Seen() as seen:
            unnamed = []
            for path in self._found(named, hidden, missing_leave=remove_missing):
                if has_name(path):
                    seen.add(str(path), look(path)[0])
                else:
                    unnamed.append(path)
            with self._writing() as opened:
                embedder, settings = self.embedder, opened.settings
                report = update(
                    opened,
                    embedder,
                    (file_source(Path(name), settings, embedder, metadata) for name in seen),
                    gone=_gone(opened, seen, None if remove_missing else named),
                    size_bytes=seen.size_bytes,
                    encode=encode,
                    progress=progress,
                    full=full,
                    batch_passages=batch_passages,
                )
        for path in unnamed:
            report.fail(shown_name(path), "has a name that is not UTF-8; rename it.")
        return report

    def _found(
        self, named: Sequence[PathName], hidden: bool, *, missing_leave: bool
    ) -> Iterator[Path]:
        """Files to look at: those named, or all of the library."""
        if not named:
            known = _files_of(self._there())
            return (path for path in known if not missing_leave or is_document(path))
        there = [path for path in named if not missing_leave or _may_be_there(path)]
        return find_files(there, hidden=hidden)

    def add_texts(
        self,
        texts: Mapping[str, str],
        *,
        metadata: Metadata | None = None,
        encode: Encode | None = None,
    ) -> Report:
        """The same for texts that no file holds, under names of yours, which are no absolute paths.

        The new text of a name replaces the one before.
        """
        encode = self._remembering() if encode is None else encode
        for name in texts:
            fits = name != "" and not is_file_name(name)
            require(fits, "texts", "under names that are no absolute paths", name)
        with self._writing() as opened:
            embedder, settings = self.embedder, opened.settings
            sources = (
                text_source(name, text, settings, embedder, metadata)
                for name, text in texts.items()
            )
            return update(opened, embedder, sources, encode=encode)

    def remove(self, names: Paths) -> Report:
        """Take documents out: a file, all below a directory, or a text of yours by its name.

        Raises :class:`~xattn.errors.LibraryError` for a name that the library does not have.
        """
        wanted = [names] if isinstance(names, str | os.PathLike) else list(names)
        self._there()
        with self._writing() as opened:
            gone: dict[str, None] = {}
            for name in (os.fspath(one) for one in wanted):
                found = [file.source for file in opened.catalogue.files() if _is_in(file, name)]
                if not found:
                    raise LibraryError(f"{self.root} has nothing of the name {name!r}.")
                gone.update(dict.fromkeys(found))
            return update(opened, self.embedder, (), gone=gone)

    def remake(
        self,
        *,
        embedder: str | Embedder | None = None,
        passage_tokens: int | None = None,
        overlap: int | None = None,
        language: str | None = None,
        encode: Encode | None = None,
        progress: Progress | None = None,
    ) -> Report:
        """Make the library anew from its files, with other settings where they are given.

        Until that is done readers find what they found before; a run that dies is gone on with by
        the next that has the same settings. Texts that no file holds have to be added again.
        """
        self._there()
        with self._writing() as old:
            wanted = self._given if embedder is None else embedder
            if wanted is None or isinstance(wanted, str):
                wanted = self._named(wanted or old.settings.embedder)
            changes = {
                "passage_tokens": passage_tokens,
                "overlap": overlap,
                "language": language,
                "embedder": wanted.name,
                "identity": wanted.identity,
                "dimensions": wanted.dimensions,
            }
            settings = changed(old.settings, changes)
            _require_bounds(settings.passage_tokens, settings.overlap, settings.language)
            with remaking(self.root, settings, self._database) as new:
                report = update(
                    new,
                    wanted,
                    (source_again(file, settings, wanted) for file in old.catalogue.files()),
                    size_bytes=sum(file.size for file in old.catalogue.files()),
                    encode=encode,
                    progress=progress,
                )
            self._given, self._wanted = wanted, dict.fromkeys(self._wanted)
            old.drop(self.root)
            self._opened = self._version = None
        return report

    @contextmanager
    def _writing(self) -> Iterator[Opened]:
        """The library, made if it is not there, while nobody else writes to it."""
        if self._reopen() is None:
            make_directory(self.root)
        with writing(self.root):
            if self._reopen() is None:
                write_settings(self.root, self._new_settings())
            opened = self._there()
            drop_remains(self.root, opened.settings, self._database)
            yield opened

    def _new_settings(self) -> Settings:
        embedder = self._named(DEFAULT) if self._given is None else self._given
        chosen: dict[str, Any] = {
            name: value for name, value in self._wanted.items() if value is not None
        }
        most = chosen.get("passage_tokens", PASSAGE_TOKENS)
        usual: dict[str, Any] = {
            "passage_tokens": PASSAGE_TOKENS,
            "overlap": min(OVERLAP, most // 4),
            "language": LANGUAGE,
            "database": LANCE,
        }
        return Settings(
            embedder=embedder.name,
            identity=embedder.identity,
            dimensions=embedder.dimensions,
            name=uuid4().hex,
            **(usual | chosen),
        )

    # Reading

    def search(
        self, question: str, k: int = PASSAGES_FOUND, where: Where | None = None
    ) -> list[Found]:
        """The ``k`` passages that go best with ``question``, or all there are, the best first.

        ``where`` says which passages may be found: ``{"source": "a.md", "year": 2020}``, lists of
        values, or ranges ``{"min": …, "max": …}`` (:mod:`xattn.library.filters`). Raises
        :class:`~xattn.errors.UsageError` where it names what passages do not have.
        """
        opened = self._there()
        retriever = Retriever(
            catalogue=opened.catalogue,
            index=opened.index,
            embedder=self.embedder,
            reranker=self._reranker,
        )
        return retriever.search(question, k, _with_paths(opened, where))

    # Answering

    def ask(
        self,
        question: str,
        k: int = PASSAGES_FOUND,
        where: Where | None = None,
        **settings: Any,
    ) -> Answer:
        """An answer from the ``k`` passages that go best with ``question``, with what it rests on.

        ``where`` is that of :meth:`search`, ``settings`` those of
        :meth:`Model.generate <xattn.Model.generate>`, and ``calibration``, where it is not to be
        the one that xattn has of the model. Raises what these raise;
        :class:`~xattn.errors.LibraryError` where no passage is found, and
        :class:`~xattn.errors.PromptError` where question and passages are longer than the model
        reads.
        """
        reader = self._answering()
        require_question(question)
        passages = self._passages_for(question, k, where)
        return self._checked(answer(reader, question, passages, **settings))

    def ask_many(
        self,
        questions: Sequence[str],
        k: int = PASSAGES_FOUND,
        where: Where | None = None,
        **settings: Any,
    ) -> list[Answer]:
        """Several questions, decoded together; what they have in common is held once.

        Raises as :meth:`ask`, before anything is answered.
        """
        several = not isinstance(questions, str) and len(questions) > 0
        require(several, "questions", "a list of one text or more", questions)
        if len(questions) == 1:
            return [self.ask(questions[0], k, where, **settings)]
        reader = self._answering()
        for question in questions:
            require_question(question)
        asked = [(question, self._passages_for(question, k, where)) for question in questions]
        return [self._checked(one) for one in answers(reader, asked, **settings)]

    def remember(self, progress: Callable[[int, int], None] | None = None) -> int:
        """Make the memories that the store does not have of all passages; how many there were.

        ``progress`` is told how many passages were looked at, of how many.
        """
        reader, done, made, total = self._answering(), 0, 0, len(self)
        store = reader.model.store
        require(store is not None, "store", "given, to keep memories in", store)
        assert store is not None
        passages = self.passages()
        while some := list(islice(passages, REMEMBERED_AT_ONCE)):
            missing = [one for one in reader.sources(some) if one.key not in store]
            reader.model.remembered(missing)
            made, done = made + len(missing), done + len(some)
            if progress is not None:
                progress(done, total)
        return made

    def _answering(self) -> Reader:
        if self.reader is None:
            raise UsageError(
                "this library was opened without a model, and finds passages only; give `model`, "
                "or set `reader`."
            )
        return self.reader

    def _remembering(self) -> Encode | None:
        """What makes the memories of new passages, where there is a store to keep them."""
        reader = self.reader
        if reader is None or reader.model.store is None:
            return None

        def encode(passages: Sequence[Passage]) -> None:
            reader.model.remembered(reader.sources(passages))

        return encode

    def _passages_for(self, question: str, k: int, where: Where | None) -> list[Passage]:
        found = [one.passage for one in self.search(question, k, where)]
        if not found:
            which = " that `where` lets be found" if where else ""
            raise LibraryError(f"{self.root} has no passages{which}; there is nothing to read.")
        return found

    def _checked(self, found: Answer) -> Answer:
        """The answer, its citations beside their files as these are now."""
        citations = []
        for citation in found.citations:
            file = self.file(citation.passage.source)
            known = file is not None and is_file_name(file.source)
            citations.append(checked(citation, file.digest) if file and known else citation)
        return replace(found, citations=tuple(citations))

    def files(self) -> Iterator[File]:
        """The documents that the library knows, by name."""
        yield from self._there().catalogue.files()

    def file(self, name: str | os.PathLike[str]) -> File | None:
        """One document: a file, or a text by its name."""
        catalogue = self._there().catalogue
        return catalogue.file(os.fspath(name)) or catalogue.file(os.path.abspath(name))

    def passages(self, source: str | None = None) -> Iterator[Passage]:
        """The passages of one document in order, or of all, read as they are asked for."""
        opened = self._there()
        for ids in opened.catalogue.passage_ids(source):
            found = passages_of(opened.catalogue, opened.index, ids)
            yield from (found[id] for id in ids if id in found)

    def __len__(self) -> int:
        """Passages."""
        return self._there().catalogue.count_passages()

    def fields(self) -> dict[str, str]:
        """What passages can be filtered by, and of which kind each is: text, number, truth."""
        return {field.name: field.kind for field in self._there().catalogue.fields()}


def _require_bounds(passage_tokens: Any, overlap: Any, language: Any) -> None:
    most = PASSAGE_TOKENS if passage_tokens is None else passage_tokens
    require(is_whole(most, 1), "passage_tokens", "at least 1, or None", passage_tokens)
    fits = overlap is None or (is_whole(overlap, 0) and overlap <= most // 2)
    require(fits, "overlap", f"between 0 and {most // 2}, or None", overlap)
    known = language is None or language in LANGUAGES
    require(known, "language", f"one of {', '.join(LANGUAGES)}, or None", language)


def _reader_of(model: str | Model, store: MemoryStore | None, offline: bool) -> Reader:
    loaded = load(model, offline=offline) if isinstance(model, str) else model
    require(isinstance(loaded, Model), "model", "what xattn.load returned, or a name", model)
    if store is not None:
        loaded.store = store
    return reader_for(loaded)


def _files_of(opened: Opened) -> Iterator[Path]:
    return (Path(file.source) for file in opened.catalogue.files() if is_file_name(file.source))


def _may_be_there(path: PathName) -> bool:
    return has_magic(os.fspath(path)) or os.path.lexists(Path(path).expanduser())


def _gone(opened: Opened, seen: Seen, below: Iterable[PathName] | None) -> Iterator[str]:
    """Files of the library that are not there any more, below some paths or anywhere.

    One that is empty now, a directory, or no text is as good as gone.
    """
    roots = None if below is None else [_root(path) for path in below]
    for path in _files_of(opened):
        if str(path) in seen or is_document(path):
            continue
        if roots is None or any(path.is_relative_to(root) for root in roots):
            yield str(path)


def _root(path: PathName) -> Path:
    """The directory below which a path or pattern finds files."""
    parts = Path(os.path.abspath(Path(path).expanduser())).parts
    plain = list(takewhile(lambda part: not has_magic(part), parts))
    return Path(*plain)


def _is_in(file: File, name: str) -> bool:
    if not is_file_name(file.source):
        return file.source == name
    return Path(file.source).is_relative_to(os.path.abspath(os.path.expanduser(name)))


def _with_paths(opened: Opened, where: Where | None) -> Where | None:
    """``where`` with the files that it names as they are known: by absolute paths."""
    if not isinstance(where, Mapping) or "source" not in where:
        return where

    def known(name: Any) -> Any:
        if not isinstance(name, str) or opened.catalogue.file(name) is not None:
            return name
        absolute = os.path.abspath(os.path.expanduser(name))
        return absolute if opened.catalogue.file(absolute) is not None else name

    sources = where["source"]
    several = isinstance(sources, list | tuple | set | frozenset)
    return {**where, "source": [known(one) for one in sources] if several else known(sources)}
