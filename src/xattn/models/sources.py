"""What a model takes for a source: text, token ids, a table or a recording, of any length."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import nn

from xattn.errors import is_whole, require
from xattn.inputs.audio import read_audio
from xattn.inputs.table import Table
from xattn.inputs.text import Tokenizer, token_ids_of
from xattn.memory import Memory
from xattn.models.encode import (
    Prepared,
    TextSource,
    encode,
    placed_behind,
    prepare_audio,
    prepare_long_audio,
    prepare_long_text,
    prepare_texts,
    prepare_token_ids,
    text_of,
)
from xattn.models.network import Network
from xattn.models.tables import prepare_long_table, prepare_tables

CHUNK_TOKENS = 512
"""Tokens in a chunk of a long text, at most, where nobody says."""
_NO_LANGUAGE = "left out for audio (it belongs to generate)"
_NOT_CUT = "left out for audio and for decoder-only models, which do not cut into chunks"


class MakesMemories(Protocol):
    """What makes memories of sources: a model's own encoder, or encoders lent to it."""

    @property
    def digests(self) -> frozenset[str]:
        """Of all encoders whose memories are its own; taking them costs a look at the weights."""

    def prepare(
        self,
        sources: Sequence[Any],
        *,
        language: str | None,
        sample_rate: int | None,
        behind: Memory | None = None,
    ) -> list[Prepared]:
        """The sources with their keys, in the order given."""

    def prepare_long(
        self,
        source: Any,
        *,
        max_positions: int | None,
        language: str | None,
        sample_rate: int | None,
    ) -> list[Prepared]:
        """A source of any length in pieces."""

    def encode(self, prepared: Sequence[Prepared]) -> list[Memory]:
        """One memory for each."""

    @property
    def makers(self) -> Sequence[nn.Module]:
        """What they are encoded by."""


class Sources:
    """Names what callers give to one model, and encodes it with the model's own encoder."""

    def __init__(self, network: Network, tokenizer: Tokenizer | None) -> None:
        self._network, self._tokenizer = network, tokenizer
        encoder = network.spec.encoder
        self._hears = encoder is not None and encoder.modality == "audio"
        self._goes_on = encoder is None

    @property
    def makers(self) -> Sequence[nn.Module]:
        """Its encoder, or the decoder of a model that has none."""
        network = self._network
        return [network.decoder if network.encoder is None else network.encoder]

    @property
    def digests(self) -> frozenset[str]:
        """Of its encoder."""
        return frozenset([self._network.encoder_digest])

    def encode(self, prepared: Sequence[Prepared]) -> list[Memory]:
        """One memory for each; texts go through the encoder in packs, without padding."""
        return encode(self._network, prepared)

    def prepare(
        self,
        sources: Sequence[Any],
        *,
        language: str | None,
        sample_rate: int | None,
        behind: Memory | None = None,
    ) -> list[Prepared]:
        """The sources with their keys, in the order given."""
        sources = [self._plain(source) for source in sources]
        fits = behind is None or self._goes_on
        require(fits, "behind", "left out for encoders, which read each source alone", behind)
        if self._hears:
            require(language is None, "language", _NO_LANGUAGE, language)
            return [
                prepare_audio(self._network, read_audio(source, sample_rate=sample_rate))
                for source in sources
            ]
        require(sample_rate is None, "sample_rate", "left out for text", sample_rate)
        kinds: dict[Callable[[list[Any], bool], list[Prepared]], dict[int, Any]] = {}
        for place, source in enumerate(sources):
            kind, plain = self._kind(source, language)
            kinds.setdefault(kind, {})[place] = plain
        found: dict[int, Prepared] = {}
        for prepare, of_kind in kinds.items():
            found |= zip(of_kind, prepare(list(of_kind.values()), behind is not None), strict=True)
        prepared = [found[place] for place in range(len(sources))]
        if behind is None:
            return prepared
        return [placed_behind(self._network, item, behind) for item in prepared]

    def _plain(self, source: Any) -> Any:
        """A source, which may be given as ``{modality: source}``."""
        if not isinstance(source, Mapping):
            return source
        own = "audio" if self._hears else "text"
        require(list(source) == [own], "source", f"{{{own!r}: source}} or the source", dict(source))
        return source[own]

    def _kind(
        self, source: Any, language: str | None
    ) -> tuple[Callable[[list[Any], bool], list[Prepared]], Any]:
        """What prepares sources of this kind together, and the source as it takes it.

        It is told whether they are to have no special tokens around them.
        """
        if isinstance(source, Table):
            return self._tables, (source, language)
        ids = token_ids_of(source)
        if ids is not None:
            return self._token_ids, ids
        return self._texts, TextSource(text_of(source), language)

    def _texts(self, sources: list[TextSource], plain: bool) -> list[Prepared]:
        return prepare_texts(self._network, self._tokenizer, sources, plain=plain)

    def _token_ids(self, sources: list[list[int]], plain: bool) -> list[Prepared]:
        return prepare_token_ids(self._network, sources)  # which are plain anyway

    def _tables(self, sources: list[tuple[Table, str | None]], plain: bool) -> list[Prepared]:
        tables, languages = zip(*sources, strict=True)
        reader = (self._network, self._tokenizer)
        return prepare_tables(*reader, tables, languages[0], plain=plain)

    def prepare_long(
        self,
        source: Any,
        *,
        max_positions: int | None,
        language: str | None,
        sample_rate: int | None,
    ) -> list[Prepared]:
        """A source of any length in pieces: chunks of a text or table, windows of a recording."""
        source = self._plain(source)
        if self._hears or self._goes_on:
            require(max_positions is None, "max_positions", _NOT_CUT, max_positions)
        if self._hears:
            require(language is None, "language", _NO_LANGUAGE, language)
            return prepare_long_audio(self._network, read_audio(source, sample_rate=sample_rate))
        if self._goes_on or token_ids_of(source) is not None:
            return self.prepare([source], language=language, sample_rate=sample_rate)
        require(sample_rate is None, "sample_rate", "left out for text", sample_rate)
        most = CHUNK_TOKENS if max_positions is None else max_positions
        require(is_whole(most, 1), "max_positions", "at least 1, or None", max_positions)
        reader = (self._network, self._tokenizer)
        if isinstance(source, Table):
            return prepare_long_table(*reader, source, most, language)
        return prepare_long_text(*reader, TextSource(text_of(source), language), most)
