"""transformers' ``generate``, in float32 and with its default attention."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput

from xattn.bench.making import ModelFiles
from xattn.bench.tasks import Call, NotRun, Precision, Ready, Task, Tokens, without_end

MOST_SPOKEN = 224


class Engine:
    """One loaded model at a time."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        logging: Any = transformers.utils.logging
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self._model: Any = None
        self._files = ModelFiles(name="", xattn="")

    def facts(self) -> dict[str, Any]:
        """Versions and threads."""
        return {
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }

    def load(self, files: ModelFiles, precision: Precision) -> None:
        """Take these weights; :class:`NotRun` where it cannot."""
        if not files.transformers:
            raise NotRun(f"transformers has no weights of {files.name}")
        if precision != "fp32":
            raise NotRun("transformers runs in float32 only here")
        self._model, self._files = None, files
        if files.transformers.endswith(".gguf"):
            folder, _, name = files.transformers.rpartition("/")
            reader: Any = transformers.AutoModelForCausalLM
            self._model = reader.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
            return
        config = transformers.AutoConfig.from_pretrained(files.transformers)
        kind = getattr(transformers, config.architectures[0])
        self._model = kind.from_pretrained(files.transformers, dtype=torch.float32).eval()

    def set_up(self, task: Task) -> Ready:
        """What can be timed; :class:`NotRun` for a kind of task that it has nothing for."""
        kinds: dict[str, Callable[[Task], Ready]] = {
            "text": self._text,
            "speech": self._speech,
            "prefixes": self._requests,
            "requests": self._requests,
            "language": self._language,
        }
        if task.kind not in kinds:
            raise NotRun(f"transformers has nothing to run for {task.kind!r} here")
        return kinds[task.kind](task)

    @torch.inference_mode()
    def _generate(self, start: Any, **inputs: Any) -> Tokens:
        # Whisper's own `generate` is for long recordings; this is the one below it.
        rows: Any = GenerationMixin.generate(
            self._model, decoder_input_ids=start, do_sample=False, **inputs
        )
        return [without_end(row[start.shape[1] :], self._files.eos) for row in rows.tolist()]

    @torch.inference_mode()
    def _encode(self, **inputs: Any) -> Any:
        return self._model.get_encoder()(**inputs).last_hidden_state

    def _start(self, prefix: tuple[int, ...] = ()) -> Any:
        return torch.tensor([[*self._files.start, *prefix]])

    # One source

    def _text(self, task: Task) -> Ready:
        ids = torch.tensor(task.sources)
        kept: dict[str, Any] = {}
        settings = self._settings(task)

        def encode() -> None:
            if not kept:
                kept["states"] = self._encode(input_ids=ids)

        def warm() -> Tokens:
            # `generate` writes into what it is given, so each call has an output of its own.
            given = BaseModelOutput(last_hidden_state=kept["states"])
            mask = torch.ones_like(ids)
            return self._generate(
                self._start(), encoder_outputs=given, attention_mask=mask, **settings
            )

        def cold() -> Tokens:
            return self._generate(self._start(), input_ids=ids, **settings)

        return Ready(calls={"warm": Call(run=warm, before=encode), "cold": Call(run=cold)})

    def _settings(self, task: Task) -> dict[str, Any]:
        length = task.new_tokens
        return dict(num_beams=task.beams, max_new_tokens=length, min_new_tokens=length)

    def _speech(self, task: Task) -> Ready:
        mels = [
            torch.from_numpy(np.load(name.replace(".npy", ".mel.npy")))[None]
            for name in task.recordings
        ]
        kept: list[Any] = []
        settings = dict(num_beams=task.beams, max_new_tokens=MOST_SPOKEN)

        def encode() -> None:
            if not kept:
                kept.extend(self._encode(input_features=mel) for mel in mels)

        def warm() -> Tokens:
            answers: Tokens = []
            for states in kept:
                given = BaseModelOutput(last_hidden_state=states)
                answers += self._generate(self._start(), encoder_outputs=given, **settings)
            return answers

        def cold() -> Tokens:
            answers: Tokens = []
            for mel in mels:
                answers += self._generate(self._start(), input_features=mel, **settings)
            return answers

        return Ready(calls={"warm": Call(run=warm, before=encode), "cold": Call(run=cold)})

    # Many requests

    def _requests(self, task: Task) -> Ready:
        """One prefix after the other on one source; many sources as one batch."""
        settings = self._settings(task)

        def one_by_one() -> Tokens:
            answers: Tokens = []
            for source, prefix in zip(task.reads, task.prefixes, strict=True):
                ids = torch.tensor([task.sources[source]])
                answers += self._generate(self._start(prefix), input_ids=ids, **settings)
            return answers

        def batch() -> Tokens:
            ids = torch.tensor([task.sources[source] for source in task.reads])
            start = torch.tensor([[*self._files.start, *prefix] for prefix in task.prefixes])
            return self._generate(start, input_ids=ids, **settings)

        if task.kind == "requests":
            return Ready(calls={"cold": Call(run=batch)}, notes={"cold": "one batch"})
        return Ready(calls={"cold": Call(run=one_by_one)}, notes={"cold": "one by one"})

    # Language models

    def _language(self, task: Task) -> Ready:
        ids = torch.tensor(task.sources)

        @torch.inference_mode()
        def run(length: int) -> Tokens:
            rows = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=length,
                min_new_tokens=length,
            )
            return [row[ids.shape[1] :] for row in rows.tolist()]

        return Ready(
            calls={
                "cold": Call(run=lambda: run(task.new_tokens)),
                "first": Call(run=lambda: run(1)),
            }
        )
