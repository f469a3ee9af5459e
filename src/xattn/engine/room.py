"""Room to work in: what is made on the way to the next tokens, at most, from shapes alone."""

from collections.abc import Collection, Sequence
from itertools import zip_longest

import torch
from torch import nn

from xattn.decoding.constraints import FEW_ALLOWED
from xattn.engine.job import Job
from xattn.ledger.workspace import (
    CHUNK,
    ENCODED_AT_ONCE,
    FEW_TOKENS,
    SHORT_PROMPT,
    encoding_bytes,
    projecting_bytes,
    torch_bytes,
)
from xattn.models.compiled import FEW, ROWS, obstacle
from xattn.models.narrow import NarrowLinear
from xattn.models.network import Network
from xattn.models.nibbles import NibbleMatrix
from xattn.native import library
from xattn.spec import Form, is_absorbed

SAMPLED = 10
"""What a sampler makes of the logits that it chooses from, in copies of them."""


class Room:
    """Foretells what steps of one network make, besides caches and memories."""

    def __init__(self, network: Network, form: Form) -> None:
        self._spec, self._encoder, self._form = network.spec.decoder, network.spec.encoder, form
        self._kernels = network.use_kernels and obstacle(network.decoder) is None
        self._kernels &= library() is not None
        self._weights = _made_wide(network) if is_absorbed(form) else 0
        self._widening = 0 if library() is not None else _widened(network)

    def bytes(self, jobs: Collection[Job]) -> int:
        """For a step of all, a piece of one prompt and one memory to arrive; or for encoding."""
        rows, longest = sum(job.rows for job in jobs), max(job.tokens for job in jobs)
        slots = list(zip_longest(*(job.reads for job in jobs)))
        lengths = [max(e.positions for e in slot if e is not None) for slot in slots]
        groups = sum(len({id(e) for e in slot if e is not None}) for slot in slots)
        prompt = max(len(job.prompt) for job in jobs)
        fed = max(rows, min(rows * min(prompt, SHORT_PROMPT), FEW_TOKENS))
        total = self._step(fed, rows, longest, lengths, groups)
        if prompt > 1:
            total += self._step(min(prompt, CHUNK), 1, prompt, lengths, len(slots))
        total += self._projecting(max(lengths, default=0)) + self._choosing(jobs)
        return max(total, self._encoding(jobs)) + self._widening

    def _encoding(self, jobs: Collection[Job]) -> int:
        """One pass over what is still to be encoded: several short sources, or one long one."""
        entries = {e.identity: e for job in jobs for e in job.reads if e.source is not None}
        sizes = [entry.positions for entry in entries.values()]
        if not sizes:
            return 0
        positions = max(*sizes, min(sum(sizes), ENCODED_AT_ONCE))
        if self._encoder is None:
            return self._step(positions, 1, positions, (), 0)
        return encoding_bytes(self._encoder, positions)

    def _step(
        self, tokens: int, rows: int, longest: int, lengths: Sequence[int], groups: int
    ) -> int:
        """One step, of which each row reads memories of these ``lengths``, all ``groups``."""
        numbers = self._spec.step_bytes(
            tokens,
            rows,
            longest,
            sum(lengths),
            memories=len(lengths),
            form=self._form,
            threads=torch.get_num_threads(),
        )
        if self._kernels and tokens <= (ROWS if tokens == rows else FEW):
            return numbers
        return numbers + torch_bytes(
            self._spec,
            self._form,
            tokens,
            longest + tokens,
            groups,
            max(lengths, default=0),
            threads=torch.get_num_threads(),
        )

    def _projecting(self, positions: int) -> int:
        """One layer of a memory, and wide weights of narrow layers."""
        return projecting_bytes(self._spec, positions, self._form) + self._weights

    def _choosing(self, jobs: Collection[Job]) -> int:
        """What courses make of logits, one after the other, and rows of the few allowed tokens."""
        vocabulary, width = self._spec.vocab_size, self._spec.width
        sampling = max((job.rows for job in jobs if job.settings.do_sample), default=0)
        few = min(vocabulary // FEW_ALLOWED, sum(_most_allowed(job, vocabulary) for job in jobs))
        rows = sum(job.rows for job in jobs)
        return 4 * (SAMPLED * sampling * vocabulary + few * (2 * width + rows))


def _most_allowed(job: Job, vocabulary: int) -> int:
    """Tokens to which a constraint may restrict it."""
    settings = job.settings
    if settings.prefix_allowed_tokens_fn is not None:
        return vocabulary
    return len(settings.forced_eos_token_id or ()) + (settings.forced_bos_token_id is not None)


def _widened(network: Network) -> int:
    """Some outputs of an int4 matrix, where torch multiplies them."""
    return max((m.widening for m in network.modules() if isinstance(m, NibbleMatrix)), default=0)


def _made_wide(network: Network) -> int:
    """Weights that absorbed memories are read with, of layers that are narrow otherwise."""
    readers = [layer.reader for layer in network.decoder.stack if layer.crosses]
    found: list[nn.Module] = [one for reader in readers for one in (reader.k, reader.v)]
    matrices = [one.matrix for one in found if isinstance(one, NarrowLinear)]
    sizes = [4 * one.out_features * one.in_features for one in matrices]
    return sum(sizes) + 2 * max(sizes, default=0)  # one more on its way
