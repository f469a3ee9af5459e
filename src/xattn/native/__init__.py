"""Kernels in C++ that are compiled for this processor on first use, and kept.

:func:`library` gives them, or None where they cannot be had; everything they do, torch does too,
only slower. ``XATTN_NATIVE=0`` leaves them alone.
"""

from xattn.native.compiler import NativeError
from xattn.native.library import Library, library

__all__ = ["Library", "NativeError", "library"]
