"""What transformers holds for the same job, counted on its own cache."""

import pytest
import tiny
import torch


@pytest.mark.parametrize("name", ["bart", "m2m_100", "whisper"])
def test_transformers_copies_a_memory_for_every_beam(pairs, name):
    pair, beams = pairs(name), 5
    values, named = pair.inputs(1, 9)
    held: list[int] = []

    def look(module, args, kwargs, output):
        layers = output.past_key_values.cross_attention_cache.layers
        held.append(sum(layer.keys.nbytes + layer.values.nbytes for layer in layers))

    hook = pair.theirs.get_decoder().register_forward_hook(look, with_kwargs=True)
    try:
        pair.theirs.generate(**named, num_beams=beams, max_new_tokens=4)
    finally:
        hook.remove()
    (memory,) = pair.memories(values)
    decoder = pair.ours.spec.decoder
    per_layer = decoder.cross_bytes(len(memory))
    assert max(held) == beams * per_layer
    state = pair.ours.start([[memory]])
    state.reorder([0] * beams)
    assert state.cross_bytes == per_layer
    assert decoder.cross_bytes(len(memory), form="absorbed") == memory.size_bytes


@pytest.mark.parametrize("name", tiny.TINY)
def test_predicted_self_cache_is_what_is_held(pairs, name):
    pair = pairs(name)
    attended = [[]] * 3
    if not pair.decoder_only:
        attended = [[m] for m in pair.memories(pair.inputs(3, 6)[0])]
    state = pair.ours.start(attended)
    assert state.size_bytes == 0
    pair.ours.step(torch.full((3, 32), 5), state)
    assert state.size_bytes == pair.ours.spec.decoder.self_cache_bytes(32, rows=3)
