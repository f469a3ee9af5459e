"""Reading a Hugging Face config: what families have in common."""

from collections.abc import Mapping
from typing import Any

from xattn.errors import CorruptCheckpointError, UnsupportedModelError
from xattn.spec import TokenSpec

Config = Mapping[str, Any]


def need(config: Config, name: str) -> Any:
    """The value of ``name``; :class:`CorruptCheckpointError` if the config lacks it."""
    if config.get(name) is None:
        raise CorruptCheckpointError(f"config.json: {name!r} is missing.")
    return config[name]


def refuse(config: Config, name: str, *supported: Any) -> None:
    """Raise :class:`UnsupportedModelError` if ``name`` is set to something not in ``supported``."""
    value = config.get(name)
    if value is not None and value not in supported:
        raise UnsupportedModelError(
            f"config.json: {name!r} must be one of {supported}, but is {value!r} instead; "
            "xattn does not run this variant."
        )


def token_spec(config: Config, generation: Config, *, decoder_start: int | None) -> TokenSpec:
    """Special tokens; the generation config wins over the config, as in transformers."""

    def find(name: str) -> Any:
        return generation.get(name) if generation.get(name) is not None else config.get(name)

    eos = find("eos_token_id")
    return TokenSpec(
        eos=tuple(eos) if isinstance(eos, list | tuple) else () if eos is None else (int(eos),),
        pad=find("pad_token_id"),
        bos=find("bos_token_id"),
        decoder_start=decoder_start,
    )


def decoder_start(config: Config, generation: Config) -> int:
    """First decoder token of an encoder-decoder: its own setting, else the one for beginnings."""
    for source in (generation, config):
        if source.get("decoder_start_token_id") is not None:
            return int(source["decoder_start_token_id"])
    for source in (generation, config):
        if source.get("bos_token_id") is not None:
            return int(source["bos_token_id"])
    raise CorruptCheckpointError(
        "config.json: neither 'decoder_start_token_id' nor 'bos_token_id' is given."
    )
