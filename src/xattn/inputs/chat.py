"""Chat templates: a checkpoint's Jinja template, run in a sandbox.

Templates come from the network with the checkpoint, so they see plain data only, cannot change it,
and cannot reach Python's internals (https://jinja.palletsprojects.com/en/stable/sandbox/).
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from xattn.errors import PromptError, UnsupportedModelError, UsageError, require


def render_chat(
    template: str | None,
    messages: Sequence[Mapping[str, str]],
    special_tokens: Mapping[str, str],
) -> str:
    """The prompt of a conversation, up to and including the header of the model's own turn.

    ``special_tokens``: names that templates use (``bos_token`` …) -> token. Raises
    :class:`UsageError` where the checkpoint has no template or the template refuses the messages.
    """
    if template is None:
        raise UsageError(
            "this checkpoint has no chat template; pass the prompt as text instead of messages."
        )
    if not messages:
        raise PromptError("`messages` must hold at least one message, but is empty instead.")
    compiled = _compile(template)
    try:
        prompt: str = compiled.render(
            messages=[_checked(place, message) for place, message in enumerate(messages)],
            tools=None,
            documents=None,
            add_generation_prompt=True,
            **special_tokens,
        )
    except Exception as error:  # a template may fail in any way that its author thought of
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"the checkpoint's chat template refuses these messages: {error}"
        ) from error
    return prompt


def _checked(place: int, message: Mapping[str, str]) -> dict[str, str]:
    require(isinstance(message, Mapping), f"messages[{place}]", "a dict", message)
    require(
        isinstance(message.get("role"), str),
        f"messages[{place}]['role']",
        "a string such as 'user'",
        message.get("role"),
    )
    # A key without a value is an absent key: templates would print the word None. The rest becomes
    # plain data, so that no template can call a method of an object in a message.
    try:
        plain = json.loads(json.dumps(dict(message)))
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"`messages[{place}]` must hold strings, numbers, lists and dicts only ({error})."
        ) from error
    return {key: value for key, value in plain.items() if value is not None}


@lru_cache(maxsize=16)
def _compile(template: str) -> Any:
    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation_blocks(), loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise UnsupportedModelError(
            f"the checkpoint's chat template is not valid Jinja: {error}"
        ) from error


def _generation_blocks() -> Any:
    """``{% generation %}`` marks the model's own words for training; here it is a plain block."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class GenerationBlocks(Extension):
        tags: set[str] = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> list[nodes.Node]:
            next(parser.stream)
            body: list[nodes.Node] = parser.parse_statements(
                ("name:endgeneration",), drop_needle=True
            )
            return body

    return GenerationBlocks


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which a prompt is not.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> str:
    raise UsageError(f"the checkpoint's chat template refuses these messages: {message}")


def _now(layout: str) -> str:
    return datetime.now().strftime(layout)
