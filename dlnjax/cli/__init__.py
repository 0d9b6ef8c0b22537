"""The command `dlnjax`, one command a file.

typer and rich are imported by `main` only: `dlnjax.cli.data` does without them.
"""

import sys

import equinox as eqx


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
    for command in (compare.compare, reproduce.reproduce, sweep.sweep, info.info):
        app.command()(command)
    try:
        app()
    # Only errors of ours, or of the solvers, carry a message for users.
    except (CommandError, DataError, SpecError, eqx.EquinoxRuntimeError) as e:
        err.print(f"[bold red]Error:[/] {rich.markup.escape(str(e))}", soft_wrap=True)
        sys.exit(1)
