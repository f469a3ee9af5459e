"""Pictures: any file or array to decoded pixels, which are what a memory of one is named by."""

import io
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xattn.errors import (
    InvalidSourceError,
    MissingExtraError,
    SourceNotFoundError,
    UnreadableSourceError,
    require,
)
from xattn.memory import Hash, digest_of

if TYPE_CHECKING:
    from PIL.Image import Image

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
MOST_PIXELS = 2**28
"""Larger pictures are refused: a small file can unpack to far more than memory holds."""


@dataclass(frozen=True, eq=False)
class Picture:
    """Decoded pixels ``[height, width, channels]``, upright, 8 bits a channel."""

    pixels_YXC: NDArray[np.uint8]
    mode: str
    """``L`` (grey), ``RGB`` or ``RGBA``."""
    label: str

    @property
    def canonical_bytes(self) -> bytes:
        """What a memory's key digests: mode, height and width, then the pixels.

        The size is part of it, so that 30 x 100 pixels are not 100 x 30.
        """
        height, width = self.pixels_YXC.shape[:2]
        return self.mode.encode() + struct.pack("<2I", height, width) + self.pixels_YXC.tobytes()

    def digest(self, hash: Hash = "blake3") -> str:
        """64 hexadecimal characters over :attr:`canonical_bytes`."""
        return digest_of(self.canonical_bytes, hash=hash)


def read_image(source: Any) -> Picture:
    """Decode a picture: a path, the bytes of a file, a Pillow image, or an array ``[Y, X(, C)]``.

    It is turned as its EXIF says; palettes become RGB, or RGBA where they are transparent; one bit
    and grey become L, and CMYK RGB; more than 8 bits a channel are refused. Raises
    :class:`SourceNotFoundError`, :class:`UnreadableSourceError`, :class:`InvalidSourceError` (no
    pixels, or too many), :class:`UsageError` (an array of another shape or dtype), and
    :class:`MissingExtraError`.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise MissingExtraError("pillow", "vision", "reading pictures") from error
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)
    require(isinstance(source, kinds), "source", "a picture", type(source).__name__)
    label = "an image"
    try:
        if isinstance(source, str | os.PathLike):
            label = Path(source).name
            opened: Image.Image = Image.open(source)
        elif isinstance(source, bytes | bytearray | memoryview):
            opened = Image.open(io.BytesIO(bytes(source)))
        else:
            opened = source
        if opened.width * opened.height > MOST_PIXELS:
            raise InvalidSourceError(
                f"{label!r} has {opened.width} x {opened.height} pixels; at most {MOST_PIXELS} in "
                "all are read."
            )
        upright = ImageOps.exif_transpose(opened)
    except FileNotFoundError as error:
        raise SourceNotFoundError(f"there is no file {os.fspath(source)!r}.") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UnreadableSourceError(
            f"{label!r} is not a picture that can be read: {error}"
        ) from error
    except Image.DecompressionBombError as error:
        raise InvalidSourceError(f"{label!r}: {error}") from error
    return _from_array(np.asarray(_in_full(upright)), label)


def _in_full(image: "Image") -> "Image":
    """The image in a mode of :data:`MODES`, nothing of it lost."""
    transparent = "transparency" in image.info or image.mode in ("LA", "PA", "La", "RGBa")
    if image.mode in MODES.values() and not (transparent and image.mode != "RGBA"):
        return image
    if image.mode == "1":
        return image.convert("L")
    if image.mode.startswith("I") or image.mode == "F":
        raise UnreadableSourceError(
            f"a picture of mode {image.mode} has more than 8 bits a channel, which is not read; "
            "convert it to 8 bits."
        )
    return image.convert("RGBA" if transparent else "RGB")


def _from_array(pixels: NDArray[Any], label: str = "an array") -> Picture:
    require(pixels.dtype == np.uint8, "source", "of dtype uint8", str(pixels.dtype))
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    fits = pixels.ndim == 3 and pixels.shape[2] in MODES
    require(fits, "source", "of shape [Y, X] or [Y, X, 1, 3 or 4]", list(pixels.shape))
    if pixels.size == 0:
        raise InvalidSourceError(f"{label!r} has no pixels.")
    return Picture(np.ascontiguousarray(pixels), MODES[pixels.shape[2]], label)
