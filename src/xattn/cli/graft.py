"""``xattn graft``: cross-attention onto a language model."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from xattn.cli.console import print_json, print_line
from xattn.cli.options import Json, Offline
from xattn.errors import UsageError
from xattn.placing import drawn, written
from xattn.readable import counted, readable_bytes, readable_count
from xattn.spec import PlacementKind

if TYPE_CHECKING:
    from xattn.model import Model

LM = Annotated[
    str, typer.Argument(metavar="LM", help="A decoder-only model, as xattn.load has it.")
]
EncoderNames = Annotated[
    list[str] | None,
    typer.Option(
        "--encoder",
        help="'itself' (LM's own hidden states), a model with an encoder, or a directory of a text "
        "model of transformers; one for each modality.",
    ),
]
PlacementText = Annotated[
    str,
    typer.Option(
        "--placement",
        help="Layers that read memories: every:N, every:N+S, alternate, first:N, last:N, middle:N, "
        "sandwich:N, single, all, 3,8,13, or mask:0101.",
    ),
]
Kind = Annotated[PlacementKind, typer.Option(help="How layers take in what they read.")]
ProjectorText = Annotated[
    str,
    typer.Option("--projector", help="none, linear, mlp, or resampler:N."),
]
Before = Annotated[
    bool, typer.Option("--before/--after", help="Cross-attention before self-attention.")
]
OwnLayers = Annotated[
    bool,
    typer.Option(
        "--own-layers/--same-layers",
        help="In layers of its own, in front of those that the placement names (Llama 3.2 Vision).",
    ),
]
OwnFeedForward = Annotated[
    bool, typer.Option("--feed-forward/--no-feed-forward", help="With a feed-forward of its own.")
]
Shared = Annotated[
    bool,
    typer.Option("--shared/--apart", help="All layers read the same keys and values."),
]
KvHeads = Annotated[
    int | None, typer.Option(min=1, help="Heads of keys and values; as self-attention, if unset.")
]
Seed = Annotated[int, typer.Option(min=0, help="Draws the new weights.")]
Into = Annotated[str, typer.Option("--output", "-o", metavar="DIR", help="Where it is written.")]
Copy = Annotated[
    bool,
    typer.Option(
        "--copy/--name", help="Copy the checkpoints into the directory, or name where they are."
    ),
]


def graft(
    lm: LM = "",
    encoder: EncoderNames = None,
    placement: PlacementText = "every:4",
    kind: Kind = "gated",
    projector: ProjectorText = "linear",
    before: Before = False,
    own_layers: OwnLayers = False,
    feed_forward: OwnFeedForward = False,
    shared: Shared = False,
    kv_heads: KvHeads = None,
    seed: Seed = 0,
    output: Into = "",
    copy: Copy = True,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Give LM cross-attention to what an encoder makes, and write it to a directory.

    The first logits are LM's own, bit by bit; `xattn train` opens the gates.
    """
    if not lm:
        raise UsageError("`LM` must be given: a decoder-only model (`xattn models` lists some).")
    if not output:
        raise UsageError("`--output` must be given: the directory that the graft is written to.")
    from xattn.tuning.encoders import encoder_of
    from xattn.tuning.graft import graft as make
    from xattn.tuning.graft import trainable
    from xattn.tuning.saving import save

    model = make(
        lm,
        encoder=[encoder_of(name, offline=offline) for name in encoder or ["itself"]],
        placement=placement,
        kind=kind,
        projector=projector,
        before=before,
        own_layers=own_layers,
        own_feed_forward=feed_forward,
        shared=shared,
        kv_heads=kv_heads,
        seed=seed,
        offline=offline,
    )
    save(model, output, copy=copy)
    told = _told(model, trainable(model)) | {"directory": output}
    if json:
        print_json(told)
        return
    placed = model.spec.decoder.placement
    print_line(f"layers    {drawn(placed.layers)}  {told['layers']} of {len(placed.layers)}")
    print_line(f"new       {readable_count(told['new'])} of {readable_count(told['parameters'])}")
    held = f"{readable_bytes(told['bytes_per_position'])} of keys and values"
    print_line(f"a position of a memory  {held}, {told['share_of_prompt']:.0%} of a prompt's")
    print_line(f"written   {output} ({counted(len(told['weights']), 'new weight')})")


def _told(model: "Model", names: list[str]) -> dict[str, Any]:
    decoder = model.spec.decoder
    own = decoder.self_cache_bytes(1)
    return {
        "placement": written(decoder.placement.layers),
        "kind": decoder.placement.kind,
        "layers": decoder.placement.count,
        "parameters": sum(one.numel() for one in model.network.parameters()),
        "new": sum(model.network.get_parameter(name).numel() for name in names),
        "weights": names,
        "bytes_per_position": decoder.cross_bytes(1),
        "share_of_prompt": decoder.cross_bytes(1) / own,
    }
