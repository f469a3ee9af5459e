"""Reading a CTranslate2 directory into a checkpoint.

A directory holds ``model.bin``, from binary version 6 on a ``config.json``, and vocabularies as
JSON lists or text files; faster-whisper adds ``tokenizer.json``. Quantised variables are
dequantised to float32 as they are loaded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from xattn.errors import (
    CheckpointError,
    CorruptCheckpointError,
    UnsupportedModelError,
    UsageError,
    is_whole,
)
from xattn.inputs.json_files import read_json_as
from xattn.inputs.tokenizers import load_tokenizer
from xattn.models.formats.ctranslate2.binary import ModelFile
from xattn.models.formats.ctranslate2.layout import read_audio_encoder, read_decoder, read_encoder
from xattn.models.formats.ctranslate2.reading import Reading
from xattn.models.weights import Checkpoint
from xattn.spec import DecoderSpec, EncoderSpec, ModelSpec, TokenSpec

_REVISIONS = {
    "WhisperSpec": (1, 3),
    "TransformerSpec": (2, 7),  # 1 has the variable names of OpenNMT-tf
    "TransformerDecoderSpec": (1, 8),
}
"""First and last revision that is read, by the name of the specification."""
_ZIP, _PICKLE = b"PK", b"\x80"


def matches(path: Path) -> bool:
    """Whether ``path`` is a CTranslate2 directory, or the ``model.bin`` in one.

    A pickle of that name is none, and where safetensors lie beside it, those are meant.
    """
    file = _model_file(path)
    if not file.is_file() or any(file.parent.glob("*.safetensors")):
        return False
    with file.open("rb") as opened:
        start = opened.read(2)
    return not start.startswith((_ZIP, _PICKLE))


def read(path: Path, origin: str) -> Checkpoint:
    """Read a CTranslate2 directory: a Whisper, an encoder-decoder or a decoder-only model.

    ``origin`` is what the user asked for. No weight is read yet.

    Raises :class:`CorruptCheckpointError` where a file is truncated or malformed,
    :class:`TensorError` where a variable is missing and :class:`UnsupportedModelError` where the
    model needs what xattn does not run.
    """
    file = ModelFile(_model_file(path))
    first, last = _REVISIONS.get(file.spec_name, (1, 0))
    if not first <= file.revision <= last:
        known = ", ".join(f"{name} {low} to {high}" for name, (low, high) in _REVISIONS.items())
        raise UnsupportedModelError(
            f"{file.path}: the model specification must be one of {known} (name and revision), but "
            f"is {file.spec_name!r} {file.revision} instead."
        )
    directory = file.path.parent
    config = _options_of_old_files(file)
    if (directory / "config.json").is_file():
        config |= read_json_as(dict, directory / "config.json")
    try:
        return _read_model(file, config, origin)
    except UsageError as error:
        # A spec that its own checks refuse was read from damaged numbers.
        raise CorruptCheckpointError(f"{file.path}: {error}") from error


def _model_file(path: Path) -> Path:
    return path if path.name == "model.bin" and path.is_file() else path / "model.bin"


def _read_model(file: ModelFile, config: dict[str, Any], origin: str) -> Checkpoint:
    directory = file.path.parent
    reading = Reading(file=file, epsilon=_epsilon(file, config))
    zero_row = bool(reading.number("decoder/start_from_zero_embedding", 0))
    encoder = _read_encoder(reading, zero_row=zero_row)
    decoder = read_decoder(reading, memory_width=encoder.width if encoder else 0, zero_row=zero_row)
    reading.require_all_read()
    vocabulary = _read_vocabulary(directory, decoder.vocab_size - zero_row)
    whisper = file.spec_name == "WhisperSpec"
    tokens = (
        _whisper_tokens(directory, vocabulary)
        if whisper
        else _tokens(directory, vocabulary, config)
    )
    if zero_row:
        # The converter dropped the padding token, whose embedding is zero; it is the start token.
        padding = decoder.vocab_size - 1
        tokens = replace(tokens, pad=padding, decoder_start=padding)
    family = _family(file, encoder, decoder, zero_row=zero_row)
    spec = ModelSpec(
        family=family,
        encoder=encoder,
        decoder=decoder,
        tokens=tokens,
        alignment_heads=_alignment_heads(directory, config, decoder) if whisper else (),
        shared_embeddings=_share_embeddings(reading),
    )
    return Checkpoint(
        spec=spec,
        weights=reading.weights,
        names=reading.names,
        tokenizer=load_tokenizer(directory, {"model_type": _tokenizer_kind(family, vocabulary)}),
        generation=_generation(directory, config, decoder.vocab_size, zero_row=zero_row),
        directory=directory,
        origin=origin,
    )


def _read_encoder(reading: Reading, *, zero_row: bool) -> EncoderSpec | None:
    if reading.file.spec_name == "WhisperSpec":
        return read_audio_encoder(reading)
    if reading.file.spec_name == "TransformerDecoderSpec":
        return None
    variables = reading.file.variables
    shared = variables.get("encoder/embeddings_0/weight") is variables.get(
        "decoder/embeddings/weight"
    )
    return read_encoder(reading, zero_row=zero_row and shared)


def _family(
    file: ModelFile, encoder: EncoderSpec | None, decoder: DecoderSpec, *, zero_row: bool
) -> str:
    """The family whose architecture this is; the file does not say which it was converted from."""
    if file.spec_name == "WhisperSpec":
        return "whisper"
    if encoder is None:
        return "llama" if decoder.position.kind == "rotary" else "transformer"
    if zero_row:
        return "marian"
    if decoder.position.kind == "relative":
        return "t5"
    if decoder.embedding_norm:
        return "mbart" if decoder.norm_place == "before" else "bart"
    return "m2m_100" if decoder.norm_place == "before" else "transformer"


def _tokenizer_kind(family: str, vocabulary: Sequence[str]) -> str:
    """Which of the tokenizers that share an architecture, told by their language tokens."""
    known = {"m2m_100": {"eng_Latn": "nllb"}, "mbart": {"af_ZA": "mbart50"}}
    for token, kind in known.get(family, {}).items():
        if token in vocabulary:
            return kind
    return family


def _epsilon(file: ModelFile, config: Mapping[str, Any]) -> float | None:
    value = config.get("layer_norm_epsilon")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise _bad_config(file.path.parent, "layer_norm_epsilon", "a small positive number", value)
    return float(value)


def _share_embeddings(reading: Reading) -> bool:
    encoder, decoder = (reading.weights.get(f"{s}.embed.weight") for s in ("encoder", "decoder"))
    return encoder is None or decoder is None or encoder.origin == decoder.origin


def _tokens(directory: Path, vocabulary: Sequence[str], config: Mapping[str, Any]) -> TokenSpec:
    ids = {token: number for number, token in reversed(list(enumerate(vocabulary)))}
    end, start = config.get("eos_token") or "</s>", config.get("decoder_start_token")
    eos = ids.get(str(end))
    if eos is None:
        raise _bad_config(directory, "eos_token", "a token of the vocabulary", end)
    if start is not None and str(start) not in ids:
        raise _bad_config(directory, "decoder_start_token", "a token of the vocabulary", start)
    return TokenSpec(
        eos=(eos,),
        bos=ids.get(str(config.get("bos_token", "<s>"))),
        pad=ids.get("<pad>"),
        decoder_start=None if start is None else ids.get(str(start)),
    )


def _whisper_tokens(directory: Path, vocabulary: Sequence[str]) -> TokenSpec:
    ids = {token: number for number, token in enumerate(vocabulary)}
    end, start = ids.get("<|endoftext|>"), ids.get("<|startoftranscript|>")
    if end is None or start is None:
        raise CorruptCheckpointError(
            f"{directory}: the vocabulary of a Whisper model must have <|endoftext|> and "
            "<|startoftranscript|>; download or convert the model again."
        )
    return TokenSpec(eos=(end,), pad=end, bos=end, decoder_start=start)


def _generation(
    directory: Path, config: Mapping[str, Any], vocab_size: int, *, zero_row: bool
) -> dict[str, Any]:
    """CTranslate2's decoding options under Hugging Face's names."""
    generation: dict[str, Any] = {}
    for theirs, ours in (
        ("suppress_ids", "suppress_tokens"),
        ("suppress_ids_begin", "begin_suppress_tokens"),
    ):
        ids = config.get(theirs)
        if ids is None:
            continue
        if not isinstance(ids, list) or not all(type(id) is int and id < vocab_size for id in ids):
            raise _bad_config(directory, theirs, f"a list of token ids below {vocab_size}", ids)
        generation[ours] = [id for id in ids if id >= 0]
    if zero_row:
        generation["suppress_tokens"] = [vocab_size - 1]
    return generation


def _alignment_heads(
    directory: Path, config: Mapping[str, Any], decoder: DecoderSpec
) -> tuple[tuple[int, int], ...]:
    pairs = config.get("alignment_heads") or []
    assert decoder.cross_attention is not None
    bounds = (decoder.layers, decoder.cross_attention.heads)
    fits = isinstance(pairs, list) and all(
        isinstance(pair, list)
        and len(pair) == 2
        and all(is_whole(n, 0) and n < most for n, most in zip(pair, bounds, strict=True))
        for pair in pairs
    )
    if not fits:
        raise _bad_config(
            directory, "alignment_heads", f"pairs (layer, head) below {bounds}", pairs
        )
    return tuple((layer, head) for layer, head in pairs)


def _bad_config(directory: Path, key: str, bound: str, value: object) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        f"{directory / 'config.json'}: {key!r} must be {bound}, but is {str(value)[:80]} instead."
    )


def _options_of_old_files(file: ModelFile) -> dict[str, Any]:
    """What a file before binary version 6 says in variables, under the names of config.json."""
    if file.version >= 6:
        return {}
    options: dict[str, Any] = {
        name: file.text(name)
        for name in ("unk_token", "bos_token", "eos_token")
        if name in file.variables
    }
    flags = {
        name: file.scalar(name) if name in file.variables else default
        for name, default in (("user_decoder_start_tokens", 0), ("with_target_bos", 1))
    }
    if not flags["user_decoder_start_tokens"]:
        bos, eos = options.get("bos_token", "<s>"), options.get("eos_token", "</s>")
        options["decoder_start_token"] = bos if flags["with_target_bos"] else eos
    return options


def _read_vocabulary(directory: Path, size: int) -> list[str]:
    """The decoder's tokens in the order of their ids, cut to the ``size`` of the embeddings."""
    for stem in ("vocabulary", "shared_vocabulary", "target_vocabulary"):
        listed, lines = directory / f"{stem}.json", directory / f"{stem}.txt"
        if listed.is_file():
            tokens = read_json_as(list, listed)[:size]
            if not all(isinstance(token, str) for token in tokens):
                raise CorruptCheckpointError(f"{listed}: must hold a list of strings.")
            return tokens
        if lines.is_file():
            return _split_lines(lines)[:size]
    raise CheckpointError(
        f"{directory}: no vocabulary found; looked for vocabulary, shared_vocabulary and "
        "target_vocabulary as .json and .txt."
    )


def _split_lines(path: Path) -> list[str]:
    """Lines ended by newlines alone: tokens may hold what Python takes for other line ends."""
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptCheckpointError(f"{path}: is not UTF-8 at byte {error.start}.") from error
    tokens = text.removesuffix("\n").split("\n")
    if all(token.endswith("\r") for token in tokens):
        return [token[:-1] for token in tokens]
    return tokens
