"""Sources that are nearly the same have different keys, and the same source has one."""

import io
import json
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import transformers
import vocabularies
from PIL import Image
from safetensors.torch import load_file, save_file

import xattn
from xattn.errors import InvalidSourceError, SourceNotFoundError, UnreadableSourceError, UsageError
from xattn.inputs.chunks import chunks
from xattn.inputs.image import read_image
from xattn.inputs.table import Table
from xattn.memory import SCHEMA_VERSION
from xattn.store import MemoryStore

TEXT = "The quick brown fox"


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


# Real models, small and random, with real tokenizers


def llama_tokenizer(directory):
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    vocabularies.write(
        directory, tokenizer__json=vocabularies.byte_level_json(), tokenizer_config__json=config
    )


TOKENIZERS = {
    "bart": vocabularies.bart,
    "t5": vocabularies.t5,
    "m2m_100": vocabularies.m2m100,
    "llama": llama_tokenizer,
    "whisper": lambda directory: None,
}


def another_config(**changes):
    """What is saved is the same, and read otherwise."""

    def edit(directory):
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def another_merge(directory):
    path = directory / "merges.txt"
    *lines, one, other = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines, other, one]) + "\n", encoding="utf-8")


def another_vocabulary(directory):
    path = directory / "vocab.json"
    ids = json.loads(path.read_text(encoding="utf-8"))
    ids["t"], ids["h"] = ids["h"], ids["t"]
    path.write_text(json.dumps(ids), encoding="utf-8")


def another_piece(directory):
    path = directory / "spiece.model"
    content = path.read_bytes()
    pieces = [piece for piece, _ in vocabularies.pieces_of(content)[3:] if piece.isascii()]
    piece = max(pieces, key=len).encode()
    path.write_bytes(content.replace(piece, piece[:-1] + b"#"))


def prefix_space(directory):
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"add_prefix_space": True}))


def one_number(directory):
    """One weight of the encoder differs in its last bit."""
    path = directory / "model.safetensors"
    weights = load_file(path)
    [name] = [name for name in weights if name.endswith("encoder.layers.0.fc1.weight")]
    flat = weights[name].view(-1)
    flat[777] = torch.nextafter(flat[777], torch.tensor(9.0))
    save_file(weights, path, {"format": "pt"})


class Checkpoints:
    """Directories of tiny models, made once each, and loaded anew each time."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cache  # noqa: B019  (it lives as long as the module's tests)
    def directory(self, name, edit=None, **changes):
        directory = self.root / f"{len(list(self.root.iterdir()))}"
        directory.mkdir()
        tiny.make(name, directory, vocab_size=600, **changes)
        TOKENIZERS[name](directory)
        if edit is not None:
            edit(directory)
        return directory

    def load(self, name, edit=None, *, dtype="float32", hash="blake3", **changes):
        return xattn.load(self.directory(name, edit, **changes), dtype=dtype, hash=hash)

    @cache  # noqa: B019
    def eyes(self):
        torch.manual_seed(0)
        config = transformers.ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            image_size=24,
            patch_size=8,
        )
        processor = transformers.ViTImageProcessorPil(size={"height": 24, "width": 24})
        return xattn.PictureEncoder(transformers.ViTModel(config).eval(), processor)


def with_low_rank_update(model, *, seed=0, rank=2):
    """As adapters are merged: added to the weights' data, where autograd does not see it."""
    random_ = torch.Generator().manual_seed(seed)
    maker = model.network.encoder or model.network.decoder
    for name, weight in maker.named_parameters():
        if name.endswith(("q.weight", "v.weight")):
            down = torch.randn(rank, weight.shape[1], generator=random_)
            up = torch.randn(weight.shape[0], rank, generator=random_)
            weight.data += 0.01 * up @ down
    return model


def merged_after_a_key_was_taken(model):
    model.prepare(TEXT)
    return with_low_rank_update(model)


@pytest.fixture(scope="module")
def two_of_each(tmp_path_factory):
    """Two makers of the same checkpoints, in directories of their own."""
    return [Checkpoints(tmp_path_factory.mktemp("checkpoints")) for _ in range(2)]


def text_twin(name, edit=None, text=TEXT, **how):
    return lambda made: made.load(name, edit, **how).prepare(text).key


def token_ids(made, name):
    model = made.load(name)
    return model.prepare(list(model.prepare(TEXT).inputs)).key


