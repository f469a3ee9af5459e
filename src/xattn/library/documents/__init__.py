"""Files as documents: a title, and sections that come one after the other, whatever the format."""

from xattn.library.documents.document import Document, document_of
from xattn.library.documents.files import digest_of_file
from xattn.library.documents.find import find_files, is_document
from xattn.library.documents.read import has_name, read_document, shown_name

__all__ = [
    "Document",
    "digest_of_file",
    "document_of",
    "find_files",
    "has_name",
    "is_document",
    "read_document",
    "shown_name",
]
