"""What kind of document a file is, by its suffix; and whether its first bytes agree."""

from pathlib import Path

from xattn.library.documents.document import Kind
from xattn.library.documents.files import unreadable

_SUFFIXES: dict[Kind, str] = {
    "text": ".txt .text .log .rst .tex .adoc .org .srt .vtt",
    "markdown": ".md .markdown .mdown .mkd",
    "html": ".html .htm .xhtml",
    "pdf": ".pdf",
    "docx": ".docx",
    "csv": ".csv .tsv .tab",
    "jsonl": ".jsonl .ndjson",
    "parquet": ".parquet",
    "code": (
        ".py .pyi .c .h .cc .cpp .cxx .hh .hpp .cu .cuh .rs .go .java .kt .kts .scala .swift .cs "
        ".js .jsx .mjs .cjs .ts .tsx .rb .php .lua .pl .pm .r .jl .m .mm .sh .bash .zsh .sql .zig "
        ".ex .exs .erl .hs .ml .mli .clj .dart .vue .svelte .css .scss .less .json .toml .yaml "
        ".yml .ini .cfg .cmake .mk .proto .graphql .tf"
    ),
}
KINDS: dict[str, Kind] = {
    suffix: kind for kind, suffixes in _SUFFIXES.items() for suffix in suffixes.split()
}
_MAGIC: dict[bytes, tuple[str, Kind | None]] = {
    b"%PDF-": ("a PDF", "pdf"),
    b"PK\x03\x04": ("a ZIP archive, such as an office document", "docx"),
    b"PAR1": ("a Parquet file", "parquet"),
    b"PARE": ("an encrypted Parquet file, which is not read; save it without encryption", None),
    b"\xd0\xcf\x11\xe0": (
        "an encrypted or an old office document; save it as .docx, without a password",
        None,
    ),
}


def kind_of(path: Path) -> Kind:
    """By its suffix; text where that says nothing."""
    return KINDS.get(path.suffix.lower(), "text")


def require_kind(path: Path, kind: Kind) -> None:
    """Raise :class:`UnreadableSourceError` where a file's first bytes are of another kind."""
    with path.open("rb") as file:
        head = file.read(1024)
    # Before a PDF's first line there may be other things.
    what, found = next(
        (said for magic, said in _MAGIC.items() if head.startswith(magic)),
        _MAGIC[b"%PDF-"] if kind == "pdf" and b"%PDF-" in head else ("", None),
    )
    if what and found != kind:
        rename = f"; give it the suffix .{found}" if found else ""
        raise unreadable(path, f"is {what}{rename}")
    if kind in ("pdf", "docx", "parquet") and found != kind:
        raise unreadable(path, f"is no {kind.upper()} file, whatever its name says; leave it out")
