"""The same requests otherwise: other forms, shared, made anew, and in transformers."""

from collections.abc import Iterator, Mapping
from typing import Any

from xattn.errors import AbsorptionError
from xattn.ledger.account import Alternative, Ledger
from xattn.ledger.elsewhere import in_transformers
from xattn.ledger.plan import plan
from xattn.spec import FORMS, ModelSpec

PROJECTED_ANEW = "states shared, projected for each request"
ENCODED_ANEW = "nothing kept, encoded for each request"


def alternatives(spec: ModelSpec, inputs: Mapping[str, Any], **settings: Any) -> list[Alternative]:
    """What was asked for beside its alternatives; ``settings`` are those of :func:`plan`."""
    asked = plan(spec, inputs, **settings)
    # int8 is a form of its own, and all forms are tried.
    settings = {**settings, "dtype": asked.setting.dtype}
    settings["weights_dtype"] = asked.setting.weights_dtype
    found = []
    for shared in (False, True) if asked.setting.batch > 1 else (asked.setting.shared,):
        for form in FORMS:
            try:
                ledger = plan(spec, inputs, **{**settings, "form": form, "shared": shared})
            except AbsorptionError:
                continue
            name = f"{form}, shared" if shared else form
            found.append(_alternative(name, ledger, chosen=ledger.setting == asked.setting))
    if spec.decoder.cross_attention is not None and asked.amounts:
        found += _anew(spec, inputs, settings)
    if spec.lent:  # transformers has no grafts
        return found
    return [*found, in_transformers(spec, asked.amounts, asked.setting)]


def _alternative(name: str, ledger: Ledger, *, chosen: bool = False) -> Alternative:
    return Alternative(
        name=name,
        input_bytes=ledger.memory_bytes,
        total_bytes=ledger.total_bytes,
        encode_flops=ledger.encode_flops,
        bytes_per_token=ledger.bytes_per_token,
        chosen=chosen,
    )


def _anew(
    spec: ModelSpec, inputs: Mapping[str, Any], settings: Mapping[str, Any]
) -> Iterator[Alternative]:
    """States that stay while each request has keys and values of its own; and what engines without
    memories do: each request encodes its inputs, and lets the states go once they are projected."""
    settings = {**settings, "form": "materialized"}
    own = plan(spec, inputs, **{**settings, "shared": False})
    once = plan(spec, inputs, **{**settings, "shared": True})
    if own.setting.batch > 1:
        projecting = own.encode_flops - own.sum("encode_flops", "states")
        yield _holding(
            PROJECTED_ANEW,
            own,
            once.of("states") + own.of("keys and values"),
            once.sum("encode_flops", "states") + projecting,
        )
    yield _holding(ENCODED_ANEW, own, own.of("keys and values"), own.encode_flops)


def _holding(name: str, ledger: Ledger, input_bytes: int, encode_flops: int) -> Alternative:
    """A ledger of which something else is held of the inputs."""
    return Alternative(
        name=name,
        input_bytes=input_bytes,
        total_bytes=ledger.total_bytes - ledger.memory_bytes + input_bytes,
        encode_flops=encode_flops,
        bytes_per_token=ledger.bytes_per_token,
    )
