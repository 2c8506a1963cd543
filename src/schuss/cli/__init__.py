"""The `schuss` command: arguments in, tables out. Nothing is computed here; each command has a file of its name."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from schuss.errors import closest

COMMANDS = ("bench", "check", "diagnose", "doctor", "landscape", "list", "race", "range", "schedule")


def main() -> None:
    """Run the `schuss` command. An interrupt that no command answers, as while it is imported, ends in a line too."""
    try:
        _run()
    except KeyboardInterrupt:
        print("Stopped.")
        sys.exit(130)


def _run() -> None:
    try:
        import click
    except ImportError:
        sys.exit("The schuss command needs the lab extra. Try: pip install 'schuss[lab]'")

    class Commands(click.Group):
        """Imports a command only when it is called, so that `schuss --help` is instant."""

        def list_commands(self, ctx: click.Context) -> list[str]:
            return sorted(COMMANDS)

        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
            if cmd_name not in COMMANDS:
                return None
            return importlib.import_module(f"schuss.cli.{cmd_name}").command

        def invoke(self, ctx: click.Context) -> Any:
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt:  # of which click would say "Aborted!", and exit as after an error
                click.echo("Stopped.")
                ctx.exit(130)

        def resolve_command(
            self, ctx: click.Context, args: list[str]
        ) -> tuple[str | None, click.Command | None, list[str]]:
            try:
                return super().resolve_command(ctx, args)
            except click.UsageError as error:
                near = closest(args[0], COMMANDS)
                known = f"The commands are {', '.join(COMMANDS)}."
                raise click.UsageError(
                    f"{error.message} {f'Did you mean {near}?' if near else known}", ctx
                ) from None

    @click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
    @click.version_option(package_name="schuss")
    def schuss() -> None:
        """Optimizers compiled from their formulas, and a lab that compares them fairly."""

    schuss(prog_name="schuss")
