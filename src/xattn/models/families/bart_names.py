"""Tensor names of the BART tree, which Whisper shares."""


def stack_names(stack: str) -> list[tuple[str, str | tuple[str, ...]]]:
    """Our names and theirs for one stack, ``encoder`` or ``decoder``."""
    pairs: list[tuple[str, str | tuple[str, ...]]] = [
        (f"{stack}.positions.weight", f"model.{stack}.embed_positions.weight"),
    ]
    layer_norms = {"self_norm": "self_attn_layer_norm", "ffn_norm": "final_layer_norm"}
    attentions = {"self_attn": "self_attn"}
    if stack == "decoder":
        layer_norms["cross_norm"] = "encoder_attn_layer_norm"
        attentions["cross_attn"] = "encoder_attn"
    projections = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
    for kind in ("weight", "bias"):
        pairs += [
            (f"{stack}.embed_norm.{kind}", f"model.{stack}.layernorm_embedding.{kind}"),
            (f"{stack}.final_norm.{kind}", f"model.{stack}.layer_norm.{kind}"),
        ]
        ours, theirs = f"{stack}.layers.{{i}}", f"model.{stack}.layers.{{i}}"
        pairs += [(f"{ours}.{a}.{kind}", f"{theirs}.{b}.{kind}") for a, b in layer_norms.items()]
        pairs += [
            (f"{ours}.{a}.{p}.{kind}", f"{theirs}.{b}.{q}.{kind}")
            for a, b in attentions.items()
            for p, q in projections.items()
        ]
        pairs += [
            (f"{ours}.ffn.up.{kind}", f"{theirs}.fc1.{kind}"),
            (f"{ours}.ffn.down.{kind}", f"{theirs}.fc2.{kind}"),
        ]
    return pairs
