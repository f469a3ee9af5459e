"""Texts as sources: a bidirectional text model of transformers as the encoder of memories.

:class:`TextEncoder` lends it to models that a graft lets read its states: BERT and its kin, the
sentence embedders among them, of which each token's state is read and not their mean.

Axes: N texts, S positions, D model width.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from xattn.errors import InvalidSourceError, MissingExtraError, UnsupportedModelError, require
from xattn.inputs.text import canonical_text
from xattn.memory import Hash, Memory, MemoryKey, SpanTable, digest_of
from xattn.models.borrowed import Borrowed
from xattn.models.encode import Prepared, label_of, text_of
from xattn.models.weights import refuse_pickles

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PREPROCESSING = "text/1"
TOGETHER = 4096
"""Positions that go through the module in one pass, unless one text alone has more."""


class TextEncoder(Borrowed):
    """A text model of transformers and its tokenizer, as an encoder of memories.

    ``module`` is one whose ``forward(input_ids=…)`` gives a ``last_hidden_state`` ``[N, S, D]``:
    BERT, RoBERTa, MPNet, ModernBERT and their like. ``tokenizer`` is one of the ``tokenizers``
    package, and puts special tokens around a text by itself. ``hash`` takes the digests.

    ::

        encoder = xattn.TextEncoder.load("path/to/all-MiniLM-L6-v2")
        model = xattn.graft("smollm2-135m-instruct", encoder=encoder, placement="every:4")

    Raises :class:`UsageError` for a module that has no config with a ``hidden_size``.
    """

    def __init__(self, module: nn.Module, tokenizer: "Tokenizer", *, hash: Hash = "blake3") -> None:
        config: Any = getattr(module, "config", None)
        width = getattr(config, "hidden_size", None)
        bound = "a text model with a config that says its hidden_size"
        require(isinstance(width, int), "module", bound, type(module).__name__)
        super().__init__(module, hash)
        self.tokenizer, self.width = tokenizer, int(width or 0)
        self.most: int | None = getattr(config, "max_position_embeddings", None)
        """Tokens that a text may have, those around it among them."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokens = digest_of(tokenizer.to_str().encode(), hash=hash)

    @classmethod
    def load(
        cls, directory: str | Path, *, device: str = "cpu", hash: Hash = "blake3"
    ) -> "TextEncoder":
        """From a directory as transformers or sentence-transformers saves it, with safetensors.

        Raises :class:`UnsupportedModelError` where it has no tokenizer.json or weights that are
        read, and :class:`MissingExtraError` without transformers.
        """
        path = Path(directory).expanduser()
        if not (path / "config.json").is_file() or not (path / "tokenizer.json").is_file():
            raise UnsupportedModelError(f"{path}: has no config.json and tokenizer.json.")
        if not any(path.glob("*.safetensors")):
            refuse_pickles(path)
            raise UnsupportedModelError(f"{path}: has no weights in safetensors.")
        try:
            from transformers import AutoModel
        except ImportError as error:
            raise MissingExtraError("transformers", "training", "text encoders") from error
        from tokenizers import Tokenizer

        module = AutoModel.from_pretrained(path, local_files_only=True, use_safetensors=True)
        tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        return cls(module.to(device).eval(), tokenizer, hash=hash)

    def save(self, directory: Path) -> None:
        """Into a directory that :meth:`load` reads."""
        save: Any = self.module.save_pretrained
        save(directory, safe_serialization=True)
        self.tokenizer.save(str(directory / "tokenizer.json"))

    def __repr__(self) -> str:
        return f"TextEncoder({type(self.module).__name__}, width {self.width})"

    def prepare_batch(self, sources: Sequence[Any]) -> list[Prepared]:
        """The sources with their keys, in the order given; spans count characters.

        Raises :class:`InvalidSourceError` where a text is empty, or longer than the module reads.
        """
        encoder = self.encoder_digest  # once: it costs a look at the weights
        return [self._prepare(canonical_text(text_of(source)), encoder) for source in sources]

    def _prepare(self, text: str, encoder: str) -> Prepared:
        if not text.strip():
            raise InvalidSourceError(f"the source text is empty ({text!r}); nothing to encode.")
        made = self.tokenizer.encode(text)
        if self.most is not None and len(made.ids) > self.most:
            raise InvalidSourceError(
                f"the source {label_of(text)!r} has {len(made.ids)} tokens, but this encoder has "
                f"{self.most} positions; shorten or split it."
            )
        return Prepared(
            key=MemoryKey(
                source=digest_of(text.encode(), hash=self.hash),
                modality="text",
                preprocessing=f"{PREPROCESSING} {self._tokens}",
                encoder=encoder,
                dtype=self.dtype,
                hash=self.hash,
            ),
            inputs=list(made.ids),
            spans=SpanTable(torch.tensor(made.offsets).reshape(-1, 2), "characters"),
            label=label_of(text),
        )

    def encode_prepared(self, prepared: Sequence[Prepared]) -> list[Memory]:
        """The memories of prepared texts; those of one length share a forward pass.

        Raises :class:`UsageError` while the module is in training mode, where dropout would make
        every memory another.
        """
        self._require_evaluating()
        rows = [item.inputs if isinstance(item.inputs, list) else [] for item in prepared]
        memories: dict[int, Memory] = {}
        for some in _alike(rows):
            states = self._states([rows[n] for n in some])
            memories |= {n: prepared[n].memory(s) for n, s in zip(some, states, strict=True)}
        return [memories[n] for n in range(len(prepared))]

    @torch.no_grad()
    def _states(self, rows: Sequence[list[int]]) -> list[Tensor]:
        """Ids of one length -> states ``[S, D]`` each, in one pass."""
        ids_NS = torch.tensor(rows, device=self.weight.device)
        made = self.module(input_ids=ids_NS, attention_mask=torch.ones_like(ids_NS))
        self.counters.encoder_passes += len(rows)
        # Each its own storage: a memory that is kept must not keep its whole batch.
        return [states_SD.clone() for states_SD in made.last_hidden_state]


def _alike(rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Places of rows of one length, few enough to go together."""
    by_length = sorted(range(len(rows)), key=lambda n: len(rows[n]))
    for length, of_length in groupby(by_length, key=lambda n: len(rows[n])):
        places, most = list(of_length), max(1, TOGETHER // max(1, length))
        yield from (places[start : start + most] for start in range(0, len(places), most))
