"""The compiled kernels as functions, found once in a process."""

import ctypes
import functools
import os
import tempfile
import threading
import warnings
from ctypes import POINTER, byref, c_int64, c_void_p
from pathlib import Path

import torch  # it brings the threads that the kernels run on
from torch import Tensor

from xattn.counts import FLOAT_BYTES, GROUP
from xattn.native.compiler import NativeError, compiled
from xattn.native.structs import Matrix, Step


class Library:
    """The functions of ``kernels/decoder.cpp``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            functions = ctypes.CDLL(str(path))
            self._step, self._product = functions.xattn_step, functions.xattn_product
            self.likeliest = functions.xattn_likeliest
            """The best ``k`` of each row of logits; see ``kernels/likeliest.h``."""
        except (OSError, AttributeError) as error:
            raise NativeError(f"{path} cannot be loaded: {error}") from error
        self._step.restype, self._step.argtypes = c_int64, [POINTER(Step)]
        self._product.restype = None
        self._product.argtypes = [
            *(POINTER(Matrix), c_void_p, c_int64, c_void_p, c_void_p, c_void_p, c_int64)
        ]
        self.likeliest.restype = None
        self.likeliest.argtypes = [
            *(c_void_p, c_int64, c_int64, c_int64, c_int64),
            *(c_void_p, c_void_p, c_void_p, c_int64),
        ]

    def step(self, step: Step) -> int:
        """Run a step; 0, or the bytes that its workspace must have where it has fewer."""
        return self._step(byref(step))

    def product(self, matrix: Matrix, x: Tensor) -> Tensor:
        """``x Wᵀ + bias``: ``[..., I] -> [..., O]``, float32."""
        flat_MI = x.reshape(-1, matrix.input).float().contiguous()
        M, width = len(flat_MI), -(-matrix.input // GROUP) * GROUP
        found_MO = torch.empty(M, matrix.output)
        quantised = torch.empty(M * (2 * width + width // GROUP * FLOAT_BYTES), dtype=torch.uint8)
        scales_M = torch.empty(M)
        self._product(
            byref(matrix),
            flat_MI.data_ptr(),
            M,
            found_MO.data_ptr(),
            quantised.data_ptr(),
            scales_M.data_ptr(),
            torch.get_num_threads(),
        )
        return found_MO.view(*x.shape[:-1], matrix.output)


_LOCK = threading.Lock()


def library() -> Library | None:
    """The kernels; None, with one notice, where they cannot be compiled or loaded."""
    with _LOCK:  # a thread that comes meanwhile would compile them again
        return _library()


@functools.cache
def _library() -> Library | None:
    try:
        return required()
    except NativeError as error:
        if os.environ.get("XATTN_NATIVE") != "0":
            warnings.warn(
                f"decoding with torch alone, which is slower: {error}. Or set XATTN_NATIVE=0, to "
                "go without and without this notice.",
                stacklevel=3,
            )
        return None


def required() -> Library:
    """The kernels, or :class:`NativeError` with the reason why there are none."""
    if os.environ.get("XATTN_NATIVE") == "0":
        raise NativeError("XATTN_NATIVE=0")
    return Library(compiled(directory()))


def directory() -> Path:
    """Where compiled kernels are kept: not in ``xattn``, which is the store's alone."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(home).expanduser() / "xattn-native"
    except RuntimeError:  # a user without a home
        return Path(tempfile.gettempdir()) / f"xattn-native-{os.getuid()}"
