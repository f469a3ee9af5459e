"""Grafts: bit by bit the language model at first, and then one model on every path."""

import pytest
import tiny
import torch
import transformers
from pairs import random_tokens
from safetensors.torch import load_file, save_file

import xattn
from xattn.errors import CorruptCheckpointError, UsageError
from xattn.models.compiled import obstacle
from xattn.tuning.graft import trainable
from xattn.tuning.saving import save

FAMILIES = ("llama", "qwen2", "qwen3", "llama3-tied")
PLACEMENTS = ("every:1", "every:2", "first:2", "sandwich:1", [1, 4])
KINDS = {
    "gated": {},
    "gated, before": {"before": True},
    "gated, with a feed-forward": {"own_feed_forward": True},
    "gated, layers of its own": {"own_layers": True, "qk_norm": True},
    "gated, shared": {"shared": True, "kv_heads": 1},
    "separate": {"kind": "separate"},
    "separate, with a feed-forward": {"kind": "separate", "own_feed_forward": True},
    "separate, layers of its own": {"kind": "separate", "own_layers": True},
    "merged": {"kind": "merged"},
}
SOURCE = list(range(5, 16))
PROMPT = [7, 21, 3, 60]


def grafted(lm, encoder, kind, **more):
    return xattn.graft(lm, encoder=encoder, **KINDS[kind], **more)


def logits_of(model, memories, tokens):
    state = model.network.start([memories] * len(tokens))
    with torch.no_grad():
        return model.network.score(tokens, state)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES[:3])
