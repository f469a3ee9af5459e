"""CTranslate2, with the settings that suit it best.

Its ``Translator`` takes no encoded source, so decoding alone is what a call with one new token
leaves of a whole call. ``Whisper.generate`` takes its own encoder's output.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import ctranslate2
import numpy as np

from xattn.bench.making import ModelFiles, token_name
from xattn.bench.tasks import Call, NotRun, Precision, Ready, Task, Tokens, without_end

COMPUTE_TYPES: dict[Precision, str] = {"fp32": "float32", "int8": "int8"}
MOST_TOKENS = 226
"""Prompt and answer of a window of speech."""
BATCHES = ((0, "examples"), (16, "examples"), (8, "examples"), (4, "examples"), (4096, "tokens"))
"""``max_batch_size`` and ``batch_type`` that are tried; 0 is all at once."""
LARGEST_SCORES_BYTES = 2**32
"""Batches whose attention scores would take more than this in one layer are not tried."""


class Engine:
    """One loaded model at a time, or one for each split of the threads."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._files = ModelFiles(name="", xattn="")
        self._precision: Precision = "fp32"
        self._translators: dict[int, Any] = {}
        self._whisper: Any = None

    def facts(self) -> dict[str, Any]:
        """Versions and threads."""
        return {"ctranslate2": ctranslate2.__version__, "threads": self._threads}

    def load(self, files: ModelFiles, precision: Precision) -> None:
        """Take these weights; :class:`NotRun` where it cannot."""
        if not files.ctranslate2:
            raise NotRun(f"there is no CTranslate2 directory of {files.name}")
        self._translators, self._whisper = {}, None
        self._files, self._precision = files, precision
        if "whisper" in files.name:
            self._whisper = ctranslate2.models.Whisper(
                files.ctranslate2,
                compute_type=COMPUTE_TYPES[precision],
                inter_threads=1,
                intra_threads=self._threads,
            )
        else:
            self._translator(1)

    def _translator(self, workers: int) -> Any:
        """With the threads shared among so many batches at a time; another split is let go."""
        if workers not in self._translators:
            self._translators = {}
            self._translators[workers] = ctranslate2.Translator(
                self._files.ctranslate2,
                compute_type=COMPUTE_TYPES[self._precision],
                inter_threads=workers,
                intra_threads=self._threads // workers,
            )
        return self._translators[workers]

    def set_up(self, task: Task) -> Ready:
        """What can be timed; :class:`NotRun` for a kind of task that it has nothing for."""
        kinds: dict[str, Callable[[Task], Ready]] = {
            "text": self._text,
            "speech": self._speech,
            "prefixes": self._requests,
            "requests": self._requests,
        }
        if task.kind not in kinds:
            raise NotRun(f"CTranslate2 has nothing to run for {task.kind!r} here")
        return kinds[task.kind](task)

    def likelihood(self, task: Task, answers: Tokens) -> list[float]:
        """How likely each answer is: mean log-probability a token."""
        if self._whisper is not None:
            raise NotRun("CTranslate2's Whisper scores no answers")
        requests = task.requests()
        sources = [self._names(task.sources[source]) for source, _ in requests]
        targets = [
            self._names([*prefix, *answer])
            for (_, prefix), answer in zip(requests, answers, strict=True)
        ]
        found = self._translator(1).score_batch(
            sources, targets, max_batch_size=1, max_input_length=0
        )
        lengths = map(len, answers)
        # The last is the end's, which no answer has.
        return [
            sum(one.log_probs[-length - 1 : -1]) / length
            for one, length in zip(found, lengths, strict=True)
        ]

    # Text

    def _text(self, task: Task) -> Ready:
        source = self._names(task.sources[0])

        def run(length: int) -> Tokens:
            [answer] = self._translator(1).translate_batch([source], **self._settings(task, length))
            return [self._ids(answer.hypotheses[0])]

        return Ready(
            calls={
                "cold": Call(run=lambda: run(task.new_tokens)),
                "first": Call(run=lambda: run(1)),
            },
            notes={"warm": f"a call with {task.new_tokens} new tokens less a call with 1"},
        )

    def _settings(self, task: Task, length: int) -> dict[str, Any]:
        return dict(
            beam_size=task.beams,
            max_decoding_length=length,
            min_decoding_length=length,
            max_input_length=0,
        )

    def _requests(self, task: Task) -> Ready:
        """All at once, in whatever batches and threads are fastest here; and one by one."""
        sources = [self._names(task.sources[source]) for source in task.reads]
        prefixes = [self._names(prefix) for prefix in task.prefixes]
        cut = len(prefixes[0])
        settings = self._settings(task, cut + task.new_tokens)

        def run(count: int, workers: int, batch: int, kind: str) -> Tokens:
            answers = self._translator(workers).translate_batch(
                sources[:count],
                target_prefix=prefixes[:count],
                max_batch_size=batch,
                batch_type=kind,
                **settings,
            )
            return [self._ids(answer.hypotheses[0])[cut:] for answer in answers]

        def one_by_one() -> Tokens:
            answers = [
                self._translator(1).translate_batch([source], target_prefix=[prefix], **settings)
                for source, prefix in zip(sources, prefixes, strict=True)
            ]
            return [self._ids(answer.hypotheses[0])[cut:] for [answer] in answers]

        tried = {task.setting: 0.0} if task.setting else self._tried(sources, run)
        workers, batch, kind = min(tried, key=lambda one: tried[one])
        calls = {
            "cold": Call(
                run=lambda: run(len(sources), workers, batch, kind),
                before=lambda: self._translator(workers),
            )
        }
        if task.kind == "prefixes":
            calls["cold, one by one"] = Call(run=one_by_one, before=lambda: self._translator(1))
        return Ready(
            calls=calls,
            notes={
                "cold": f"the fastest of {len(tried)} settings: {_setting(workers, batch, kind)}",
                "setting": [workers, batch, kind],
                "tried": {_setting(*one): round(took, 3) for one, took in tried.items()},
            },
        )

    def _tried(
        self, sources: Sequence[Sequence[str]], run: Callable[..., Tokens]
    ) -> dict[tuple[Any, ...], float]:
        """(batches at a time, ``max_batch_size``, ``batch_type``) -> seconds of one call."""
        longest, total = max(map(len, sources)), len(sources)
        count = total if longest < 2048 else max(1, total // 4)
        splits = [n for n in (1, 2) if self._threads % n == 0]
        tried: dict[tuple[Any, ...], float] = {}
        for workers in splits:
            for batch, kind in BATCHES:
                rows = batch or total
                if kind == "tokens":
                    rows = max(1, batch // longest)
                # Eight heads' scores of one layer, for each batch that runs at a time.
                if min(rows, total) * workers * 8 * longest**2 * 4 > LARGEST_SCORES_BYTES:
                    continue
                self._translator(workers)
                begun = time.perf_counter()
                run(count, workers, batch, kind)
                tried[workers, batch, kind] = time.perf_counter() - begun
        return tried

    def _names(self, ids: Sequence[int]) -> list[str]:
        return [token_name(number) for number in ids]

    def _ids(self, names: Sequence[str]) -> list[int]:
        special = {"</s>": self._files.eos, "<unk>": 2, "<pad>": self._files.start[0]}
        return [special[name] if name in special else int(name[1:]) for name in names]

    # Speech

    def _speech(self, task: Task) -> Ready:
        mels = [np.load(name.replace(".npy", ".mel.npy"))[None] for name in task.recordings]
        features = [ctranslate2.StorageView.from_array(np.ascontiguousarray(mel)) for mel in mels]
        encoded: list[Any] = []

        def run(inputs: Sequence[Any]) -> Tokens:
            answers = [
                self._whisper.generate(
                    one,
                    [list(self._files.start)],
                    beam_size=task.beams,
                    max_length=MOST_TOKENS,
                )[0]
                for one in inputs
            ]
            return [without_end(answer.sequences_ids[0], self._files.eos) for answer in answers]

        def encode() -> None:
            if not encoded:
                encoded.extend(self._whisper.encode(one) for one in features)

        return Ready(
            calls={
                "warm": Call(run=lambda: run(encoded), before=encode),
                "cold": Call(run=lambda: run(features)),
            }
        )


def _setting(workers: int, batch: int, kind: str) -> str:
    return f"inter_threads={workers} max_batch_size={batch} batch_type={kind}"
