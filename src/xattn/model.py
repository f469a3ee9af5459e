"""The object that users hold: a network, its tokenizer, and everything one does with them."""

import os
import warnings
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from xattn.counts import parameters
from xattn.decoding.asking import Asker, Question
from xattn.decoding.fallback import HeardWindow
from xattn.decoding.forms import choose
from xattn.decoding.prompts import Prompt, checked
from xattn.decoding.request import Hypothesis, Request
from xattn.decoding.search import decode, stream
from xattn.decoding.settings import Settings
from xattn.decoding.speech import speech_start, spoken_words, words_within
from xattn.decoding.stopping import StopFilter
from xattn.decoding.transcript import Transcript
from xattn.decoding.transcription import Progress, Transcription, Window
from xattn.decoding.transcription_settings import TranscriptionSettings
from xattn.errors import CorruptCheckpointError, PromptError, UsageError, require
from xattn.generation import Generation
from xattn.inputs.audio import read_audio
from xattn.inputs.text import TextStream, Tokenizer, Unit
from xattn.ledger.account import Account
from xattn.ledger.live import held_by_model
from xattn.memory import Hash, Memory
from xattn.models.adapters import adapters_of, require_made_without
from xattn.models.build import build, require_device
from xattn.models.encode import Prepared, prepare_window
from xattn.models.formats import read_checkpoint
from xattn.models.lent import Like, Several, lend
from xattn.models.network import Counters, Network
from xattn.models.parallel import Parallel
from xattn.models.pins import Pins
from xattn.models.rates import rates_of
from xattn.models.resolve import resolve
from xattn.models.sources import MakesMemories, Sources
from xattn.models.weights import Checkpoint
from xattn.spec import FORM_CHOICES, Form, FormChoice, ModelSpec
from xattn.store import MemoryStore

Source = Any
"""Text, token ids or a table for text encoders; a path, bytes, file object or array for audio."""


def load(
    name: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "float32",
    quantize: str | None = None,
    device: str | torch.device = "cpu",
    offline: bool = False,
    hash: Hash = "blake3",
) -> "Model":
    """Load a model.

    ``name`` is an alias (see ``xattn models``), a directory or file (Hugging Face, CTranslate2,
    GGUF), ``pkg:PACKAGE/PATH`` for weights inside an installed Python package, or a hub id.
    ``dtype`` is that of the weights: ``float32``, ``bfloat16`` or ``float16``. ``quantize="int8"``
    keeps those of products as 8-bit integers instead, a quarter of the bytes and about twice as
    fast on a CPU; ``int4`` those of layers as 4-bit ones, which is faster still for a few requests
    at a time. With ``offline`` the network is never touched. ``hash`` takes the digests that
    memories are named by: ``blake3``, or ``sha256`` where a standard asks for it.

    Raises a :class:`~xattn.errors.CheckpointError` that says what is wrong with the checkpoint, and
    :class:`UsageError` for a device or dtype that is none.
    """
    require(isinstance(name, str | os.PathLike), "name", "text or a path", name)
    device = str(device)
    require_device(device)
    checkpoint = read_checkpoint(resolve(os.fspath(name), offline=offline), os.fspath(name))
    _check_generation(checkpoint)
    network = build(checkpoint, dtype=dtype, quantize=quantize, device=device, hash=hash)
    sources = None
    if checkpoint.encoders:
        dtype = str(dtype).removeprefix("torch.")
        like = Like(dtype=dtype, quantize=quantize, device=device, hash=hash)
        sources = lend(checkpoint, network, like)
    return Model(network, checkpoint, sources)