@pytest.mark.parametrize("placement", PLACEMENTS, ids=str)
def test_first_logits_are_the_language_models_own(family, placement, kind, lms, readers):
    lm = lms(family)
    model = grafted(lm, readers("t5"), kind, placement=placement)
    memory, tokens = model.encode(SOURCE), random_tokens(2, 9)
    alone = logits_of(lm, [], tokens)
    assert torch.equal(logits_of(model, [memory], tokens), alone)
    assert torch.equal(logits_of(model, [memory, memory], tokens), alone)
    if obstacle(model.network.decoder) is None:
        step = model.network.step(tokens, model.network.start([[memory]] * 2))
        assert torch.equal(step, lm.network.step(tokens, lm.network.start([[]] * 2)))


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_memory_a_graft_is_its_language_model(kind, lms, readers, opened):
    lm = lms("llama3-tied")
    model = opened(grafted(lm, readers("t5"), kind, placement="every:2", seed=3))
    tokens = random_tokens(2, 9)
    with_memory = logits_of(model, [model.encode(SOURCE)], tokens)
    without = logits_of(model, [], tokens)
    assert torch.equal(without, logits_of(lm, [], tokens))
    assert (with_memory - without).abs().max() > 0.1
    # One row reads, the other does not.
    state = model.network.start([[model.encode(SOURCE)], []])
    with torch.no_grad():
        mixed = model.network.score(tokens, state)
    torch.testing.assert_close(mixed[0], with_memory[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed[1], without[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["materialized", "absorbed", "absorbed-int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_and_torch_agree(kind, form, lms, readers, opened):
    if form.startswith("absorbed") and "qk_norm" in KINDS[kind]:
        pytest.skip("normed keys are not absorbed")
    model = opened(grafted(lms("llama"), readers("t5"), kind, placement="every:2"))
    network, tokens = model.network, random_tokens(3, 6)
    memories = [model.encode(SOURCE), model.encode(SOURCE[2:8])]
    found = []
    for kernels in (True, False):
        network.use_kernels = kernels
        state = network.start([memories, memories[:1], memories], form=form)
        steps = [network.step(tokens[:, :4], state)]
        steps += [network.step(tokens[:, t : t + 1], state) for t in (4, 5)]
        found.append(torch.stack(steps))
    torch.testing.assert_close(*found, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_trains_is_what_is_new(kind, lms, readers):
    lm = lms("qwen3")
    before = {name: weight.clone() for name, weight in lm.network.named_parameters()}
    model = grafted(lm, readers("t5"), kind, placement=[1, 4])
    names = trainable(model)
    of_lm = {id(weight) for weight in lm.network.parameters()}
    assert names == [
        name for name, weight in model.network.named_parameters() if id(weight) not in of_lm
    ]
    assert all(n.split(".")[2] in ("1", "4", "5") for n in names if n.startswith("decoder"))
    # Something of what is new learns from the first step on, and nothing of the model does.
    memory, tokens = model.encode(SOURCE), random_tokens(2, 9)
    state = model.network.start([[memory]] * 2)
    model.network.score(tokens, state).square().mean().backward()
    gradients = {
        name: weight.grad
        for name, weight in model.network.named_parameters()
        if weight.requires_grad
    }
    assert any(grad is not None and grad.abs().max() > 0 for grad in gradients.values())
    for name, weight in lm.network.named_parameters():
        assert weight.grad is None
        assert torch.equal(weight, before[name])


@pytest.mark.parametrize("encoder", ["t5", "itself"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_graft_survives_being_saved(kind, encoder, lms, readers, opened, tmp_path):
    lm = lms("llama")
    reads = encoder if encoder == "itself" else readers(encoder)
    model = opened(grafted(lm, reads, kind, placement="every:3", projector="mlp"))
    save(model, tmp_path / "graft")
    again = xattn.load(tmp_path / "graft")
    memory = model.encode(SOURCE)
    assert again.encode(SOURCE).key == memory.key
    answers = [one.generate(one.encode(SOURCE), PROMPT, max_new_tokens=8) for one in (model, again)]
    assert answers[0].tokens == answers[1].tokens
    assert answers[0].tokens != lm.generate(prompt=PROMPT, max_new_tokens=8).tokens
    # Trained on and saved in its own place.
    opened(model, seed=8)
    save(model, tmp_path / "graft")
    later = xattn.load(tmp_path / "graft").generate(memory, PROMPT, max_new_tokens=8)
    assert later.tokens == model.generate(memory, PROMPT, max_new_tokens=8).tokens
    assert sorted(p.name for p in tmp_path.iterdir()) == ["graft"]


@pytest.mark.parametrize("which", ["lm", "encoder"])
def test_a_graft_that_names_models_knows_them_again(which, tmp_path):
    for name, family in (("lm", "llama"), ("encoder", "t5")):
        tiny.make(family, tmp_path / name)
    model = xattn.graft(tmp_path / "lm", encoder=xattn.load(tmp_path / "encoder"), placement="all")
    save(model, tmp_path / "graft", copy=False)
    assert xattn.load(tmp_path / "graft").encode(SOURCE).key == model.encode(SOURCE).key
    weights = tmp_path / which / "model.safetensors"
    held = load_file(weights)
    name = sorted(held)[0]
    save_file(held | {name: held[name] + 1}, weights, {"format": "pt"})
    with pytest.raises(CorruptCheckpointError, match="not those that this graft was made with"):
        xattn.load(tmp_path / "graft")


def test_weights_of_the_model_that_changed_are_saved_too(lms, readers, tmp_path):
    lm = lms("qwen2")
    model = xattn.graft(lm, encoder=readers("t5"), placement="single")
    name = "decoder.layers.0.ffn.up.weight"
    changed = model.network.get_parameter(name).detach().clone() + 0.5
    module = model.network.get_submodule("decoder.layers.0.ffn.up")
    module.weight = torch.nn.Parameter(changed, requires_grad=False)
    try:
        save(model, tmp_path / "graft")
    finally:
        assert lm.network.get_parameter(name) is not module.weight
    assert torch.equal(xattn.load(tmp_path / "graft").network.get_parameter(name), changed)


def test_a_memory_is_the_encoders_own(lms, readers):
    """The key names the encoder that made it, so that stores share it with who else reads it."""
    encoder = readers("t5")
    model = xattn.graft(lms("llama"), encoder=encoder, placement="single")
    memory = model.encode(SOURCE)
    assert memory.key == encoder.encode(SOURCE).key
    assert torch.equal(memory.states_SD, encoder.encode(SOURCE).states_SD)
    itself = xattn.graft(lms("llama"), encoder="itself", placement="single")
    with pytest.raises(UsageError, match="another encoder"):
        itself.generate(memory, PROMPT)


def test_hidden_states_are_those_that_transformers_gives(lms, tmp_path):
    theirs = tiny.make("llama", tmp_path)
    model = xattn.graft(xattn.load(tmp_path), encoder="itself", placement="all")
    with torch.no_grad():
        wanted = theirs(torch.tensor([SOURCE]), output_hidden_states=True).hidden_states[-1][0]
    torch.testing.assert_close(model.encode(SOURCE).states_SD, wanted, atol=1e-5, rtol=1e-5)
    assert model.encode(SOURCE).key.preprocessing.startswith("states/1")


def test_lent_encoders_compute_in_their_own_numbers(lms):
    """Also while training computes in fewer bits around them."""
    texts = xattn.TextEncoder(bert(), word_tokenizer())
    for encoder, source in (("itself", SOURCE), (texts, "one two three")):
        model = xattn.graft(lms("llama"), encoder=encoder, placement="single")
        memory = model.encode(source)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            again = model.encode(source)
        assert torch.equal(again.states_SD, memory.states_SD)


def test_hidden_states_change_no_key_when_the_graft_learns(lms, opened):
    model = xattn.graft(lms("llama"), encoder="itself", placement="every:2")
    before = model.encode(SOURCE)
    after = opened(model).encode(SOURCE)
    assert after.key == before.key
    assert torch.equal(after.states_SD, before.states_SD)


@pytest.mark.parametrize("projector", ["none", "linear", "mlp", "resampler:4"])
def test_projectors_are_counted(projector, lms, readers):
    model = xattn.graft(
        lms("llama"), encoder=readers("t5"), placement="every:2", projector=projector
    )
    from xattn.counts import parameters, weight_bytes

    held = {id(p): p.numel() for p in model.network.parameters()}
    assert parameters(model.spec) == sum(held.values())
    assert weight_bytes(model.spec) == 4 * sum(held.values())
    state = model.network.start([[model.encode(SOURCE)]])
    positions = 4 if projector == "resampler:4" else len(SOURCE)
    assert state.cross_bytes == model.spec.decoder.cross_bytes(positions)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_bytes_are_counted(kind, lms, readers):
    from xattn.counts import parameters

    model = grafted(lms("qwen3"), readers("t5"), kind, placement="every:2")
    held = {id(p): p.numel() for p in model.network.parameters()}
    assert parameters(model.spec) == sum(held.values())
    state = model.network.start([[model.encode(SOURCE)]])
    assert state.cross_bytes == model.spec.decoder.cross_bytes(len(SOURCE))
    tokens = random_tokens(1, 5)
    model.network.step(tokens, state)
    state.cache.fit(5)
    assert state.size_bytes == model.spec.decoder.self_cache_bytes(5)


@pytest.mark.parametrize("kind", ["gated", "gated, shared", "merged"])
def test_beams_engines_and_several_memories_agree(kind, lms, readers, opened):
    model = opened(grafted(lms("llama"), readers("t5"), kind, placement="every:2"))
    memories = [model.encode(SOURCE), model.encode(SOURCE[:4])]
    settings = {"max_new_tokens": 8, "min_new_tokens": 8}
    alone = model.generate(memories, PROMPT, **settings)
    assert alone.tokens == model.generate(memories[::-1], PROMPT, **settings).tokens
    beams = model.generate(memories, PROMPT, num_beams=3, **settings)
    assert beams.score >= alone.score - 1e-4 or len(beams.tokens) == 8
    with xattn.Engine(model) as engine:
        tickets = [engine.submit(memories, PROMPT, **settings) for _ in range(3)]
        assert all(ticket.result().tokens == alone.tokens for ticket in tickets)
    pinned = model.pin_projection(memories[0])
    assert pinned > 0
    assert model.generate(memories, PROMPT, **settings).tokens == alone.tokens


def test_an_encoder_for_each_modality(lms, readers, opened, tmp_path):
    model = opened(
        xattn.graft(
            lms("llama"),
            encoder=[readers("t5"), readers("whisper")],
            placement="every:2",
            projector={"audio": "resampler:5"},
        )
    )
    samples = torch.randn(4000, generator=torch.Generator().manual_seed(1)).numpy() * 0.1
    audio = readers("whisper").encode(samples)
    text = model.encode(SOURCE)
    assert model.encode(samples).key == audio.key
    assert model.encode({"audio": samples}).key == audio.key
    both = model.generate([text, audio], PROMPT, max_new_tokens=6)
    assert both.tokens == model.generate([audio, text], PROMPT, max_new_tokens=6).tokens
    save(model, tmp_path / "graft")
    again = xattn.load(tmp_path / "graft")
    assert again.generate([text, audio], PROMPT, max_new_tokens=6).tokens == both.tokens
    with pytest.raises(xattn.SourceError, match="reads text and audio, but the source is image"):
        model.encode({"image": "a.png"})
    with pytest.raises(UsageError, match="may be of several modalities"):
        model.encode(b"bytes")


def test_a_picture_encoder_and_a_text_encoder_are_kept_with_the_graft(lms, opened, tmp_path):
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=16,
        patch_size=8,
    )
    processor = transformers.ViTImageProcessorPil(size={"height": 16, "width": 16})
    pictures = xattn.PictureEncoder(transformers.ViTModel(config).eval(), processor)
    texts = xattn.TextEncoder(bert(), word_tokenizer())
    model = opened(xattn.graft(lms("llama"), encoder=[pictures, texts], placement="every:2"))
    pixels = (torch.rand(20, 30, 3, generator=torch.Generator().manual_seed(2)) * 255).byte()
    sources = [pixels.numpy(), "one two two three"]
    memories = model.encode_batch(sources)
    assert [memory.modality for memory in memories] == ["image", "text"]
    save(model, tmp_path / "graft")
    again = xattn.load(tmp_path / "graft")
    assert [one.key for one in again.encode_batch(sources)] == [one.key for one in memories]
    wanted = model.generate(memories, PROMPT, max_new_tokens=6).tokens
    assert again.generate(again.encode_batch(sources), PROMPT, max_new_tokens=6).tokens == wanted


def test_a_text_encoder_gives_the_states_of_transformers():
    encoder, text = xattn.TextEncoder(bert(), word_tokenizer()), "three one  two"
    memory = encoder.encode(text)
    with torch.no_grad():
        ids = torch.tensor([[1, 5, 3, 4, 2]])
        assert torch.equal(memory.states_SD, encoder.module(input_ids=ids).last_hidden_state[0])
    assert [text[int(s.start) : int(s.end)] for s in memory.spans] == [
        "",
        "three",
        "one",
        "two",
        "",
    ]
    several = encoder.encode_prepared(encoder.prepare_batch(["one", text, "two two two"]))
    torch.testing.assert_close(several[1].states_SD, memory.states_SD, atol=1e-6, rtol=1e-6)
    for bad, said in (("  ", "empty"), ("one " * 40, "has 42 tokens")):
        with pytest.raises(xattn.InvalidSourceError, match=said):
            encoder.encode(bad)


def bert():
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=9,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
    )
    return transformers.BertModel(config).eval()


def word_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "one": 3, "two": 4, "three": 5}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tokenizer


def test_layers_of_its_own_are_mllamas(tmp_path):
    """Gated layers in the place of self-attention, as Llama 3.2 Vision has them."""
    torch.manual_seed(3)
    config = transformers.models.mllama.MllamaTextConfig(
        vocab_size=tiny.VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        cross_attention_layers=[1, 3],
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    config._attn_implementation = "eager"
    theirs = transformers.MllamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + 0.2 * noise if "norm" in name else noise * 0.3)
    tiny.make("llama", tmp_path, num_hidden_layers=3, rms_norm_eps=config.rms_norm_eps)
    model = xattn.graft(
        xattn.load(tmp_path),
        encoder="itself",
        placement=[1, 2],
        own_layers=True,
        qk_norm=True,
        projector="none",
    )
    assert model.spec.decoder.placement.layers == (False, True, False, True, False)
    weights = theirs.state_dict()
    with torch.no_grad():
        for name, weight in model.network.named_parameters():
            weight.copy_(weights[mllama_name(name)][: len(weight)])  # it embeds the picture's mark
    states_SD = torch.randn(1, 7, 32, generator=generator)
    memory = xattn.Memory(
        states_SD=states_SD[0], key=model.encode(SOURCE).key, spans=model.encode(SOURCE[:7]).spans
    )
    tokens = random_tokens(1, 6)
    with torch.no_grad():
        wanted = theirs(input_ids=tokens, cross_attention_states=states_SD).logits
    torch.testing.assert_close(logits_of(model, [memory], tokens), wanted, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        without = theirs(input_ids=tokens).logits
    torch.testing.assert_close(logits_of(model, [], tokens), without, atol=1e-4, rtol=1e-4)


def mllama_name(ours: str) -> str:
    """What transformers calls a weight of the graft above."""
    if not ours.startswith("decoder.layers."):
        return {
            "decoder.embed.weight": "model.embed_tokens.weight",
            "decoder.final_norm.weight": "model.norm.weight",
            "decoder.head.weight": "lm_head.weight",
        }[ours]
    _, _, layer, part, *rest = ours.split(".")
    parts = {
        "self_norm": "input_layernorm",
        "cross_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "cross_gate": "cross_attn_attn_gate",
        "ffn_gate": "cross_attn_mlp_gate",
        "ffn": "mlp",
    }
    inner = [
        f"{one}_proj" if one in ("q", "k", "v", "o", "gate", "up", "down") else one for one in rest
    ]
    return ".".join(["model.layers", layer, parts.get(part, part), *inner])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"placement": "every:9"}, "there are 6 layers"),
        ({"placement": [6]}, "names layer 6"),
        ({"placement": "none"}, "`placement` must be one layer or more"),
        ({"kind": "gatd"}, "`kind` must be one of separate, gated, merged"),
        ({"projector": "perceiver"}, "one of none, linear, mlp, or resampler:N"),
        ({"projector": "resampler:0"}, "one of none, linear, mlp, or resampler:N"),
        ({"projector": {"image": "mlp"}}, "for text, which the encoders read"),
        ({"projector": "none", "kind": "merged"}, "its encoder's states have width 20.*reads 32"),
        ({"kv_heads": 3}, "a divisor of the 4 heads"),
        ({"kind": "merged", "kv_heads": 1}, "left out for 'merged'"),
        ({"kind": "merged", "shared": True}, "`shared` must be False"),
        ({"own_layers": True, "before": True}, "`instead` must be False"),
    ],
)
def test_what_does_not_fit_is_refused(given, said, lms, readers, tmp_path):
    tiny.make("t5", tmp_path, d_model=20)
    with pytest.raises(UsageError, match=said):
        xattn.graft(lms("llama"), encoder=xattn.load(tmp_path), **given)


def test_models_that_cannot_take_or_give_are_refused(lms, readers, tmp_path):
    with pytest.raises(UsageError, match="`lm` must be a decoder-only model"):
        xattn.graft(readers("t5"), encoder="itself")
    with pytest.raises(UsageError, match="`lm` must be a decoder-only model, but"):
        xattn.graft(xattn.graft(lms("llama"), encoder="itself"), encoder="itself")
    with pytest.raises(UsageError, match="`encoder` must be a model with an encoder"):
        xattn.graft(lms("llama"), encoder=lms("qwen2"))
    with pytest.raises(UsageError, match="'itself', a model or its name"):
        xattn.graft(lms("llama"), encoder=5)
    with pytest.raises(UsageError, match="one for each modality"):
        xattn.graft(lms("llama"), encoder=[readers("t5"), "itself"])
    with pytest.raises(UsageError, match="`encoder` must be at least one"):
        xattn.graft(lms("llama"), encoder=[])
    tiny.make("llama", tmp_path)
    with pytest.raises(UsageError, match="not quantised"):
        xattn.graft(xattn.load(tmp_path, quantize="int8"), encoder="itself")
