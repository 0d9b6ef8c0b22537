"""Step size and noise: where do GD and SGD end, beside gradient flow?

Question. Steps of finite size and random batches move the end point away from that of the flow. How
far, is it closer to a sparse truth, and is it predicted?

Method. Noiseless regression with 15 rows, 30 columns, 3 of them active; `UV` from `ε = 1e-2`,
trained by `train` with `optax.sgd` at four step sizes with all rows, batches of 4, and single rows.
Reported, relative to `‖x*‖`: the distance of the end point to that of the flow, `end_point`; to
the truth; and to the prediction, the end of the flow from `effective_initialization` (Even et al.,
arXiv 2302.08982), which uses the steps taken but not where they led.

Answer (`python examples/discrete_steps.py`, 20 problems, mean ± standard error; 1 min of CPU). The
distance to the flow's end is proportional to the step size, and 11 to 14 times larger with single
rows than with all. It is away from the truth for GD, towards it for SGD. The prediction is right to
0.0014 or better (with all rows to rounding, once the loss is there).

    batch     step  to flow          closer to truth   off prediction, largest
    all rows  0.02  0.0010 ± 0.0001  -0.0004 ± 0.0002  1e-03
    all rows  0.16  0.0076 ± 0.0008  -0.0028 ± 0.0013  4e-12
    4 rows    0.16  0.0224 ± 0.0034   0.0179 ± 0.0036  2e-10
    1 row     0.02  0.0113 ± 0.0015   0.0100 ± 0.0016  1e-03
    1 row     0.16  0.1063 ± 0.0133   0.0950 ± 0.0145  7e-04  (0.242 ± 0.039 from it is the flow)

"""

from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray
from matplotlib.figure import Figure

import dlnjax as dln
from _report import mean_and_error, options

N, D, ACTIVE, EPS = 15, 30, 3, 1e-2
STEP_SIZES = (0.02, 0.04, 0.08, 0.16)
BATCHES = {"all rows": None, "4 rows": 4, "1 row": 1}


class Ends(NamedTuple):
    """Distances over `‖x*‖`, for each seed and step size; NaN where a run diverged."""

    to_flow: Float[Array, "K S"]
    to_prediction: Float[Array, "K S"]
    to_truth: Float[Array, "K S"]
    flow_to_truth: Float[Array, "K S"]

    @property
    def closer(self) -> Float[Array, "K S"]:
        """By how much the end point is closer to the truth than that of the flow."""
        return self.flow_to_truth - self.to_truth


@eqx.filter_jit
def end_points(
    keys: PRNGKeyArray, step_sizes: Float[Array, " S"], batch_size: int | None, steps: int
) -> Ends:
    """One problem and one run for each key, the same for all step sizes."""
    network = dln.UV(jnp.ones(D), jnp.zeros(D))

    def one(key, step_size):
        keys = jr.split(key, 3)
        X = jr.normal(keys[0], (N, D)) / N**0.5
        truth = jnp.where(jnp.arange(D) < ACTIVE, jr.rademacher(keys[1], (D,), X.dtype), 0)
        problem = dln.LeastSquares(X, X @ truth)
        run = dln.train(
            network,
            problem,
            optax.sgd(step_size),
            eps=EPS,
            steps=[steps],
            batch_size=batch_size,
            key=keys[2],
            throw=False,
        )
        solved = dln.effective_initialization(problem, run)
        networks = jax.tree.map(lambda *v: jnp.stack(v), network, solved.network)
        end = lambda network: dln.end_point(network, problem, eps=EPS, throw=False).x
        flow, prediction = jax.vmap(end)(networks)
        x = run.x[-1]
        distance = lambda a, b: jnp.linalg.norm(a - b) / jnp.linalg.norm(truth)
        return Ends(
            distance(x, flow), distance(x, prediction), distance(x, truth), distance(flow, truth)
        )

    over_sizes = jax.vmap(one, in_axes=(None, 0))
    return jax.vmap(over_sizes, in_axes=(0, None))(keys, step_sizes)


def study(seeds: int = 20, steps: int = 50_000) -> dict[str, Ends]:
    """The end points for each of `BATCHES`, of the same problems."""
    keys, sizes = jr.split(jr.key(0), seeds), jnp.array(STEP_SIZES)
    ends = lambda rows: jax.tree.map(np.asarray, end_points(keys, sizes, rows, steps))
    return {name: ends(rows) for name, rows in BATCHES.items()}


def table(study: dict[str, Ends]) -> str:
    lines = ["batch     step           to flow   closer to truth  off prediction  lost"]
    for name, ends in study.items():
        for i, size in enumerate(STEP_SIZES):
            ok = np.isfinite(ends.to_flow[:, i])
            flow, truth = (mean_and_error(v[ok, i]) for v in (ends.to_flow, ends.closer))
            off, lost = np.max(ends.to_prediction[ok, i], initial=0), np.sum(~ok)
            lines.append(f"{name:9s} {size:.2f} {flow:>17s} {truth:>17s} {off:15.0e} {lost:5d}")
    flow_to_truth = study["all rows"].flow_to_truth[:, 0]
    return "\n".join([*lines, f"the flow is {mean_and_error(flow_to_truth)} from the truth"])


def plot(study: dict[str, Ends]) -> Figure:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, ends in study.items():
        for ax, values in ((left, ends.to_flow), (right, ends.closer)):
            middle = np.nanmean(values, axis=0)
            error = np.nanstd(values, axis=0, ddof=1) / len(values) ** 0.5
            ax.errorbar(STEP_SIZES, middle, error, marker="o", capsize=3, label=name)
    size = np.array(STEP_SIZES)
    first = study["all rows"].to_flow[:, 0].mean()
    lines = left.plot(size, first * size / size[0], ":", color="#222222", label="∝ step size")
    left.legend(handles=lines, loc="lower right")
    right.axhline(0, color="#222222", linewidth=0.8)
    right.legend(title="each step sees")
    left.set(title="From the end of the flow", ylabel=r"distance / $|x^\star|$", yscale="log")
    right.set(title="Closer to the truth than the flow", ylabel=r"by / $|x^\star|$")
    for ax in (left, right):
        ax.set(xscale="log", xlabel="step size")
        ax.set_xticks(STEP_SIZES, map(str, STEP_SIZES))
        ax.minorticks_off()
    return figure


def main(quick: bool, out: Path) -> None:
    ends = study(seeds=2, steps=2000) if quick else study()
    print(table(ends))
    plot(ends).savefig(out / "discrete_steps.png", dpi=150)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main(*options(__doc__))
