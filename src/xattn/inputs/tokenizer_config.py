"""What the small JSON files beside a vocabulary say: special tokens, languages, chat template."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xattn.errors import CorruptCheckpointError
from xattn.inputs.json_files import read_json_as

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True, kw_only=True)
class Added:
    """A token that is found in the text before the text is cut into pieces."""

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = True


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """tokenizer_config.json, special_tokens_map.json and added_tokens.json, taken together."""

    named: Mapping[str, Added] = field(default_factory=dict)
    """``bos_token`` … ``mask_token``, those that the files name."""
    extra: Sequence[Added] = ()
    """Further special tokens (``additional_special_tokens``, ``extra_special_tokens``)."""
    added: Mapping[int, Added] = field(default_factory=dict)
    """Added tokens whose ids the files fix."""
    chat_template: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    """tokenizer_config.json as it stands."""

    @property
    def content(self) -> bytes:
        """Bytes that differ wherever the small files say something else."""
        marks = repr((sorted(self.named.items()), self.extra, sorted(self.added.items())))
        values = json.dumps(self.values, sort_keys=True)
        return json.dumps([marks, values, self.chat_template]).encode()

    @property
    def class_name(self) -> str:
        """The transformers class, without its ``Fast``."""
        return str(self.values.get("tokenizer_class") or "").removesuffix("Fast")

    @property
    def source_language(self) -> str | None:
        """``src_lang``, if the files name one."""
        language = self.values.get("src_lang")
        return str(language) if language else None

    @property
    def special_tokens(self) -> dict[str, str]:
        """Names that a chat template may use -> token."""
        return {name: token.content for name, token in self.named.items()}

    def flag(self, name: str, default: bool = False) -> bool:
        """A switch of tokenizer_config.json; null counts as absent."""
        value = self.values.get(name)
        return default if value is None else bool(value)

    def token(self, name: str, default: str | None = None) -> str | None:
        """The named special token, or ``default``."""
        return self.named[name].content if name in self.named else default


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or an empty one where there is no such file."""
    if not path.is_file():
        return {}
    return read_json_as(dict, path)


def read_tokenizer_config(directory: Path) -> TokenizerConfig:
    """Read the small files of a checkpoint directory; each of them may be absent.

    Raises :class:`CorruptCheckpointError` for a file that does not hold what it should.
    """
    try:
        return _read(directory)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CorruptCheckpointError(
            f"a special token in {directory / 'tokenizer_config.json'}, special_tokens_map.json or "
            f"added_tokens.json is malformed ({error!r}); fetch the files again."
        ) from error


def _read(directory: Path) -> TokenizerConfig:
    values = read_object(directory / "tokenizer_config.json")
    merged = dict(values)
    added = {
        int(key): _added(token) for key, token in values.get("added_tokens_decoder", {}).items()
    }
    if not added:  # newer files say everything in tokenizer_config.json
        merged.update(read_object(directory / "special_tokens_map.json"))
    named = {name: _added(merged[name]) for name in NAMED if merged.get(name)}
    extra = [_added(token) for token in _extra_tokens(merged)]
    if not added:
        special = {token.content for token in [*named.values(), *extra]}
        for content, place in read_object(directory / "added_tokens.json").items():
            is_special = content in special
            added[int(place)] = Added(
                content=content, normalized=not is_special, special=is_special
            )
    by_content = {token.content: token for token in added.values()}
    return TokenizerConfig(
        named={name: by_content.get(token.content, token) for name, token in named.items()},
        extra=[by_content.get(token.content, token) for token in extra],
        added=added,
        chat_template=_chat_template(directory, values),
        values=values,
    )


def _added(token: Any) -> Added:
    if isinstance(token, str):
        return Added(content=token)
    flags = {name: bool(token[name]) for name in _FLAGS if name in token}
    return Added(content=str(token["content"]), **flags)


def _extra_tokens(values: Mapping[str, Any]) -> list[Any]:
    tokens: list[Any] = []
    for name in ("additional_special_tokens", "extra_special_tokens"):
        found = values.get(name) or []
        tokens += list(found.values()) if isinstance(found, Mapping) else list(found)
    tokens += [
        value
        for name, value in values.items()
        if name.endswith("_token") and name not in NAMED and isinstance(value, str | dict)
    ]
    return tokens


def _chat_template(directory: Path, values: Mapping[str, Any]) -> str | None:
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = values.get("chat_template")
    if isinstance(template, list):
        template = {str(entry["name"]): entry["template"] for entry in template}
    if isinstance(template, dict):
        template = template.get("default")
    return None if template is None else str(template)
