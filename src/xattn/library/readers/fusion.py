"""Fusion-in-Decoder: each passage is encoded alone, and cross-attention reads all.

Izacard and Grave 2021 (arXiv 2007.01282). The memories are never concatenated: attention over each
is merged, so their order does not matter. A language model that cross-attention was grafted onto
reads as an encoder-decoder does.
"""

from collections.abc import Sequence
from typing import Literal

from xattn.errors import require
from xattn.library.passage import Passage
from xattn.library.readers.base import Asked, Place
from xattn.library.wording import Wording
from xattn.model import Model
from xattn.models.encode import Prepared

Asking = Literal["decoder", "memory", "encoder"]
ASKING: tuple[Asking, ...] = ("decoder", "memory", "encoder")

WORDING = Wording(
    before="", passage="title: {title} context: {text}", question="question: {question}"
)


class FusionReader:
    """Each passage is a memory of the encoder; where the question comes in, ``asking`` says.

    ``"decoder"``: the answer begins after the question, and nothing is encoded when it is asked;
    ``"memory"``: the question is a memory of its own beside the passages, one short encoder pass;
    ``"encoder"``: it stands before each passage, as in the paper, and no passage can be kept.
    """

    name = "fusion"

    def __init__(
        self, model: Model, wording: Wording = WORDING, *, asking: Asking = "decoder"
    ) -> None:
        encoder, crosses = model.spec.encoder, model.spec.decoder.cross_attention is not None
        modalities = {one.modality for one in model.spec.lent}
        modalities |= set() if encoder is None else {encoder.modality}
        reads_text = crosses and "text" in modalities
        require(reads_text, "model", "one that cross-attends to text for this reader", model)
        require(asking in ASKING, "asking", f"one of {', '.join(ASKING)}", asking)
        self._is_graft = encoder is None
        bound = "'decoder' for a graft, whose answer begins after the question"
        require(asking == "decoder" or not self._is_graft, "asking", bound, asking)
        self.model, self.wording, self.asking = model, wording, asking

    def sources(self, passages: Sequence[Passage]) -> list[Prepared]:
        """The passages between their words; nothing where they are read with the question."""
        if self.asking == "encoder":
            return []
        return self.model.prepare_batch([self.wording.of_passage(p).text for p in passages])

    def ask(self, question: str, passages: Sequence[Passage]) -> Asked:
        """The passages' memories, and the question where it belongs."""
        written = [self.wording.of_passage(passage) for passage in passages]
        words, tokenizer = self.wording.of_question(question), self.model.tokenizer
        if self.asking == "encoder":
            memories = self.model.encode_batch([f"{words} {one.text}" for one in written])
            starts = [len(words) + 1 + one.start for one in written]
        else:
            memories = self.model.remembered(self.sources(passages))
            starts = [one.start for one in written]
        if self.asking == "memory":
            memories = [*memories, self.model.encode(words)]
        asked = self.asking == "decoder"
        before = tokenizer.encode(words) if self._is_graft else tokenizer.encode_plain(words)
        return Asked(
            memories=tuple(memories),
            prompt=tuple(before.ids) if asked else None,
            parallel=None,
            places=tuple(Place(memory=j, start=start) for j, start in enumerate(starts)),
        )
