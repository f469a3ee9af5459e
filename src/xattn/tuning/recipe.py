"""A recipe: what is trained, on what, and how, in one TOML file.

::

    directory = "runs/reads-passages"

    [model]
    lm = "smollm2-135m-instruct"        # or: path = …, to go on; or [model.scratch], to begin
    encoder = "itself"
    placement = "every:5"

    [data]
    train = "train.jsonl"               # {"source": …, "prompt": …, "target": …} in each line
    validation = "valid.jsonl"

    [training]
    epochs = 3
    learning_rate = 3e-4
"""

import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from xattn.errors import MissingExtraError, UsageError, shown

try:
    from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
except ImportError as error:
    raise MissingExtraError("pydantic", "training", "recipes") from error

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Where = str | list[int] | list[bool]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Scratch(_Part):
    """An encoder-decoder to be trained from nothing: pre-norm, with sinusoids and one table."""

    vocabulary: Positive = 8000
    """Tokens of the tokenizer that is made of the training data, both sides together."""
    width: Positive = 256
    heads: Positive = 4
    kv_heads: Positive | None = None
    """Of keys and values in cross-attention; all heads, if not given."""
    feed_forward: Positive = 1024
    encoder_layers: Positive = 3
    decoder_layers: Positive = 6


_SHAPING = (
    *("projector", "placement", "kind", "before", "own_layers", "own_feed_forward", "shared"),
    *("kv_heads", "seed"),
)
"""Fields that say what a new model is."""


class ModelPart(_Part):
    """What is trained: one of a checkpoint, a graft on a language model, and a model of no age."""

    path: str | None = None
    """A model that :func:`xattn.load` knows, to go on from."""
    lm: str | None = None
    encoder: str | list[str] | None = None
    projector: str | dict[str, str] = "linear"
    scratch: Scratch | None = None
    placement: Where = "every:4"
    kind: Literal["separate", "gated", "merged"] | None = None
    before: bool = False
    own_layers: bool = False
    own_feed_forward: bool = False
    shared: bool = False
    kv_heads: Positive | None = None
    seed: Count = 0

    @model_validator(mode="after")
    def _one(self) -> "ModelPart":
        given = [name for name in ("path", "lm", "scratch") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("must have one of path, lm and scratch, and no two")
        if (self.lm is not None) != (self.encoder is not None):
            raise ValueError("must have an encoder with lm, and only there")
        unread = {"path": _SHAPING, "scratch": ("projector", "kv_heads"), "lm": ()}[given[0]]
        plain = type(self).model_fields
        if idle := [name for name in unread if getattr(self, name) != plain[name].default]:
            raise ValueError(
                f"must not have {' and '.join(idle)} beside {given[0]}, which ignores it"
            )
        return self


class Lora(_Part):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685), by peft."""

    preset: Literal["cross", "self", "all"] = "cross"
    rank: Positive = 8
    alpha: Positive = 16
    dropout: Share = 0.0


class Data(_Part):
    """Examples: a JSON object in each line, or two files of lines for translation."""

    train: str | list[str]
    validation: str | list[str] | None = None
    most_source: Positive = 512
    """Tokens of a source; longer examples are left out, and counted."""
    most_target: Positive = 256
    """Tokens of prompt and target together."""
    limit: Positive | None = None
    """Examples of the training data, at most."""


class Training(_Part):
    """How."""

    method: Literal["new", "full", "decoder", "gates", "lora"] = "new"
    """``new``: what a graft added; ``full``: every weight; ``decoder``: all but the encoder's;
    ``gates``: the gates alone; ``lora``: adapters."""
    lora: Lora = Lora()
    epochs: Positive | None = None
    steps: Positive | None = None
    batch_tokens: Positive = 4096
    """Tokens of a batch, sources and targets, with what they are padded to."""
    accumulate: Positive = 1
    learning_rate: Rate = 3e-4
    schedule: Literal["constant", "linear", "cosine", "inverse-sqrt"] = "cosine"
    warmup: Count = 100
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    betas: tuple[Share, Share] = (0.9, 0.98)
    clip: Annotated[float, Field(gt=0)] = 1.0
    label_smoothing: Share = 0.0
    dropout: Share = 0.0
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoint_activations: bool = False
    seed: Count = 0
    evaluate_every: Positive = 200
    """Steps."""
    save_every: Positive = 200
    patience: Positive | None = None
    """Evaluations without a better loss after which training ends."""
    remember: bool = True
    """Keep what a frozen encoder makes in a store, and encode no source twice."""

    @model_validator(mode="after")
    def _ends(self) -> "Training":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("must have one of epochs and steps")
        return self


class Evaluation(_Part):
    """What the model says of held-out sources when it is trained, and how good that is."""

    data: str | list[str]
    metrics: list[Literal["wer", "bleu", "chrf", "exact"]] = ["bleu", "chrf"]
    num_beams: Positive = 1
    most_tokens: Positive = 128
    """Of an answer."""
    limit: Positive | None = None
    tokenize: Literal["13a", "none"] = "13a"
    """How sacrebleu cuts words for BLEU; ``none`` for texts whose words stand apart already."""


class Preference(_Part):
    """Direct preference optimisation: data have a chosen and a rejected answer."""

    loss: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"
    beta: Annotated[float, Field(gt=0)] = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    length_normalised: bool = False
    reference_free: bool = False

    @model_validator(mode="after")
    def _smoothed(self) -> "Preference":
        if self.label_smoothing and self.loss != "sigmoid":
            raise ValueError(f"must have no label_smoothing with {self.loss}, which has none")
        return self


class Recipe(_Part):
    """All of it."""

    directory: str
    model: ModelPart
    data: Data
    training: Training
    preference: Preference | None = None
    evaluation: Evaluation | None = None
    trackers: list[Literal["trackio", "tensorboard", "wandb"]] = []
    """Beside the CSV file; their packages must be installed."""

    @model_validator(mode="after")
    def _adapted(self) -> "Recipe":
        if self.training.method == "lora" and self.model.path is None:
            raise ValueError(
                "must have a model.path with method 'lora': adapters are of a model that is there"
            )
        return self


def read_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file; paths in it are from its own directory.

    Raises :class:`UsageError` with the field's name for what is missing, unknown or out of bounds.
    """
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: the recipe cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: is no TOML: {error}") from error
    return checked(given, str(path))


def checked(given: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """``given`` as a recipe; raises as :func:`read_recipe` does."""
    try:
        return Recipe.model_validate(given, strict=False)
    except ValidationError as error:
        raise UsageError(f"{where}: {_said(error)}") from error


def _said(error: ValidationError) -> str:
    # What is misspelt first: it is why another is missing.
    first, *others = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    place = [str(part) for part in first["loc"] if not str(part).startswith(("list[", "function"))]
    name, more = ".".join(place), f" (and {len(others)} more)" if others else ""
    if first["type"] == "extra_forbidden":
        near = get_close_matches(place[-1], _fields(place[:-1]), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return f"there is no field {name!r}.{hint}{more}"
    if first["type"] == "missing":
        return f"{name!r} is missing.{more}"
    said = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    value = "" if isinstance(first["input"], Mapping | BaseModel) else f": {shown(first['input'])}"
    said = said.replace("should be", "must be")
    return f"`{name or 'recipe'}` {said}{value}.{more}"


def _fields(place: list[str]) -> list[str]:
    """Names that may stand at a place."""
    part: Any = Recipe
    for name in place:
        inner = part.model_fields[name].annotation
        kinds = [inner, *getattr(inner, "__args__", ())]
        part = next(k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel))
    return list(part.model_fields)