def _check_generation(checkpoint: Checkpoint) -> None:
    """Raise :class:`CorruptCheckpointError` for a generation config that cannot be obeyed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said when it is used
            Settings.resolve(checkpoint.generation)
    except UsageError as error:
        raise CorruptCheckpointError(
            f"{checkpoint.origin}: its generation config cannot be obeyed: {error}"
        ) from error


class Model:
    """A loaded model. Made by :func:`load`."""

    def __init__(
        self, network: Network, checkpoint: Checkpoint, sources: MakesMemories | None = None
    ) -> None:
        self.network = network
        self.name = checkpoint.origin
        self.path, self.base_path = checkpoint.path, checkpoint.base
        """What it was read from, and what the model that it is a graft on was."""
        self.directory = checkpoint.directory
        """Where its tokenizer lies."""
        self.generation_config: Mapping[str, Any] = checkpoint.generation
        self._tokenizer = checkpoint.tokenizer
        self.asker = Asker(network, checkpoint.tokenizer, self.name)
        """What makes tokens of prompts, languages and tasks."""
        own = Sources(network, checkpoint.tokenizer) if sources is None else sources
        self.sources: MakesMemories = own
        """What makes memories for it."""
        self.pins = Pins(network)
        """Projections that are kept."""
        self.store: MemoryStore | None = None
        """Where memories of raw sources are looked for, and kept; :meth:`encode` always encodes."""

    @property
    def spec(self) -> ModelSpec:
        """Shapes and special tokens."""
        return self.network.spec

    @property
    def counters(self) -> Counters:
        """What was really run since the model was loaded, by encoders that are lent to it, too."""
        own = self.network.counters
        if not isinstance(self.sources, Several):
            return own
        return replace(own, encoder_passes=own.encoder_passes + self.sources.encoder_passes)

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer; :class:`UsageError` where it has none."""
        return self.asker.tokenizer

    def __repr__(self) -> str:
        weights = f"{parameters(self.spec) / 1e6:.1f}M parameters"
        return f"Model({self.name!r}, {self.spec.family}, {weights}, {self.network.dtype})"

    # Encoding

    def encode(
        self,
        source: Source,
        *,
        language: str | None = None,
        sample_rate: int | None = None,
        behind: Memory | None = None,
    ) -> Memory:
        """One encoder pass: ``source`` as a memory, to attend to as often as one likes.

        A text encoder takes a string, a :class:`~pathlib.Path` to a text file, token ids, or a
        :class:`~xattn.Table`; an audio encoder takes a path, the bytes of a file, a file object, or
        samples at ``sample_rate`` (16 kHz if not given). ``language`` is the source language of
        translation models that have a token for it. A decoder-only model reads a text or table
        itself: its memory is the keys and values that a prompt then goes on from. Such a memory can
        be made ``behind`` another, a prefix that many share: it is then read together with it.

        Raises :class:`~xattn.errors.SourceError` where the source is missing, unreadable, empty or
        longer than one memory holds.
        """
        return self.encode_batch(
            [source], language=language, sample_rate=sample_rate, behind=behind
        )[0]

    def encode_batch(
        self,
        sources: Sequence[Source],
        *,
        language: str | None = None,
        sample_rate: int | None = None,
        behind: Memory | None = None,
    ) -> list[Memory]:
        """One memory per source; texts go through the encoder in packs, without padding."""
        return self.encode_prepared(
            self.prepare_batch(sources, language=language, sample_rate=sample_rate, behind=behind)
        )

    def prepare(
        self,
        source: Source,
        *,
        language: str | None = None,
        sample_rate: int | None = None,
        behind: Memory | None = None,
    ) -> Prepared:
        """``source`` with its key, and not encoded: what a store needs to know whether it has it.

        Arguments and errors are those of :meth:`encode`.
        """
        return self.prepare_batch(
            [source], language=language, sample_rate=sample_rate, behind=behind
        )[0]

    def prepare_batch(
        self,
        sources: Sequence[Source],
        *,
        language: str | None = None,
        sample_rate: int | None = None,
        behind: Memory | None = None,
    ) -> list[Prepared]:
        """The sources with their keys, in the order given."""
        _require_several("sources", sources)
        if behind is not None:
            require(isinstance(behind, Memory), "behind", "a memory", behind)
            self.require_own([behind])
        return self.sources.prepare(
            sources, language=language, sample_rate=sample_rate, behind=behind
        )

    def prepare_long(
        self,
        source: Source,
        *,
        max_positions: int | None = None,
        language: str | None = None,
        sample_rate: int | None = None,
    ) -> list[Prepared]:
        """A source of any length in pieces: chunks of a text, windows of a recording.

        A text is cut at sentence ends, and a table at row ends, into chunks of at most
        ``max_positions`` tokens (512 if not given), such that an edit changes its own chunk and
        now and then a neighbour; a recording into the windows that
        :meth:`transcribe` begins with. A decoder-only model goes on from all of a text, which is
        one piece. The pieces are attended to together:
        ``model.generate(store.get_or_encode_prepared(model, pieces))``.
        """
        return self.sources.prepare_long(
            source, max_positions=max_positions, language=language, sample_rate=sample_rate
        )

    def encode_prepared(self, prepared: Sequence[Prepared]) -> list[Memory]:
        """The memories of prepared sources; texts go through the encoder in packs, unpadded."""
        return self.sources.encode(prepared)

    def remembered(self, prepared: Sequence[Prepared]) -> list[Memory]:
        """The memories of prepared sources, from the store where there is one."""
        if self.store is None:
            return self.encode_prepared(prepared)
        found = self.store.get_or_encode_prepared(self, prepared)
        return [
            replace(memory, source_tokens=tuple(item.inputs))
            if isinstance(item.inputs, list)
            else memory
            for memory, item in zip(found, prepared, strict=True)
        ]

    def ledger(self) -> Account:
        """What is held now: weights, pinned projections, memories of the store in this process."""
        return self.ledger_beside(())

    def ledger_beside(self, places: Collection[int]) -> Account:
        """The same, without what lies at ``places``: it stands in another's account."""
        store = 0 if self.store is None else self.store.held_bytes
        return held_by_model(self.network, self.pins.held, store, places)

    def pin_projection(self, memory: Memory, *, form: Form = "materialized") -> int:
        """Keep what the decoder makes of ``memory``, so that no generation makes it again.

        Worth its bytes, which are returned, for a memory that is in use all the time. It is let go
        by :meth:`unpin_projection`, and made again where the decoder's weights have changed.
        """
        self.require_own([memory])
        return self.pins.pin(memory, form).size_bytes

    def unpin_projection(self, memory: Memory, *, form: Form = "materialized") -> bool:
        """Let a projection go; whether there was one."""
        return self.pins.unpin(memory, form)

    # Generating

    def generate(
        self,
        memory: Memory | Sequence[Memory] | Source | None = None,
        prompt: Prompt | None = None,
        *,
        form: FormChoice = "auto",
        language: str | None = None,
        target_language: str | None = None,
        task: str = "transcribe",
        word_timestamps: bool = False,
        parallel: Parallel | None = None,
        adapter: str | None = None,
        **settings: Any,
    ) -> Generation:
        """Decode, attending to one memory, or to several at once.

        Several memories are attended to as one: softmax over all their positions, exactly, and
        whatever their order; but to a decoder-only model they stand one after the other, or as
        ``parallel`` says. Anything that is not a memory is encoded first. ``prompt`` is what the
        decoder continues: a prefix of the target, or all the input of a decoder-only model, as
        text, token ids, or chat messages. ``form`` is how cross-attention reads a memory,
        ``"materialized"`` (keys and values per layer), ``"absorbed"`` (the states themselves, for
        all layers), or ``"auto"``: the one of these that is sooner done here, by a model of what
        each costs (``xattn doctor --model`` explains it). ``"materialized-int8"`` and
        ``"absorbed-int8"`` are the same in a quarter of the bytes, with 8 bits for each number,
        for whoever names them.

        ``adapter`` is that of :mod:`xattn.tuning.lora` which this call alone is computed with.
        ``language`` is the source language (translation) or the spoken one (Whisper; detected where
        None); ``target_language`` the one to translate into; ``task`` and ``word_timestamps`` are
        Whisper's. ``settings`` are those of :class:`~xattn.decoding.settings.Settings`, under the
        names transformers uses, on top of the checkpoint's own.

        Raises :class:`~xattn.errors.UsageError` for a setting out of its bounds.
        """
        memories = self._memories(memory, language, adapter)
        question = Question(
            prompt=prompt,
            language=language,
            target_language=target_language,
            task=task,
            parallel=parallel,
            adapter=adapter,
        )
        request, resolved = self.asker.request(memories, question, self.settings(settings))
        chosen = self._form(form, [request], resolved)
        [request] = self._with_pinned([request], chosen)
        with self.in_use(memories):
            hypotheses = decode(self.network, [request], resolved, self._tokenizer, form=chosen)[0]
        answer = self.answer(request, hypotheses)
        if not word_timestamps:
            return answer
        bound = "True only with one memory of an audio model"
        require(
            self.asker.reads_audio and len(memories) == 1,
            "word_timestamps",
            bound,
            word_timestamps,
        )
        start = speech_start(self.network, self.asker.whisper, memories[0], language, task)

        def timed(one: Generation) -> Generation:
            tokens = (request.prompt, one.tokens)
            words = spoken_words(self.network, self.asker.whisper, memories[0], start, *tokens)
            return replace(one, words=words_within(words, one.text))

        others = tuple(timed(other) for other in answer.alternatives)
        return replace(timed(answer), alternatives=others)

    def generate_batch(
        self,
        memories: Sequence[Memory | Sequence[Memory] | Source] | None = None,
        prompts: Sequence[Prompt] | None = None,
        *,
        form: FormChoice = "auto",
        language: str | None = None,
        target_language: str | None = None,
        task: str = "transcribe",
        parallel: Parallel | None = None,
        adapters: Sequence[str | None] | None = None,
        **settings: Any,
    ) -> list[Generation]:
        """Many requests in one batch, with memories and prompts of any lengths.

        Entry j answers ``memories[j]`` and ``prompts[j]``, with ``adapters[j]``, each as in
        :meth:`generate`. Requests that name the same memory share it. Texts that are not encoded
        yet are encoded together.
        """
        if memories is None and prompts is None:
            raise UsageError("`memories` or `prompts` must be given, but both are None instead.")
        _require_several("memories", memories)
        _require_several("prompts", prompts)
        count = len(memories if memories is not None else prompts or ())
        if memories is not None and prompts is not None:
            bound = f"as long as memories ({count})"
            require(len(prompts) == count, "prompts", bound, len(prompts))
        names = [None] * count if adapters is None else list(adapters)
        require(len(names) == count, "adapters", f"as long as memories ({count})", len(names))
        held: list[tuple[Memory, ...]] = [()] * count
        if memories is not None:
            held = self._memories_of_batch(memories, language, names)
        wanted = list(prompts) if prompts is not None else [None] * count
        given = self.settings(settings)
        question = Question(
            language=language, target_language=target_language, task=task, parallel=parallel
        )
        pairs = [
            self.asker.request(memory, replace(question, prompt=prompt, adapter=name), given)
            for memory, prompt, name in zip(held, wanted, names, strict=True)
        ]
        if not pairs:
            return []
        requests, resolved = [request for request, _ in pairs], pairs[0][1]
        chosen = self._form(form, requests, resolved)
        requests = self._with_pinned(requests, chosen)
        with self.in_use([memory for memories in held for memory in memories]):
            answers = decode(self.network, requests, resolved, self._tokenizer, form=chosen)
        return [self.answer(*pair) for pair in zip(requests, answers, strict=True)]

    def stream(
        self,
        memory: Memory | Sequence[Memory] | Source | None = None,
        prompt: Prompt | None = None,
        *,
        unit: Unit = "words",
        form: FormChoice = "auto",
        language: str | None = None,
        target_language: str | None = None,
        task: str = "transcribe",
        parallel: Parallel | None = None,
        adapter: str | None = None,
        **settings: Any,
    ) -> Iterator[str]:
        """The text as it is decoded, in whole words or characters; the pieces join to the answer.

        Arguments are those of :meth:`generate`, without beams, and are checked before this returns.
        """
        alone = {"num_beams": 1, "num_return_sequences": 1}
        given = self.settings(alone | settings)
        memories = self._memories(memory, language, adapter)
        question = Question(
            prompt=prompt,
            language=language,
            target_language=target_language,
            task=task,
            parallel=parallel,
            adapter=adapter,
        )
        request, resolved = self.asker.request(memories, question, given)
        pieces = TextStream(self.tokenizer, unit)
        chosen = self._form(form, [request], resolved)
        [request] = self._with_pinned([request], chosen)
        tokens = stream(self.network, request, resolved, self._tokenizer, form=chosen)
        return self._pieces(tokens, pieces, StopFilter(resolved.stop_strings), memories)

    def _pieces(
        self,
        tokens: Iterator[int],
        text: TextStream,
        stop: StopFilter,
        memories: Sequence[Memory],
    ) -> Iterator[str]:
        with self.in_use(memories):
            for token in tokens:
                if piece := stop.push(text.push(token)):
                    yield piece
        if piece := stop.push(text.finish()) + stop.finish():
            yield piece

    # Speech

    def transcribe(
        self,
        source: Source,
        *,
        sample_rate: int | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> Transcript:
        """Transcribe a recording of any length with a Whisper model.

        ``source`` is a path, the bytes of a file, a file object, or samples at ``sample_rate``
        (16 kHz if not given). ``options`` are those of faster-whisper, see
        :class:`~xattn.decoding.transcription_settings.TranscriptionSettings`. ``progress`` is told
        the seconds done and the seconds in all after each window.

        Each window of 30 s is encoded once, whatever beams, temperatures and languages are tried.
        """
        return self.transcribe_segments(
            source, sample_rate=sample_rate, progress=progress, **options
        ).finish()

    def transcribe_segments(
        self,
        source: Source,
        *,
        sample_rate: int | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> Transcription:
        """Like :meth:`transcribe`, as an iterator over segments that are yielded when found."""
        settings = TranscriptionSettings.resolve(**options)
        recording, in_use = read_audio(source, sample_rate=sample_rate), ExitStack()

        def memory_of(window: Window) -> Memory:
            prepared = prepare_window(
                self.network, window.recording, lambda: window.mel_MF, window.start, window.frames
            )
            in_use.close()  # the window before this one
            [memory] = self.remembered([prepared])
            in_use.enter_context(self.in_use([memory]))
            return memory

        transcription = Transcription(
            self.network, self.tokenizer, recording, settings, encode=memory_of, progress=progress
        )
        weakref.finalize(transcription, in_use.close)
        return transcription

    def detect_language(self, memory: Memory) -> dict[str, float]:
        """Probability of each spoken language, on a memory and without an encoder pass (Whisper).

        Empty for an English-only model.
        """
        if not self.asker.whisper.multilingual:
            return {}
        return HeardWindow(self.network, memory).languages(self.asker.whisper)

    def start_tokens(
        self, memory: Memory, *, language: str | None = None, task: str = "transcribe"
    ) -> tuple[int, ...]:
        """Decoder tokens that :meth:`generate` puts before a transcript or translation."""
        return self.asker.start_tokens(memory, language, task)

    # Looking

    def cross_attention(
        self,
        memory: Memory,
        tokens: Sequence[int],
        *,
        heads: Sequence[tuple[int, int]] | None = None,
    ) -> Tensor:
        """Weights ``[A, T, S]`` with which decoder ``tokens`` read ``memory``, per (layer, head).

        Recomputed for these heads only, in one teacher-forced pass and without an encoder pass.
        ``heads`` defaults to the alignment heads of the checkpoint, else to all.
        """
        if self.spec.decoder.cross_attention is None:
            raise UsageError(f"{self.name} is a decoder-only model: it attends to no memory.")
        every = self.network.reading_heads
        chosen = list(self.spec.alignment_heads or every if heads is None else heads)
        state = self.network.start([[memory]])
        ids = checked([int(token) for token in tokens], self.spec.decoder.vocab_size)
        limit = self.spec.decoder.position.limit
        if not ids or (limit is not None and len(ids) > limit):
            raise PromptError(
                f"`tokens` must be 1 to {limit or 'any number of'} decoder tokens, "
                f"but are {len(ids)} instead."
            )
        return self.network.cross_weights(torch.tensor([ids]), state, chosen)[0]

    def attribution(
        self,
        memories: Sequence[Memory],
        generation: Generation,
        *,
        heads: Sequence[tuple[int, int]] | None = None,
        parallel: Parallel | None = None,
    ) -> list[Tensor]:
        """What each new token of ``generation`` read of each memory: shares ``[T, S]``.

        Of all that the (layer, head) pairs read, a mean over ``heads`` (all, if not given), in the
        step that chose the token. Over the memories of an encoder-decoder they sum to 1; a
        decoder-only model reads its prompt and its answer besides. Recomputed in one teacher-forced
        pass, without an encoder pass. ``memories`` and ``parallel`` are those of the generation.
        """
        require(len(memories) > 0, "memories", "at least one", list(memories))
        require(len(generation.tokens) > 0, "generation", "of at least one token", generation)
        self.require_own(memories)
        for memory in memories:
            projector = self.spec.projector_for(memory.modality)
            fits = projector is None or projector.resampler is None
            bound = "of a modality that no resampler reads: its positions are lost there"
            require(fits, "memories", bound, memory)
        chosen = self.network.reading_heads if heads is None else list(heads)
        totals = [torch.zeros(len(generation.tokens), len(memory)) for memory in memories]
        for shares in self.shares_by_layer(memories, generation, heads=chosen, parallel=parallel):
            for total_TS, share_TAS in zip(totals, shares, strict=True):
                total_TS += share_TAS.sum(dim=1).cpu()
        return [total_TS / len(chosen) for total_TS in totals]

    def shares_by_layer(
        self,
        memories: Sequence[Memory],
        generation: Generation,
        *,
        heads: Sequence[tuple[int, int]],
        parallel: Parallel | None = None,
    ) -> Iterator[list[Tensor]]:
        """The same of each layer and of each of its heads: shares ``[T, A, S]`` of each memory."""
        how = None if parallel is None else [parallel]
        state, again = self.network.start([memories], parallel=how), []
        if parallel is not None and parallel.recompute:
            again = self.network.blend(state, generation.prompt, parallel.recompute)
        fed = torch.tensor([[*generation.prompt, *generation.tokens[:-1]]])
        for _, _, shares in self.network.shares_read(fed, state, heads, again):
            yield [share_TAS[len(generation.prompt) - 1 :] for share_TAS in shares]

    # Inside

    def _memories(
        self, memory: Any, language: str | None, adapter: str | None = None
    ) -> tuple[Memory, ...]:
        if memory is None:
            return ()
        return self._memories_of_batch([memory], language, [adapter])[0]

    def _memories_of_batch(
        self, entries: Sequence[Any], language: str | None, adapters: Sequence[str | None]
    ) -> list[tuple[Memory, ...]]:
        """Each entry as memories; sources among them are encoded in one call."""
        groups = [entry_items(entry) for entry in entries]
        named = [
            name
            for group, name in zip(groups, adapters, strict=True)
            if not all(isinstance(item, Memory) for item in group)
        ]
        require_made_without(self.sources.makers, named)
        raw = [item for group in groups for item in group if not isinstance(item, Memory)]
        source_language = None if self.asker.reads_audio else language
        prepared = self.prepare_batch(raw, language=source_language) if raw else []
        encoded = iter(self.remembered(prepared) if prepared else ())
        self.require_own([item for group in groups for item in group if isinstance(item, Memory)])
        return [
            tuple(item if isinstance(item, Memory) else next(encoded) for item in group)
            for group in groups
        ]

    def require_own(
        self, memories: Sequence[Memory], digests: frozenset[str] | None = None
    ) -> None:
        """Raise :class:`UsageError` for a memory that another encoder made.

        ``digests`` are those of its encoders, for those who took them before.
        """
        if not memories:
            return
        own = self.sources.digests if digests is None else digests
        for memory in memories:
            if memory.key.encoder not in own:
                raise UsageError(
                    f"{memory!r} was made by another encoder than that of {self.name}; "
                    "encode its source with this model."
                )

    def _form(self, form: FormChoice, requests: Sequence[Request], settings: Settings) -> Form:
        """The form that a call names, or else the one that is sooner done."""
        require(form in FORM_CHOICES, "form", f"one of {', '.join(FORM_CHOICES)}", form)
        if form != "auto":
            return form
        network = self.network
        return choose(network, requests, settings, lambda: rates_of(network).rates, self.pins)

    def _with_pinned(self, requests: Sequence[Request], form: Form) -> list[Request]:
        """``requests`` with the projections that are kept in the place of their memories."""
        if adapters_of(self.network):
            return list(requests)  # what is pinned may have been made with another
        read = [memory for request in requests for memory in request.memories]
        kept = iter(self.pins.instead_of(read, form))
        return [
            replace(request, memories=tuple(islice(kept, len(request.memories))))
            for request in requests
        ]

    def in_use(self, memories: Sequence[Memory]) -> AbstractContextManager[None]:
        """While it lasts, the store evicts none of them."""
        if self.store is None:
            return nullcontext()
        return self.store.lease(*{memory.key.digest for memory in memories})

    def settings(self, given: Mapping[str, Any]) -> Settings:
        """Settings of one call, on top of the checkpoint's own."""
        return Settings.resolve(self.generation_config, **given)

    def answer(self, request: Request, hypotheses: Sequence[Hypothesis]) -> Generation:
        """What was found for a request, as users see it."""
        first, *others = [
            Generation(
                text=self._text(hypothesis),
                tokens=hypothesis.tokens,
                prompt=request.prompt,
                score=hypothesis.score,
                finish=hypothesis.finish,
                logprobs=hypothesis.logprobs,
                top_logprobs=hypothesis.top_logprobs,
            )
            for hypothesis in hypotheses
        ]
        return replace(first, alternatives=tuple(others))

    def _text(self, hypothesis: Hypothesis) -> str:
        if hypothesis.text is not None:
            return hypothesis.text
        return "" if self._tokenizer is None else self._tokenizer.decode(hypothesis.tokens)


def _require_several(name: str, value: object) -> None:
    several = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    bound = "a list with one entry per request"
    require(value is None or several, name, bound, value)


def entry_items(entry: Any) -> list[Any]:
    """A sequence of memories (and sources) is several at once; anything else is one."""
    if isinstance(entry, list | tuple) and any(isinstance(item, Memory) for item in entry):
        return list(entry)
    return [entry]
