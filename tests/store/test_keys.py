"""Sources that are nearly the same have different keys, and the same source has one."""

import io
from datetime import date, datetime
from decimal import Decimal

import numpy as np
import pytest
import torch
from making import key_of
from PIL import Image

from xattn.errors import InvalidSourceError, SourceNotFoundError, UnreadableSourceError, UsageError
from xattn.inputs.audio import read_audio
from xattn.inputs.chunks import chunks
from xattn.inputs.image import read_image
from xattn.inputs.table import Table


def pixels(height, width, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def file_of(image, format="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def palette(*, transparent):
    image = Image.fromarray(pixels(8, 8)).quantize(4)
    return file_of(image, transparency=0) if transparent else file_of(image)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return file_of(Image.fromarray(pixels(6, 9)), exif=exif.tobytes())


def tone(rate, seconds=0.1):
    return np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate).astype(np.float32)


def image_key(source):
    return key_of("x", source=read_image(source).digest(), modality="image")


def audio_key(samples, **how):
    return key_of("x", source=read_audio(samples, **how).digest(), modality="audio")


def table_key(*rows, header=("a", "b")):
    return key_of("x", source=Table(header, rows).digest(), modality="text")


FLAT = pixels(30, 100)
NEAR_TWINS = {
    "30 x 100 pixels": lambda: image_key(FLAT),
    "100 x 30 pixels": lambda: image_key(FLAT.reshape(100, 30, 3)),
    "the same, transposed": lambda: image_key(FLAT.transpose(1, 0, 2)),
    "grey": lambda: image_key(pixels(30, 100, 1)),
    "grey, three times": lambda: image_key(np.stack([pixels(30, 100, 1)] * 3, axis=2)),
    "opaque, with alpha": lambda: image_key(np.dstack([FLAT, np.full((30, 100), 255, np.uint8)])),
    "one number off": lambda: image_key(FLAT ^ np.eye(30, 100, dtype=np.uint8)[:, :, None]),
    "upright": lambda: image_key(turned(1)),
    "turned by EXIF": lambda: image_key(turned(6)),
    "turned the other way": lambda: image_key(turned(8)),
    "palette": lambda: image_key(palette(transparent=False)),
    "palette, one colour transparent": lambda: image_key(palette(transparent=True)),
    "grey, one shade transparent": lambda: image_key(
        file_of(Image.fromarray(pixels(30, 100, 1)), transparency=7)
    ),
    "RGB, one colour transparent": lambda: image_key(
        file_of(Image.fromarray(FLAT), transparency=tuple(FLAT[0, 0].tolist()))
    ),
    "16 kHz": lambda: audio_key(tone(16000)),
    "the same samples at 8 kHz": lambda: audio_key(tone(16000), sample_rate=8000),
    "the same tone at 48 kHz": lambda: audio_key(tone(48000), sample_rate=48000),
    "one sample shorter": lambda: audio_key(tone(16000)[:-1]),
    "one sample of silence more": lambda: audio_key(np.append(tone(16000), np.float32(0))),
    "int16 samples": lambda: audio_key((tone(16000) * 32767).astype(np.int16)),
    "text": lambda: key_of("a text"),
    "text with a space": lambda: key_of("a text "),
    "another encoder": lambda: key_of("a text", encoder="f" * 64),
    "with an adapter": lambda: key_of("a text", encoder="e" * 64 + "+adapter"),
    "another tokenizer": lambda: key_of("a text", preprocessing="text/1 revision-2"),
    "another dtype": lambda: key_of("a text", dtype="bfloat16"),
    "another tenant": lambda: key_of("a text", tenant="t"),
    "another schema": lambda: key_of("a text", schema_version=99),
    "another hash": lambda: key_of("a text", hash="sha256"),
    "a table": lambda: table_key((1, 2), (3, 4)),
    "floats": lambda: table_key((1.0, 2.0), (3.0, 4.0)),
    "texts": lambda: table_key(("1", "2"), ("3", "4")),
    "one row of four": lambda: table_key((1, 2, 3, 4), header=("a", "b", "c", "d")),
    "true for 1": lambda: table_key((True, 2), (3, 4)),
    "nothing for 2": lambda: table_key((1, None), (3, 4)),
    "a decimal": lambda: table_key((Decimal(1), 2), (3, 4)),
    "a date": lambda: table_key((date(2026, 1, 1), 2), (3, 4)),
    "a time": lambda: table_key((datetime(2026, 1, 1), 2), (3, 4)),
    "cells that run together": lambda: table_key(("ab", "c")),
    "cells that run together otherwise": lambda: table_key(("a", "bc")),
}


def test_near_twins_have_keys_of_their_own():
    assert len(NEAR_TWINS) >= 30
    digests = {name: make().digest for name, make in NEAR_TWINS.items()}
    assert len(set(digests.values())) == len(digests)
    assert digests == {name: make().digest for name, make in NEAR_TWINS.items()}


def test_the_same_picture_in_any_container_has_one_key():
    image = Image.fromarray(FLAT)
    keys = {
        image_key(source).digest
        for source in (FLAT, image, file_of(image), file_of(image, "BMP"), file_of(image, "TIFF"))
    }
    assert len(keys) == 1


def test_pictures_that_are_none(tmp_path):
    with pytest.raises(SourceNotFoundError, match=r"none\.png"):
        read_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(UnreadableSourceError, match=r"text\.png"):
        read_image(tmp_path / "text.png")
    whole = file_of(Image.fromarray(FLAT))
    with pytest.raises(UnreadableSourceError):
        read_image(whole[: len(whole) // 2])
    with pytest.raises(UnreadableSourceError, match="more than 8 bits a channel"):
        read_image(Image.fromarray(np.full((3, 3), 60000, dtype=np.uint16)))
    with pytest.raises(UsageError, match="of dtype uint8"):
        read_image(np.zeros((3, 3), dtype=np.float32))
    with pytest.raises(UsageError, match="of shape"):
        read_image(np.zeros((3, 3, 5), dtype=np.uint8))
    with pytest.raises(InvalidSourceError, match="no pixels"):
        read_image(np.zeros((0, 3), dtype=np.uint8))
    with pytest.raises(UsageError, match="a picture"):
        read_image(torch.zeros(3))


def test_tables_that_are_none():
    with pytest.raises(InvalidSourceError, match="row 1 of the table has 1 cells"):
        Table(("a", "b"), ((1, 2), (3,)))
    with pytest.raises(InvalidSourceError, match="cannot be a set"):
        Table(("a",), (({1},),)).digest()


def test_a_changed_row_changes_its_own_chunk():
    rows = [(n, f"row {n}", n * 1.5) for n in range(200)]
    count = lambda table: 6 * len(table.rows)  # noqa: E731
    before = list(Table(("n", "name", "x"), tuple(rows)).chunks(count, 120))
    assert sum(len(piece.rows) for piece in before) == 200
    assert all(count(piece) <= 120 for piece in before)
    rows[100] = (100, "another", 0.0)
    after = list(Table(("n", "name", "x"), tuple(rows)).chunks(count, 120))
    kept = {piece.digest() for piece in before} & {piece.digest() for piece in after}
    assert len(kept) >= len(before) - 3


@pytest.mark.parametrize(
    "text",
    [
        "这是一个句子。" * 300,
        "二つの文！もう一つ？" * 100,
        "x" * 3000,
        "long " * 700,
        "A sentence. Another one!\n\nA paragraph without an end " * 40,
        "一" * 999,
    ],
    ids=["chinese", "japanese", "one word", "one sentence", "mixed", "one character"],
)
def test_no_chunk_is_too_long(text):
    pieces = chunks(text, len, 64)
    assert "".join(text[start:end] for start, end in pieces) == text
    assert all(0 < end - start <= 64 for start, end in pieces)
