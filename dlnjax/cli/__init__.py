"""The command `dlnjax`, one command a file.

A command file imports what JAX needs where it computes, so that `--help` and bad arguments are
answered at once. typer and rich are imported by `main` only: `dlnjax.cli.data` does without them.
"""

import sys
from typing import Annotated


def main() -> None:
    """Run the command; turn the errors that users can act on into one line."""
    try:
        import rich.markup
        import typer
    except ModuleNotFoundError as e:
        raise SystemExit(
            f"The command line needs {e.name!r}: run `pip install 'dlnjax[cli]'`."
        ) from None

    from .._sweep.toml import SpecError
    from .._version import __version__
    from . import compare, info, reproduce, sweep
    from .console import CommandError, err
    from .data import DataError

    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        help="Diagonal linear networks and the lasso regularisation path.",
    )

    def print_version(asked: bool) -> bool:
        if asked:
            print(f"dlnjax {__version__}")
            raise typer.Exit
        return asked

    option = typer.Option("--version", help="Print it.", callback=print_version, is_eager=True)

    @app.callback()
    def _main(version: Annotated[bool, option] = False) -> None: ...

    for command in (compare.compare, reproduce.reproduce, sweep.sweep, info.info):
        app.command()(command)
    for_users: tuple[type[Exception], ...] = (CommandError, DataError, SpecError)
    try:
        app()
    # Only errors of ours, or of the solvers, carry a message for users.
    except Exception as e:
        if equinox := sys.modules.get("equinox"):
            for_users += (equinox.EquinoxRuntimeError,)
        if not isinstance(e, for_users):
            raise
        err.print(f"[bold red]Error:[/] {rich.markup.escape(str(e))}", soft_wrap=True)
        sys.exit(1)
