"""``--help``: options under headings, and where their defaults come from."""

from typing import Any

from typer.core import TyperCommand, TyperGroup

from xattn.cli.settings import settings_of

DEFAULTS = (
    "Defaults come from XATTN_* variables, then from the nearest xattn.toml upward, then from "
    "~/.config/xattn/config.toml; 'xattn config show' prints each and where it came from."
)
_ARGUMENTS, _OPTIONS = "Arguments", "Options"


class Command(TyperCommand):
    """A command with such a help."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options, one section for each panel."""
        panels: dict[str, list[tuple[str, str]]] = {_ARGUMENTS: [], _OPTIONS: []}
        settings = settings_of(ctx)
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            usual = _ARGUMENTS if parameter.param_type_name == "argument" else _OPTIONS
            panel = getattr(parameter, "rich_help_panel", None) or usual
            setting = settings.get(parameter.name or "")
            source = f" [from {setting.source}]" if setting else ""
            panels.setdefault(panel, []).append((record[0], record[1] + source))
        for title, records in panels.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Say where defaults come from."""
        formatter.write_paragraph()
        formatter.write_text(DEFAULTS)


class DefaultGroup(TyperGroup):
    """A group whose first command need not be named: ``plan T5`` is ``plan model T5``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the first command in front of what begins with none."""
        if not args or args[0] not in self.commands:
            args = [next(iter(self.commands)), *args]
        return super().parse_args(ctx, args)
