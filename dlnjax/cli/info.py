"""`dlnjax info`: versions and devices; the main solvers once, against stored values."""

from typing import Annotated

import typer

from .._version import provenance
from .console import Float32, err, out, start_jax


def info(
    check: Annotated[
        bool, typer.Option("--check", help="Run the main solvers once, against stored values.")
    ] = False,
    float32: Float32 = False,
) -> None:
    """Versions, devices, precision; with --check, whether the solvers work here."""
    import jax

    state = "on" if jax.config.read("jax_enable_x64") else "off: JAX computes in float32"
    start_jax(float32)
    for name, number in provenance()["versions"].items():
        out.print(f"{name:9s} {number}")
    for device in jax.devices():
        out.print(f"device    {device.platform} {device.id}: {device.device_kind}")
    out.print(
        "precision float32 in this command"
        if float32
        else "precision float64 in this command (--float32 opts out)"
    )
    out.print(f"          in Python, JAX's own setting: jax_enable_x64 is {state}")
    if not check:
        return
    from .checks import run_checks

    holds = True
    for one in run_checks():
        mark = "[green]ok[/]   " if one.passes else "[red]wrong[/]"
        out.print(f"{mark} {one.solver:20s} off by {one.difference:.1e}, {one.seconds:4.1f} s")
        holds = holds and one.passes
    if not holds:
        err.print("These values are wrong: please report them with all of the above.")
        raise typer.Exit(1)
