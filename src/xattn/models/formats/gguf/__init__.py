"""GGUF files: language models as llama.cpp users have them on disk."""

from xattn.models.formats.gguf.checkpoint import matches, read

__all__ = ["matches", "read"]