def from_language(language):
    return lambda made: made.load("m2m_100").prepare(TEXT, language=language).key


def audio_twin(samples, *, edit=None, **how):
    return lambda made: made.load("whisper", edit).prepare(samples, **how).key


def in_a_store(**whose):
    def make(made):
        store = MemoryStore(made.root / f"store of {sorted(whose)}", **whose)
        return store.key_of(made.load("bart").prepare(TEXT).key)

    return make


def image_twin(source):
    return lambda made: made.eyes().prepare(source() if callable(source) else source).key


def table_twin(*rows, header=("a", "b"), of="bart"):
    return lambda made: made.load(of).prepare(Table(header, rows)).key


FLAT = pixels(30, 100)
GREY = pixels(30, 100, 1)
TONE = tone(16000)
NEAR_TWINS = {
    # Texts
    "text": text_twin("bart"),
    "text with a space": text_twin("bart", text=f"{TEXT} "),
    "text in lower case": text_twin("bart", text=TEXT.lower()),
    "the same token ids": lambda made: token_ids(made, "bart"),
    "a line of it": lambda made: made.load("bart").prepare_long(f"{TEXT}.\n\n{TEXT}.")[0].key,
    # Weights
    "with an adapter": lambda made: with_low_rank_update(made.load("bart")).prepare(TEXT).key,
    "with another adapter": lambda made: (
        with_low_rank_update(made.load("bart"), seed=1).prepare(TEXT).key
    ),
    "with the adapter twice": lambda made: (
        with_low_rank_update(merged_after_a_key_was_taken(made.load("bart"))).prepare(TEXT).key
    ),
    "one number off in the last bit": text_twin("bart", one_number),
    "weights of another seed": text_twin("bart", seed=1),
    "bfloat16": text_twin("bart", dtype="bfloat16"),
    "float16": text_twin("bart", dtype="float16"),
    # The same weights, read otherwise
    "two heads for four": text_twin("bart", another_config(encoder_attention_heads=2)),
    "another activation": text_twin("bart", another_config(activation_function="relu")),
    "scaled embeddings": text_twin("bart", another_config(scale_embedding=True)),
    "T5": text_twin("t5"),
    "another eps": text_twin("t5", another_config(layer_norm_epsilon=1e-5)),
    "another distance": text_twin("t5", another_config(relative_attention_max_distance=13)),
    # Tokenizers
    "two merges in another order": text_twin("bart", another_merge),
    "two ids exchanged": text_twin("bart", another_vocabulary),
    "a space before the text": text_twin("bart", prefix_space),
    "another piece": text_twin("t5", another_piece),
    # Languages
    "from English": from_language("en"),
    "from French": from_language("fr"),
    "from German": from_language("de"),
    # Models that have no encoder: keys and values
    "keys and values": text_twin("llama"),
    "keys and values, token ids": lambda made: token_ids(made, "llama"),
    "keys and values, with an adapter": lambda made: (
        with_low_rank_update(made.load("llama")).prepare(TEXT).key
    ),
    "keys and values, another eps": text_twin("llama", another_config(rms_norm_eps=1e-4)),
    "keys and values, another theta": text_twin(
        "llama", another_config(rope_parameters={"rope_type": "default", "rope_theta": 5000.0})
    ),
    "keys and values, bfloat16": text_twin("llama", dtype="bfloat16"),
    # Whose it is, and how it is written
    "of a tenant": in_a_store(tenant="t"),
    "of another tenant": in_a_store(tenant="T"),
    "under a secret": in_a_store(secret=b"sixteen bytes or more"),
    "of a tenant, under a secret": in_a_store(tenant="t", secret=b"sixteen bytes or more"),
    "another hash": text_twin("bart", hash="sha256"),
    "of the next schema": lambda made: replace(
        made.load("bart").prepare(TEXT).key, schema_version=SCHEMA_VERSION + 1
    ),
    # Audio
    "16 kHz": audio_twin(TONE),
    "the same samples at 8 kHz": audio_twin(TONE, sample_rate=8000),
    "the same tone at 48 kHz": audio_twin(tone(48000), sample_rate=48000),
    "one sample shorter": audio_twin(TONE[:-1]),
    "one sample of silence more": audio_twin(np.append(TONE, np.float32(0))),
    "int16 samples": audio_twin((TONE * 32767).astype(np.int16)),
    "a window of a longer recording": lambda made: made.load("whisper").prepare_long(TONE)[0].key,
    "audio, two heads for four": audio_twin(TONE, edit=another_config(encoder_attention_heads=2)),
    # Pictures
    "30 x 100 pixels": image_twin(FLAT),
    "100 x 30 pixels": image_twin(FLAT.reshape(100, 30, 3)),
    "the same, transposed": image_twin(FLAT.transpose(1, 0, 2)),
    "grey": image_twin(GREY),
    "grey, three times": image_twin(np.stack([GREY] * 3, axis=2)),
    "opaque, with alpha": image_twin(np.dstack([FLAT, np.full((30, 100), 255, np.uint8)])),
    "one number off": image_twin(FLAT ^ np.eye(30, 100, dtype=np.uint8)[:, :, None]),
    "upright": image_twin(lambda: turned(1)),
    "turned by EXIF": image_twin(lambda: turned(6)),
    "turned the other way": image_twin(lambda: turned(8)),
    "palette": image_twin(lambda: palette(transparent=False)),
    "palette, one colour transparent": image_twin(lambda: palette(transparent=True)),
    "grey, one shade transparent": image_twin(
        lambda: file_of(Image.fromarray(GREY), transparency=7)
    ),
    "RGB, one colour transparent": image_twin(
        lambda: file_of(Image.fromarray(FLAT), transparency=tuple(FLAT[0, 0].tolist()))
    ),
    # Tables
    "a table": table_twin((1, 2), (3, 4)),
    "its text": lambda made: (
        made.load("bart").prepare("".join(Table(("a", "b"), ((1, 2), (3, 4))).pieces())).key
    ),
    "a table as keys and values": table_twin((1, 2), (3, 4), of="llama"),
    "floats": table_twin((1.0, 2.0), (3.0, 4.0)),
    "texts": table_twin(("1", "2"), ("3", "4")),
    "one row of four": table_twin((1, 2, 3, 4), header=("a", "b", "c", "d")),
    "true for 1": table_twin((True, 2), (3, 4)),
    "nothing for 2": table_twin((1, None), (3, 4)),
    "a decimal": table_twin((Decimal(1), 2), (3, 4)),
    "a date": table_twin((date(2026, 1, 1), 2), (3, 4)),
    "a time": table_twin((datetime(2026, 1, 1), 2), (3, 4)),
    "cells that run together": table_twin(("ab", "c")),
    "cells that run together otherwise": table_twin(("a", "bc")),
}


