"""Pictures as sources: a vision model of transformers as the encoder of memories.

xattn has no vision encoder of its own. :class:`PictureEncoder` lends one what a store needs to
know: a key before anything is encoded, and a place in the picture for each position.

Axes: N pictures, C channels, Y rows and X columns of pixels, S positions, D model width.
"""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from xattn.errors import MissingExtraError, UsageError, require
from xattn.inputs.image import Picture, read_image
from xattn.memory import Hash, Memory, MemoryKey, SpanTable, digest_of
from xattn.models.borrowed import Borrowed, as_json, class_of
from xattn.models.encode import Prepared

PREPROCESSING = "image/1"
BATCH = 32
"""Pictures that are encoded in one forward pass, at most."""


class _Grid(NamedTuple):
    """Patches of a picture, and the positions before them (class, distillation, registers)."""

    rows: int
    columns: int
    leading: int


class PictureEncoder(Borrowed):
    """A vision model of transformers, and its image processor, as an encoder of memories.

    ``module`` is one whose ``forward(pixel_values=…)`` gives a ``last_hidden_state`` ``[N, S, D]``
    over square or oblong patches: ViT, DeiT, BEiT, DINOv2, the vision half of CLIP or SigLIP, Swin.
    ``processor`` is its image processor. ``hash`` takes the digests that memories are named by.

    ::

        vit, processor = ViTModel.from_pretrained(…), ViTImageProcessorPil.from_pretrained(…)
        encoder = xattn.PictureEncoder(vit, processor)
        memory = store.get_or_encode(encoder, "photo.jpg")

    Raises :class:`UsageError` for a module that is none of these.
    """

    def __init__(self, module: nn.Module, processor: Any, *, hash: Hash = "blake3") -> None:
        bound = "a vision model with a config that says its patch_size"
        patch_size = getattr(getattr(module, "config", None), "patch_size", None)
        require(patch_size is not None, "module", bound, type(module).__name__)
        require(callable(processor), "processor", "an image processor", type(processor).__name__)
        super().__init__(module, hash)
        self.processor = processor
        self._grids: dict[tuple[int, ...], _Grid] = {}

    def __repr__(self) -> str:
        return f"PictureEncoder({type(self.module).__name__}, {type(self.processor).__name__})"

    @classmethod
    def load(
        cls, directory: Path, *, device: str = "cpu", hash: Hash = "blake3"
    ) -> "PictureEncoder":
        """From a directory that :meth:`save` wrote; :class:`MissingExtraError` where it must."""
        try:
            from transformers import AutoImageProcessor, AutoModel
        except ImportError as error:
            raise MissingExtraError("transformers", "training", "vision encoders") from error
        module = AutoModel.from_pretrained(directory, local_files_only=True, use_safetensors=True)
        processors: Any = AutoImageProcessor
        processor = processors.from_pretrained(directory, local_files_only=True)
        return cls(module.to(device).eval(), processor, hash=hash)

    def save(self, directory: Path) -> None:
        """Module and processor, as transformers saves them."""
        for part in (self.module, self.processor):
            save: Any = part.save_pretrained
            save(directory)

    @property
    def width(self) -> int:
        """Of the states."""
        config: Any = self.module.config
        return int(config.hidden_size)

    @property
    def preprocessing(self) -> str:
        """Name, version and digest of what makes pixel values: the processor and its settings."""
        # What a processor computes may change with its library's first number.
        about = f"{class_of(self.processor)} {version('transformers').partition('.')[0]}"
        settings = as_json(self.processor.to_dict())
        return f"{PREPROCESSING} {digest_of(about.encode(), settings.encode(), hash=self.hash)}"

    def prepare_batch(self, sources: Sequence[Any]) -> list[Prepared]:
        """The sources with their keys, in the order given.

        A source is a path, the bytes of a file, a Pillow image, an array ``[Y, X(, C)]`` of
        uint8, or a :class:`~xattn.inputs.image.Picture`. Transparency is dropped and grey is read
        as RGB, as transformers does. Raises as :func:`~xattn.inputs.image.read_image`.

        Spans are in ``"patches"``, counted row by row from 0: the position of patch n has
        ``[n, n + 1)``. Positions before the first patch, which stand for the whole picture (class
        token, registers), have the empty span ``[0, 0)``. ``details["patches"]`` are the rows and
        columns.
        """
        encoder, preprocessing = self.encoder_digest, self.preprocessing
        return [
            self._prepare(picture, encoder, preprocessing)
            for picture in (s if isinstance(s, Picture) else read_image(s) for s in sources)
        ]

    def _prepare(self, picture: Picture, encoder: str, preprocessing: str) -> Prepared:
        pixels_CYX = self._pixel_values(picture)
        grid = self._grid(tuple(pixels_CYX.shape))
        places = torch.arange(grid.rows * grid.columns)
        patches_S2 = torch.stack((places, places + 1), dim=1)
        whole_S2 = torch.zeros(grid.leading, 2, dtype=places.dtype)
        return Prepared(
            key=MemoryKey(
                source=picture.digest(self.hash),
                modality="image",
                preprocessing=preprocessing,
                encoder=encoder,
                dtype=self.dtype,
                hash=self.hash,
            ),
            inputs=pixels_CYX,
            spans=SpanTable(torch.cat((whole_S2, patches_S2)), "patches"),
            label=picture.label,
            details={"patches": [grid.rows, grid.columns]},
        )

    def encode_prepared(self, prepared: Sequence[Prepared]) -> list[Memory]:
        """The memories of prepared pictures; those of one size share a forward pass.

        Raises :class:`UsageError` while the module is in training mode, where dropout would make
        every memory another.
        """
        self._require_evaluating()
        sizes: dict[tuple[int, ...], list[int]] = {}
        for n, item in enumerate(prepared):
            sizes.setdefault(tuple(_pixels(item).shape), []).append(n)
        memories: dict[int, Memory] = {}
        for alike in sizes.values():
            for start in range(0, len(alike), BATCH):
                some = alike[start : start + BATCH]
                states = self._states([_pixels(prepared[n]) for n in some])
                memories |= {n: prepared[n].memory(s) for n, s in zip(some, states, strict=True)}
        return [memories[n] for n in range(len(prepared))]

    @torch.no_grad()
    def _states(self, pixels: Sequence[Tensor]) -> list[Tensor]:
        """Pixel values ``[C, Y, X]`` of one shape -> states ``[S, D]`` each, in one pass."""
        pixels_NCYX = torch.stack(list(pixels)).to(self.weight)
        states_NSD = self.module(pixel_values=pixels_NCYX).last_hidden_state
        self.counters.encoder_passes += len(pixels)
        # Each its own storage: a memory that is kept must not keep its whole batch.
        return [states_SD.clone() for states_SD in states_NSD]

    def _pixel_values(self, picture: Picture) -> Tensor:
        """What the processor makes of the picture as RGB: ``[C, Y, X]``."""
        pixels_YXC = picture.pixels_YXC[:, :, :3]
        if picture.mode == "L":
            pixels_YXC = pixels_YXC.repeat(3, axis=2)
        made = self.processor(
            images=[pixels_YXC], input_data_format="channels_last", return_tensors="pt"
        )
        values_NCYX = made["pixel_values"]
        bound = "one that makes pixel values [1, C, Y, X] of a picture"
        require(
            values_NCYX.dim() == 4 and len(values_NCYX) == 1,
            "processor",
            bound,
            list(values_NCYX.shape),
        )
        return values_NCYX[0]

    def _grid(self, shape: tuple[int, ...]) -> _Grid:
        """The patches of pixel values of this shape ``[C, Y, X]``."""
        if shape not in self._grids:
            self._grids[shape] = self._measured(shape)
        return self._grids[shape]

    @torch.no_grad()
    def _measured(self, shape: tuple[int, ...]) -> _Grid:
        """From the shape of the states, for which the module runs without numbers."""
        tensors = [*self.module.named_parameters(), *self.module.named_buffers()]
        blank = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors}
        pixels = torch.empty(1, *shape, device="meta", dtype=self.weight.dtype)
        try:
            made = functional_call(self.module, blank, kwargs={"pixel_values": pixels})
            states = tuple(made.last_hidden_state.shape)
        except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise UsageError(
                f"{self!r} does not encode pixel values of shape {list(shape)}: {error}"
            ) from error
        config: Any = self.module.config
        size = config.patch_size
        height, width = (size, size) if isinstance(size, int) else size
        # Each stage of a hierarchical model after the first merges two by two patches.
        merged = 2 ** (len(getattr(config, "depths", (1,))) - 1)
        rows, columns = shape[1] // (height * merged), shape[2] // (width * merged)
        leading = states[1] - rows * columns if len(states) == 3 else -1
        most = 2 + getattr(config, "num_register_tokens", 0)
        bound = f"one whose states are [N, S, D], S being {rows} x {columns} patches and at most "
        bound += f"{most} positions before them"
        require(0 <= leading <= most, "module", bound, list(states))
        return _Grid(rows, columns, leading)


def _pixels(item: Prepared) -> Tensor:
    if not isinstance(item.inputs, Tensor):
        raise UsageError(f"{item.label!r} is a source of text, which no vision model encodes.")
    return item.inputs
