"""How a model reads passages: three ways behind one interface.

======================  ===========================================================================
:class:`FusionReader`   an encoder-decoder, or a graft, reads each passage alone, and attends to all
:class:`ParallelReader` a language model reads each passage alone behind a prefix that all share
:class:`PlainReader`    a language model reads prefix, passages and question as one prompt
======================  ===========================================================================
"""

from xattn.library.readers.base import Asked, Place, Reader, Search
from xattn.library.readers.fusion import FusionReader
from xattn.library.readers.language import ParallelReader, PlainReader
from xattn.model import Model

__all__ = [
    "Asked",
    "FusionReader",
    "ParallelReader",
    "Place",
    "PlainReader",
    "Reader",
    "Search",
    "reader_for",
]


def reader_for(model: Model) -> Reader:
    """The reader that suits a model: fusion for one that cross-attends, else parallel memories."""
    if model.spec.decoder.cross_attention is None:
        return ParallelReader(model)
    return FusionReader(model)