def test_near_twins_have_keys_of_their_own(two_of_each):
    """And each has the same one when everything is made again, elsewhere."""
    assert len(NEAR_TWINS) >= 30
    first, second = (
        {name: make(made).digest for name, make in NEAR_TWINS.items()} for made in two_of_each
    )
    assert len(set(first.values())) == len(first)
    assert first == second


def test_an_adapter_that_is_taken_out_again_gives_the_old_key(two_of_each):
    model = two_of_each[0].load("bart")
    weights = {name: weight.clone() for name, weight in model.network.named_parameters()}
    before = model.prepare(TEXT).key
    assert with_low_rank_update(model).prepare(TEXT).key != before
    for name, weight in model.network.named_parameters():
        weight.data.copy_(weights[name])
    assert model.prepare(TEXT).key == before


def test_what_makes_no_difference_to_a_memory_makes_none_to_its_key(two_of_each):
    made = two_of_each[0]
    key = made.load("bart").prepare(TEXT).key
    decoder_only = {"decoder_attention_heads": 2, "decoder_start_token_id": 5}
    assert made.load("bart", another_config(**decoder_only)).prepare(TEXT).key == key
    model = made.load("bart")
    for weight in model.network.decoder.parameters():
        if not any(weight is other for other in model.network.encoder.parameters()):
            weight.data += 1
    assert model.prepare(TEXT).key == key
    composed, decomposed = (
        "caf\N{LATIN SMALL LETTER E WITH ACUTE}",
        "cafe\N{COMBINING ACUTE ACCENT}",
    )
    assert model.prepare(composed).key == model.prepare(decomposed).key


def test_the_same_picture_in_any_container_has_one_key():
    image = Image.fromarray(FLAT)
    keys = {
        read_image(source).digest()
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
