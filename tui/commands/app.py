"""All commands under one name, as the command line shows them."""

import sys
from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from tui.commands.ask import ask
from tui.commands.bench import bench_app
from tui.commands.calibrate import calibrate
from tui.commands.chat import chat
from tui.commands.doctor import doctor
from tui.commands.plan import plan
from tui.commands.prepare import prepare
from tui.commands.run import compare, run
from tui.commands.score import score
from tui.commands.serve import serve
from tui.commands.unpack import unpack


class _Command(TyperCommand):
    """A command whose `--help` shows switches as they are typed, without `<bool>`, and wraps paragraphs once.

    Its usage errors name it.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Return what is left of the arguments; an option without its value is told without its command else."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if getattr(error, "ctx", ctx) is None:
                error.ctx = ctx  # type: ignore[attr-defined]
            raise

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help, whose lines would be broken where those of the source end, and again by the terminal."""
        paragraphs = (self.help or "").split("\n\n")
        self.help = "\n\n".join(" ".join(each.split("\n")) for each in paragraphs)
        super().format_help(ctx, formatter)

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options and arguments, switches without a name for a value."""
        parameters: list[Any] = super().get_params(ctx)
        for parameter in parameters:
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""
        return parameters


app = typer.Typer(
    name="overstory",
    help="Run a language model that does not fit the device: streamed layers, a tree of drafts, exact text.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(bench_app, name="bench")
for _command in (run, ask, score, compare, chat, serve, calibrate, doctor, prepare, unpack, plan):
    app.command()(_command)
for _registered in (*app.registered_commands, *bench_app.registered_commands):
    _registered.cls = _Command


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        try:
            version = metadata.version("overstory")
        except metadata.PackageNotFoundError:
            version = "(not installed)"
        sys.stdout.write(f"overstory {version}\n")
        raise typer.Exit


@app.callback()
def overstory(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Run a language model that does not fit the device: streamed layers, a tree of drafts, exact text."""
