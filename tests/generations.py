"""Random prompts, and what transformers' ``generate`` makes of them.

transformers runs one group of equally long prompts and sources after another; ours are one batch of
all of them.
"""

import tiny
import torch
import transformers

from xattn.decoding import Request

EOS = (2, 7, 11, 30, 41, 75)
GROUPS = [(1, 9), (3, 5), (2, 13), (6, 7), (1, 4)]
"""Prompt tokens and source tokens."""


def groups_of(pair, per_group: int, seed: int = 0):
    """Prompts and what transformers needs for them, group by group."""
    for n, (prompt_tokens, source_tokens) in enumerate(GROUPS):
        generator = torch.Generator().manual_seed(100 * seed + n)
        prompts = torch.randint(3, tiny.VOCAB, (per_group, prompt_tokens), generator=generator)
        if pair.decoder_only:
            yield prompts, None, {"input_ids": prompts}
        else:
            # transformers puts it there where it is missing.
            prompts[:, 0] = pair.theirs.config.decoder_start_token_id
            values, inputs = pair.inputs(per_group, source_tokens, seed=100 * seed + n)
            yield prompts, values, {**inputs, "decoder_input_ids": prompts}


def requests_of(pair, groups):
    found = []
    for prompts, values, _ in groups:
        memories = [()] * len(prompts) if values is None else [(m,) for m in pair.memories(values)]
        found += [Request(tuple(p), m) for p, m in zip(prompts.tolist(), memories, strict=True)]
    return found


def theirs(pair, groups, eos=EOS, **arguments):
    """Tokens and scores of every hypothesis; scores are None where transformers gives none."""
    found = []
    arguments = {"do_sample": False, "max_new_tokens": 12} | arguments
    each = arguments.get("num_return_sequences", 1)
    for prompts, _, inputs in groups:
        output = generate(pair, inputs, eos_token_id=list(eos), **arguments)
        new = output.sequences[:, prompts.shape[1] :].tolist()
        scores = output.get("sequences_scores")
        scores = [None] * len(new) if scores is None else scores.tolist()
        lines = [(until_end(t, eos), s) for t, s in zip(new, scores, strict=True)]
        found += [lines[i : i + each] for i in range(0, len(lines), each)]
    return found


def generate(pair, inputs, **arguments):
    # Whisper's own generate is about long audio; decoding is the common one. The cache of T5 fails
    # where the decoder has more layers than the encoder.
    return transformers.GenerationMixin.generate(
        pair.theirs,
        **inputs,
        **arguments,
        use_cache=not pair.name.startswith("t5"),
        return_dict_in_generate=True,
        output_scores=True,
    )


def until_end(tokens, eos):
    end = next((n for n, token in enumerate(tokens) if token in eos), len(tokens))
    return tuple(tokens[: end + 1])
