"""Long texts, tables and pictures on their way into the store, and where positions come from."""

import io
import random
import string
from datetime import date, datetime, time
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import tiny
import torch
import transformers
import vocabularies
from PIL import Image
from transformers.modeling_outputs import BaseModelOutput

import xattn
from xattn.errors import (
    InvalidSourceError,
    SourceNotFoundError,
    UnreadableSourceError,
    UsageError,
)
from xattn.inputs.chunks import chunks
from xattn.inputs.table import Table, cell_text, read_table
from xattn.memory import Span
from xattn.models.pictures import PictureEncoder
from xattn.models.tables import prepare_long_table
from xattn.store import MemoryStore

# Chunks


class Writer:
    """Paragraphs of sentences of 2 to 70 words, most of them of 10 to 25."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        lengths = [self.random.randint(2, 11) for _ in range(2000)]
        self.words = ["".join(self.random.choices(string.ascii_lowercase, k=n)) for n in lengths]

    def sentence(self):
        words = max(2, min(70, int(self.random.lognormvariate(2.75, 0.55))))
        return " ".join(self.random.choices(self.words, k=words)).capitalize() + "."

    def paragraph(self):
        return [self.sentence() for _ in range(self.random.randint(1, 8))]

    def edited(self, paragraphs, kind):
        """A copy with one change at a place drawn at random."""
        paragraphs = [list(paragraph) for paragraph in paragraphs]
        n = self.random.randrange(len(paragraphs))
        place = self.random.randrange(len(paragraphs[n]))
        if kind == "replace a sentence":
            paragraphs[n][place] = self.sentence()
        elif kind == "insert a sentence":
            paragraphs[n].insert(place, self.sentence())
        elif kind == "delete a sentence":
            del paragraphs[n][place]
        elif kind == "replace a paragraph":
            paragraphs[n] = self.paragraph()
        elif kind == "insert a paragraph":
            paragraphs.insert(n, self.paragraph())
        else:
            del paragraphs[n]
        return [paragraph for paragraph in paragraphs if paragraph]


KINDS = [
    f"{what} a {where}"
    for what in ("replace", "insert", "delete")
    for where in ("sentence", "paragraph")
]


def words_in(text):
    return len(text.split())


def pieces_of(text, most):
    return [text[start:end] for start, end in chunks(text, words_in, most)]


@pytest.mark.parametrize("between", ["\n\n", " "], ids=["paragraphs", "one paragraph"])
def test_an_edit_changes_little_more_than_its_own_chunk(between):
    writer, changed, filled = Writer(0), [], []
    for _ in range(3):
        paragraphs = [writer.paragraph() for _ in range(90)]
        before = pieces_of(between.join(map(" ".join, paragraphs)), 150)
        filled += [words_in(piece) / 150 for piece in before]
        for n in range(120):
            edited = writer.edited(paragraphs, KINDS[n % len(KINDS)])
            after = pieces_of(between.join(map(" ".join, edited)), 150)
            changed.append(len(set(after) - set(before)))
    assert sum(changed) / len(changed) < 1.8
    assert sorted(changed)[len(changed) * 99 // 100] <= 5
    assert max(changed) <= 8
    assert sum(filled) / len(filled) > 0.6


def test_an_edit_of_a_text_without_sentences_does_too():
    writer = Writer(1)
    words = writer.random.choices(writer.words, k=6000)
    before, changed = pieces_of(" ".join(words), 150), []
    for _ in range(40):
        place = writer.random.randrange(len(words))
        edited = [*words[:place], *writer.random.choices(writer.words, k=3), *words[place + 2 :]]
        changed.append(len(set(pieces_of(" ".join(edited), 150)) - set(before)))
    assert sum(changed) / len(changed) < 2


def test_each_sentence_is_counted_once():
    writer = Writer(2)
    text = " ".join(writer.sentence() for _ in range(500))
    counted = []

    def count(piece):
        counted.append(len(piece))
        return words_in(piece)

    chunks(text, count, 150)
    assert sum(counted) == len(text)


def test_one_long_word_is_counted_a_few_times():
    counted = []

    def count(piece):
        counted.append(len(piece))
        return len(piece)

    assert len(chunks("x" * 100_000, count, 200)) < 100_000 / 50
    assert sum(counted) < 25 * 100_000


@pytest.mark.parametrize("change", ["replace", "insert", "delete"])
def test_a_changed_row_changes_little_more_than_its_own_chunk(change):
    writer, changed = Writer(3), []
    rows = [(n, writer.sentence()) for n in range(400)]

    def count(table):
        return 2 + sum(1 + words_in(text) for _, text in table.rows)

    def digests(rows):
        pieces = list(Table(("n", "text"), tuple(rows)).chunks(count, 150))
        assert [row for piece in pieces for row in piece.rows] == rows
        assert all(count(piece) <= 150 for piece in pieces)
        return {piece.digest() for piece in pieces}

    before = digests(rows)
    for _ in range(60):
        place, row = writer.random.randrange(len(rows)), (1000, writer.sentence())
        kept = rows[place:] if change == "insert" else rows[place + 1 :]
        new = [] if change == "delete" else [row]
        changed.append(len(digests([*rows[:place], *new, *kept]) - before))
    assert sum(changed) / len(changed) < 1.8
    assert max(changed) <= 5


def test_a_table_of_no_rows_is_one_chunk():
    table = Table(("a", "b"), ())
    assert list(table.chunks(lambda piece: 5, 3)) == [table]


# Tables


@pytest.fixture(scope="module")
def bart(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bart")
    vocabularies.bart(directory)
    tiny.make("bart", directory, vocab_size=500, max_position_embeddings=128)
    return xattn.load(directory)


TABLE = Table(("name", "height"), (("Ada", 41), ("Bob", None)))


def test_a_table_is_encoded_as_the_text_that_tapex_writes(bart):
    text = "col : name | height row 1 : Ada | 41 row 2 : Bob | "
    assert "".join(TABLE.pieces()) == text
    memory = bart.encode(TABLE)
    assert torch.equal(memory.states_SD, bart.encode(text).states_SD)
    assert memory.key != bart.encode(text).key
    assert bart.generate(TABLE, max_new_tokens=4).tokens == (
        bart.generate(text, max_new_tokens=4).tokens
    )


def test_each_position_says_its_cell(bart):
    ids = bart.prepare(TABLE).inputs
    said = {}
    for id, span in zip(ids, bart.encode(TABLE).spans, strict=True):
        assert span.unit == "cells"
        said.setdefault((span.start, span.end), []).append(id)
    texts = {cells: bart.tokenizer.decode(ids) for cells, ids in said.items()}
    assert texts == {
        (0, 0): "",  # <s>
        (0, 1): "col : name",
        (1, 2): " | height",
        (2, 3): " row 1 : Ada",
        (3, 4): " | 41",
        (4, 5): " row 2 : Bob",
        (5, 6): " | ",
        (6, 6): "",  # </s>
    }


def test_tables_texts_and_ids_are_encoded_in_the_order_given(bart):
    sources = ["The fox", TABLE, [5, 6, 7], Table(("a",), ()), "The dog"]
    together = bart.encode_batch(sources)
    assert [m.key for m in together] == [bart.encode(source).key for source in sources]
    assert [m.spans[1].unit for m in together] == [
        *("characters", "cells", "tokens", "cells", "characters"),
    ]


def test_a_stored_table_is_not_encoded_again(bart, tmp_path):
    before = bart.counters.encoder_passes
    cold = MemoryStore(tmp_path).get_or_encode(bart, TABLE)
    warm = MemoryStore(tmp_path).get_or_encode(bart, TABLE)
    assert bart.counters.encoder_passes == before + 1
    assert torch.equal(warm.states_SD, cold.states_SD)
    assert warm.spans == cold.spans
    assert MemoryStore(tmp_path).get(cold.key).spans[3] == cold.spans[3]


def test_a_decoder_only_model_goes_on_from_a_table(tmp_path):
    tiny.make("llama", tmp_path, vocab_size=500)
    vocabularies.bart(tmp_path)
    model = xattn.load(tmp_path)
    store, text = MemoryStore(tmp_path / "store"), "".join(TABLE.pieces())
    memory = store.get_or_encode(model, TABLE)
    assert memory.holds_kv
    assert memory.key != model.encode(text).key
    want = model.generate(model.encode(text), [9, 10], max_new_tokens=6).tokens
    assert model.generate(memory, [9, 10], max_new_tokens=6).tokens == want


def test_a_long_table_is_cut_between_rows(bart):
    rows = tuple((f"row {n}", n * 7) for n in range(80))
    table = Table(("name", "number"), rows)
    pieces = prepare_long_table(bart.network, bart.tokenizer, table, 60)
    assert len(pieces) > 4
    assert all(len(piece.inputs) <= 60 for piece in pieces)
    header = {Span(n, n + 1, "cells") for n in range(2)}
    assert all(header <= set(piece.spans) for piece in pieces)
    cells = {span.start for piece in pieces for span in piece.spans if span.end > span.start}
    assert cells == set(range(2 + 2 * len(rows)))
    # Every token of a row says the row's own cell, wherever its chunk begins.
    spelled = {}
    for piece in pieces:
        for id, span in zip(piece.inputs, piece.spans, strict=True):
            spelled.setdefault(span.start, []).append(id)
    for n, (name, number) in enumerate(rows):
        first, second = (bart.tokenizer.decode(spelled[2 + 2 * n + k]) for k in (0, 1))
        assert first.endswith(f": {name}")
        assert second.endswith(f"| {number}")
    changed = Table(table.header, (*rows[:40], ("another", 0), *rows[41:]))
    after = prepare_long_table(bart.network, bart.tokenizer, changed, 60)
    assert len({p.key.digest for p in after} - {p.key.digest for p in pieces}) <= 3
    bart.generate(bart.encode_prepared(pieces), max_new_tokens=3)


def test_a_row_that_fits_no_chunk_is_refused(bart):
    table = Table(("a",), (("short",), ("long " * 60,)))
    with pytest.raises(InvalidSourceError, match="row 1 of the table, with the header, has 254"):
        prepare_long_table(bart.network, bart.tokenizer, table, 40)
    wide = Table(tuple(f"column {n}" for n in range(40)), ())
    with pytest.raises(InvalidSourceError, match="the table's header has"):
        prepare_long_table(bart.network, bart.tokenizer, wide, 40)
    with pytest.raises(UsageError, match="`max_positions` must be above"):
        prepare_long_table(bart.network, bart.tokenizer, table, 3)


CELLS = [
    *(None, False, True, 0, 1, 1.0, "1", "true", "", b"1", b"", Decimal(1), Fraction(1, 3), 1 / 3),
    *(date(2026, 1, 2), datetime(2026, 1, 2), time(1, 2), time(1, 2, 0, 1), "2026-01-02"),
    *([1, 2], [1.0, 2], ["1, 2"], [[1], 2], [], float("nan"), float("inf"), -0.0, 0.0),
]


def test_cells_of_any_type_have_keys_of_their_own():
    assert len({Table(("a",), ((cell,),)).digest() for cell in CELLS}) == len(CELLS)


@pytest.mark.parametrize(
    ("cell", "plain", "text"),
    [
        (np.bool_(True), True, "true"),
        (np.int64(3), 3, "3"),
        (np.float32(0.1), float(np.float32(0.1)), "0.10000000149011612"),
        (np.str_("x"), "x", "x"),
        (memoryview(b"\x01\xff"), b"\x01\xff", "01ff"),
        (bytearray(b"\x01\xff"), b"\x01\xff", "01ff"),
        ((1, None, "x"), [1, None, "x"], "1, , x"),
        (time(1, 2), time(1, 2), "01:02:00"),
        (date(2026, 1, 2), date(2026, 1, 2), "2026-01-02"),
    ],
)
def test_cells_that_mean_the_same_have_one_key_and_one_text(cell, plain, text):
    assert Table(("a",), ((cell,),)).digest() == Table(("a",), ((plain,),)).digest()
    assert cell_text(cell) == cell_text(plain) == text


def test_bytes_are_no_list_of_numbers():
    digests = {Table(("a",), ((cell,),)).digest() for cell in (memoryview(b"ab"), [97, 98])}
    assert len(digests) == 2


@pytest.mark.parametrize("cell", [{1}, {"a": 1}, object(), np.timedelta64(1, "D"), 1j])
def test_cells_that_are_none(cell):
    with pytest.raises(InvalidSourceError, match="a cell of a table cannot be a"):
        Table(("a",), ((cell,),)).digest()


@pytest.mark.parametrize("header", ["ab", (), (1, 2)])
def test_headers_that_are_none(header):
    with pytest.raises(UsageError, match="`header` must be the names"):
        Table(header, ())


def test_a_file_is_read_as_texts(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes('\ufeffname,note\r\n\r\nAda,"a, b\r\nc"\r\nBob,\r\n'.encode())
    want = Table(("name", "note"), (("Ada", "a, b\r\nc"), ("Bob", "")))
    assert read_table(file) == want
    (tmp_path / "a.tsv").write_text("name\tnote\nAda, B\tx\n")
    assert read_table(str(tmp_path / "a.tsv")) == Table(("name", "note"), (("Ada, B", "x"),))


def test_files_that_hold_no_table(tmp_path):
    with pytest.raises(SourceNotFoundError, match=r"none\.csv"):
        read_table(tmp_path / "none.csv")
    file = tmp_path / "a.csv"
    file.write_bytes(b"")
    with pytest.raises(InvalidSourceError, match=r"a\.csv' is empty"):
        read_table(file)
    file.write_bytes(b"a,b\n1\n")
    with pytest.raises(InvalidSourceError, match=r"a\.csv': row 0 of the table has 1 cells"):
        read_table(file)
    for content in (b"a,b\n\xff,1\n", b'a,b\n"1,2\n'):
        file.write_bytes(content)
        with pytest.raises(UnreadableSourceError, match=r"a\.csv' is not a table"):
            read_table(file)


# Pictures

SMALL = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    image_size=24,
    patch_size=8,
)
SWIN = dict(embed_dim=8, depths=[1, 1, 1], num_heads=[2, 2, 2], image_size=32, patch_size=4)
VISION = {
    "ViT": (transformers.ViTModel, transformers.ViTConfig, SMALL, 24, (3, 3), 1),
    "ViT on oblong pictures": (
        *(transformers.ViTModel, transformers.ViTConfig),
        *({**SMALL, "image_size": (16, 24)}, (16, 24), (2, 3), 1),
    ),
    "DeiT": (transformers.DeiTModel, transformers.DeiTConfig, SMALL, 24, (3, 3), 2),
    "CLIP": (transformers.CLIPVisionModel, transformers.CLIPVisionConfig, SMALL, 24, (3, 3), 1),
    "SigLIP": (
        *(transformers.SiglipVisionModel, transformers.SiglipVisionConfig),
        *(SMALL, 24, (3, 3), 0),
    ),
    "DINOv2 with registers": (
        *(transformers.Dinov2WithRegistersModel, transformers.Dinov2WithRegistersConfig),
        *({**SMALL, "num_register_tokens": 4}, 24, (3, 3), 5),
    ),
    "Swin": (
        *(transformers.SwinModel, transformers.SwinConfig),
        *({**SWIN, "window_size": 2}, 32, (2, 2), 0),
    ),
}


def module_of(name, seed=0, **changes):
    torch.manual_seed(seed)
    model, config, settings, *_ = VISION[name]
    return model(config(**settings, **changes)).eval()


def processor_of(size, **settings):
    height, width = (size, size) if isinstance(size, int) else size
    return transformers.ViTImageProcessorPil(size={"height": height, "width": width}, **settings)


def encoder_of(name="ViT", seed=0, **settings):
    return PictureEncoder(module_of(name, seed), processor_of(VISION[name][3], **settings))


def picture(seed=0, mode="RGB", size=(40, 31)):
    channels = {"RGB": 3, "RGBA": 4, "L": 1}[mode]
    shape = (size[1], size[0], channels)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(pixels[:, :, 0] if mode == "L" else pixels, mode)


def file_of(image, **options):
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


@pytest.mark.parametrize("name", VISION)
def test_states_are_those_of_transformers(name):
    encoder = encoder_of(name)
    memory = encoder.encode(picture())
    pixels = encoder.processor(images=[picture()], return_tensors="pt")
    with torch.no_grad():
        [want_SD] = encoder.module(**pixels).last_hidden_state
    assert torch.equal(memory.states_SD, want_SD)
    assert memory.modality == "image"


@pytest.mark.parametrize("name", VISION)
def test_each_position_says_its_patch(name):
    *_, (rows, columns), leading = VISION[name]
    memory = encoder_of(name).encode(picture())
    patches = [Span(n, n + 1, "patches") for n in range(rows * columns)]
    assert list(memory.spans) == [Span(0, 0, "patches")] * leading + patches
    assert memory.details == {"patches": [rows, columns]}


def test_a_position_sees_its_patch_first():
    """Only the patch that a span names changes the embedding at its position."""
    encoder = encoder_of()
    plain = np.zeros((24, 24, 3), dtype=np.uint8)
    dotted = plain.copy()
    dotted[8:16, 16:24] = 255  # row 1, column 2 of 3 x 3
    embedded = [
        encoder.module.embeddings(encoder.prepare(pixels).inputs[None])[0]
        for pixels in (plain, dotted)
    ]
    moved = (embedded[0] - embedded[1]).abs().amax(dim=1).nonzero().flatten().tolist()
    assert [encoder.prepare(dotted).spans[n] for n in moved] == [Span(5, 6, "patches")]


def test_a_stored_picture_is_not_encoded_again(tmp_path):
    encoder, content = encoder_of(), file_of(picture())
    cold = MemoryStore(tmp_path).get_or_encode(encoder, content)
    (tmp_path / "photo.png").write_bytes(content)
    later = encoder_of()  # the same weights in another object
    warm = MemoryStore(tmp_path).get_or_encode(later, tmp_path / "photo.png")
    assert (encoder.counters.encoder_passes, later.counters.encoder_passes) == (1, 0)
    assert torch.equal(warm.states_SD, cold.states_SD)
    assert warm.spans == cold.spans
    assert warm.details == cold.details
    assert warm.label == "photo.png"


def test_a_saved_module_has_the_keys_of_the_one_that_was_saved(tmp_path):
    encoder = encoder_of()
    encoder.module.save_pretrained(tmp_path)
    encoder.processor.save_pretrained(tmp_path)
    loaded = PictureEncoder(
        transformers.ViTModel.from_pretrained(tmp_path),
        transformers.ViTImageProcessorPil.from_pretrained(tmp_path),
    )
    assert loaded.prepare(picture()).key == encoder.prepare(picture()).key


def test_pictures_share_a_forward_pass():
    encoder, sizes = encoder_of(), []
    sources = [picture(seed) for seed in range(3)]
    prepared = encoder.prepare_batch(sources)
    encoder.module.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    memories = encoder.encode_prepared(prepared)
    assert sizes == [3]
    assert encoder.counters.encoder_passes == 3
    for source, memory in zip(sources, memories, strict=True):
        torch.testing.assert_close(memory.states_SD, encoder.encode(source).states_SD)


def test_pictures_of_several_sizes_keep_their_order():
    settings = dict(do_resize=False)
    module = transformers.SwinModel(transformers.SwinConfig(**SWIN, window_size=2)).eval()
    encoder = PictureEncoder(module, processor_of(32, **settings))
    sources = [picture(n, size=size) for n, size in enumerate([(32, 32), (64, 32), (32, 32)])]
    memories = encoder.encode_prepared(encoder.prepare_batch(sources))
    assert [m.details["patches"] for m in memories] == [[2, 2], [2, 4], [2, 2]]
    for source, memory in zip(sources, memories, strict=True):
        torch.testing.assert_close(memory.states_SD, encoder.encode(source).states_SD)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return file_of(picture(), exif=exif.tobytes())


def merged_weight():
    encoder = encoder_of()
    encoder.prepare(picture())
    with torch.no_grad():
        encoder.module.layers[0].mlp.fc1.weight.data += 0.5
    return encoder.prepare(picture())


PICTURE_TWINS = {
    "a picture": lambda: encoder_of().prepare(picture()),
    "another": lambda: encoder_of().prepare(picture(1)),
    "with alpha": lambda: encoder_of().prepare(picture(mode="RGBA")),
    "opaque": lambda: encoder_of().prepare(picture().convert("RGBA")),
    "grey": lambda: encoder_of().prepare(picture(mode="L")),
    "turned by EXIF": lambda: encoder_of().prepare(turned(6)),
    "turned the other way": lambda: encoder_of().prepare(turned(8)),
    "resampled otherwise": lambda: encoder_of(resample=0).prepare(picture()),
    "not normalised": lambda: encoder_of(do_normalize=False).prepare(picture()),
    "from another size": lambda: PictureEncoder(
        module_of("Swin"), processor_of(64, do_resize=True)
    ).prepare(picture()),
    "from its own size": lambda: encoder_of("Swin").prepare(picture()),
    "another processor": lambda: PictureEncoder(
        module_of("ViT"),
        transformers.DeiTImageProcessorPil(
            size={"height": 24, "width": 24}, crop_size={"height": 24, "width": 24}
        ),
    ).prepare(picture()),
    "other weights": lambda: encoder_of(seed=1).prepare(picture()),
    "a weight that was merged": merged_weight,
    "another module": lambda: encoder_of("SigLIP").prepare(picture()),
    "another eps": lambda: PictureEncoder(
        module_of("ViT", layer_norm_eps=1e-5), processor_of(24)
    ).prepare(picture()),
    "another dtype": lambda: PictureEncoder(
        module_of("ViT").to(torch.bfloat16), processor_of(24)
    ).prepare(picture()),
    "another hash": lambda: PictureEncoder(
        module_of("ViT"), processor_of(24), hash="sha256"
    ).prepare(picture()),
}


def test_pictures_that_are_nearly_the_same_have_keys_of_their_own():
    digests = {name: make().key.digest for name, make in PICTURE_TWINS.items()}
    assert len(set(digests.values())) == len(digests)
    assert encoder_of().prepare(turned(1)).key.digest == digests["a picture"]


def test_grey_and_transparent_pictures_are_read_as_transformers_reads_them():
    encoder = encoder_of()
    for mode in ("L", "RGBA"):
        [want_CYX] = encoder.processor(
            images=[picture(mode=mode).convert("RGB")], return_tensors="pt"
        )["pixel_values"]
        assert torch.equal(encoder.prepare(picture(mode=mode)).inputs, want_CYX)


def test_a_picture_of_three_rows_is_not_taken_for_channels():
    encoder, image = encoder_of(), picture(size=(20, 3))
    assert encoder.prepare(image).inputs.shape == (3, 24, 24)
    upright = picture(size=(3, 20))
    assert encoder.prepare(upright).key != encoder.prepare(image).key


def test_modules_that_cannot_be_lent():
    with pytest.raises(UsageError, match="a vision model with a config that says its patch_size"):
        PictureEncoder(torch.nn.Linear(2, 2), processor_of(24))
    with pytest.raises(UsageError, match="`hash` must be one of blake3, sha256"):
        PictureEncoder(module_of("ViT"), processor_of(24), hash="md5")
    with pytest.raises(UsageError, match=r"does not encode pixel values of shape \[3, 40, 40\]"):
        PictureEncoder(module_of("ViT"), processor_of(40)).prepare(picture())
    settings = dict(hidden_sizes=[8] * 4, depths=[1] * 4)
    convolutional = transformers.ConvNextModel(transformers.ConvNextConfig(**settings)).eval()
    with pytest.raises(UsageError, match=r"one whose states are \[N, S, D\]"):
        PictureEncoder(convolutional, processor_of(32)).prepare(picture())
    encoder = encoder_of()
    encoder.module.train()
    with pytest.raises(UsageError, match=r"in evaluation mode \(module\.eval\(\)\)"):
        encoder.encode(picture())


def test_a_decoder_attends_to_a_picture(pairs):
    """Any memory of the decoder's width can be attended to; transformers says what comes out."""
    pair = pairs("bart")
    memory = encoder_of().encode(picture())
    tokens = torch.tensor([[2, 9, 14, 7]])
    network = pair.ours
    ours = network.score(tokens, network.start([[memory]]))
    with torch.no_grad():
        theirs = pair.theirs(
            encoder_outputs=BaseModelOutput(memory.states_SD[None]), decoder_input_ids=tokens
        ).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_model_cuts_long_tables_and_takes_sources_of_many_kinds_at_once():
    model = xattn.load("g2p-en")
    table = Table(("n", "name"), tuple((n, f"row {n}") for n in range(6)))
    pieces = model.prepare_long(table, max_positions=60)
    assert len(pieces) > 1
    assert pieces[-1].spans[-2].end == 2 + 6 * 2  # the last cell of the whole table
    small = Table(("n",), ((1,),))
    many = model.prepare_batch(["memory", small, [5, 9], "attention"])
    alone = [model.prepare(source) for source in ("memory", small, [5, 9], "attention")]
    assert [item.key for item in many] == [item.key for item in alone]
    assert [memory.key for memory in model.encode_batch([small, "memory"])] == [
        alone[1].key,
        alone[0].key,
    ]
