"""The command tree: ``xattn COMMAND``."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from xattn import __version__
from xattn.cli import (
    ask,
    bench,
    cache,
    config,
    doctor,
    encode,
    evaluate,
    generate,
    graft,
    index,
    models,
    placement,
    plan,
    plan_train,
    profile,
    sweep,
    train,
    transcribe,
    translate,
)
from xattn.cli.console import print_line, print_note
from xattn.cli.failures import BAD_USAGE
from xattn.cli.help import Command, DefaultGroup
from xattn.cli.settings import (
    collect,
    find_files,
    known_settings,
    leaves,
    read_file,
    unknown_variables,
)
from xattn.errors import UsageError

HELP_FLAGS = ["-h", "--help"]


def build() -> Any:
    """The root command."""
    app = typer.Typer(
        help="Cross-attention models: encode once, attend everywhere.",
        context_settings={"help_option_names": HELP_FLAGS},
        rich_markup_mode=None,
    )
    app.callback(invoke_without_command=True)(root)
    for command in (
        transcribe.transcribe,
        translate.translate,
        generate.generate,
        encode.encode,
        index.index,
        ask.ask,
        graft.graft,
        train.train,
        train.dpo,
        models.models,
        doctor.doctor,
        profile.profile,
        bench.bench,
    ):
        app.command(cls=Command)(command)
    plan_app = typer.Typer(help="What will it cost?", cls=DefaultGroup)
    plan_app.command("model", cls=Command)(plan.plan_model)
    plan_app.command("train", cls=Command)(plan_train.plan_train)
    app.add_typer(plan_app, name="plan")
    placement_app = typer.Typer(
        help="Which layers cross-attend, and which need to?", no_args_is_help=True
    )
    placement_app.command(cls=Command)(placement.show)
    placement_app.command(cls=Command)(placement.probe)
    app.add_typer(placement_app, name="placement")
    sweep_app = typer.Typer(help="Which placement pays?", cls=DefaultGroup)
    sweep_app.command(cls=Command)(sweep.run)
    sweep_app.command(cls=Command)(sweep.report)
    app.add_typer(sweep_app, name="sweep")
    eval_app = typer.Typer(help="How good are the answers?", no_args_is_help=True)
    eval_app.command(cls=Command)(evaluate.qa)
    app.add_typer(eval_app, name="eval")
    config_app = typer.Typer(help="Where settings come from.", no_args_is_help=True)
    config_app.command(cls=Command)(config.show)
    app.add_typer(config_app, name="config")
    cache_app = typer.Typer(
        help="What has been encoded: look at it, tend it, carry it.", no_args_is_help=True
    )
    for command in (
        cache.ls,
        cache.stats,
        cache.verify,
        cache.gc,
        cache.pin,
        cache.export,
        cache.import_,
        cache.clear,
    ):
        cache_app.command(command.__name__.rstrip("_"), cls=Command)(command)
    app.add_typer(cache_app, name="cache")
    return typer.main.get_command(app)


def root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Cross-attention models: encode once, attend everywhere."""
    if version:
        print_line(f"xattn {__version__}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        print_line(ctx.get_help())
        raise typer.Exit(BAD_USAGE)
    known = known_settings(ctx.command)
    try:
        files = [read_file(path, known) for path in find_files(Path.cwd(), os.environ)]
    except UsageError:
        if set(HELP_FLAGS) & set(ctx.obj):
            return  # a file with a mistake must not stand between a user and the right name
        raise
    found = collect(known, files, os.environ)
    for note in unknown_variables(known, os.environ):
        print_note(note)
    ctx.obj = found
    defaults: dict[str, Any] = {}
    for path, _ in leaves(ctx.command):
        of_group = defaults
        for name in path:
            of_group = of_group.setdefault(name, {})
        settings = found.get("_".join(path), {})
        of_group.update({name: setting.value for name, setting in settings.items()})
    ctx.default_map = defaults
