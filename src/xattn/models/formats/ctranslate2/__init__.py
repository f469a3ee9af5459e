"""CTranslate2 model directories: what faster-whisper and CTranslate2 users have on disk."""

from xattn.models.formats.ctranslate2.checkpoint import matches, read

__all__ = ["matches", "read"]
