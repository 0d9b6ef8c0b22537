"""How exact derivatives are.

Every function in reverse mode, by a random linear function of each of its outputs, against forward
mode and against differences along a random direction in each argument:
central ones, or at `λ = 0` one-sided, extrapolated to step 0 in Ridders' way, which also says how
exact they are. All are relative to the 2-norm of the gradient in that argument, or to `FLOOR` times
the function if that is more. (Directions have entries ±1: the square of a difference is on average
that of the whole gradient.)

Where the derivatives of the two sides differ, at a knot or a tie, it is counted which of them the
derivative is, and that entry has no part in the linear function. `ε` and families of instances are
lanes of one batch.
"""

import time
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._derivative_groups import FINE, GROUPS, NAMES, Arrays, Group, direction, lanes_of
from ._differences import FLOOR, differences
from ._report import write

LEVELS = 8
LANES = 512  # at a time
ASKED = 1e-6
# Not the time of a run but that of compiling counts here: see tests/conftest.py.
COMPILER = {"xla_backend_optimization_level": 0}
if version("jaxlib").startswith("0.10."):
    COMPILER |= {
        "xla_cpu_use_fusion_emitters": False,
        "xla_cpu_parallel_codegen_split_count": 1,
    }


def in_batches(run: Callable, lanes: Arrays) -> Arrays:
    """`run` on all lanes, `LANES` at a time."""
    total = len(next(iter(lanes.values())))
    parts = []
    for start in range(0, total, LANES):
        rows = np.minimum(np.arange(start, start + LANES), total - 1)
        part = jax.device_get(run({k: jnp.asarray(v[rows]) for k, v in lanes.items()}))
        parts.append({k: v[: total - start] for k, v in part.items()})
    return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


def flat(outputs: Arrays) -> Arrays:
    return {k: jnp.ravel(v) for k, v in outputs.items()}


def derivatives(fn: Callable, arguments: list[str], lanes: Arrays, along: Arrays, weights: Arrays):
    """Gradients of each output, weighted; tangents of each argument, along directions."""

    def one(a, along, weights):
        chosen = {k: a[k] for k in arguments}
        value, pull = jax.vjp(lambda c: flat(fn({**a, **c})), chosen)
        only = lambda i: {
            k: jnp.where(i == j, w, 0).astype(w.dtype) for j, (k, w) in enumerate(weights.items())
        }
        gradients = jax.vmap(lambda i: pull(only(i))[0])(jnp.arange(len(weights)))
        ahead = lambda c: flat(fn({**a, **c}))
        seed = lambda i: {k: jnp.where(i == j, along[k], 0) for j, k in enumerate(arguments)}
        tangents = jax.vmap(lambda i: jax.jvp(ahead, (chosen,), (seed(i),))[1])
        return gradients, tangents(jnp.arange(len(arguments)))

    run = jax.jit(jax.vmap(one), compiler_options=COMPILER)
    return jax.device_get(run(*jax.tree.map(jnp.asarray, (lanes, along, weights))))


def ends_of(group: Group, lanes: Arrays, along: Arrays, run: Callable) -> tuple[Arrays, Any]:
    """Values of each output, `(lanes, arguments, levels, 2, size)`, at both ends of the steps; and
    these, `(lanes, arguments, levels)`."""
    arguments, total = group.arguments.split(), len(lanes["s"])
    each = [{k: v[i] for k, v in lanes.items()} for i in range(total)]
    steps = np.array([[group.step(k, lane) for k in arguments] for lane in each])
    steps = steps[..., None] * group.ratio ** -np.arange(LEVELS)
    moved: dict[str, list] = {k: [] for k in lanes}
    for i, lane in enumerate(each):
        for j, name in enumerate(arguments):
            for h in np.stack([steps[i, j], -steps[i, j]], axis=1).ravel():
                for k, v in lane.items():
                    moved[k].append(v + h * along[name][i] if k == name else v)
    ends = in_batches(run, {k: np.stack(v) for k, v in moved.items()})
    return {k: v.reshape(total, len(arguments), LEVELS, 2, -1) for k, v in ends.items()}, steps


@np.errstate(invalid="ignore")  # what is infinite: the relative gap at y = 0
def measure(group: Group, count: int) -> list[dict]:
    families, lanes = lanes_of(group, count)
    fn, arguments, total = group.fn, group.arguments.split(), len(families)
    rng = np.random.default_rng(1)
    each = [{k: v[i] for k, v in lanes.items()} for i in range(total)]
    # An end point depends on the rank.
    keeps_rank = group.name.startswith("end")
    along = {k: np.stack([direction(rng, k, lane, keeps_rank) for lane in each]) for k in arguments}

    run = jax.jit(jax.vmap(lambda a: flat(fn(a))), compiler_options=COMPILER)
    values = in_batches(run, lanes)
    ends, steps = ends_of(group, lanes, along, run)
    found, weights = {}, {}
    for output, value in values.items():
        smooth = np.ones(value.shape, bool)
        for j, name in enumerate(arguments):
            plus, minus = np.transpose(ends[output][:, j], (2, 1, 0, 3))  # (levels, lanes, size)
            edge = (lanes["decay"] == 0) & (name == "decay")
            result = differences(value, plus, minus, steps[:, j].T, group.ratio, edge)
            found[output, name] = result, np.any(plus != minus)
            smooth &= group.smooth | ~result.kinks
        weights[output] = np.where(smooth, rng.normal(size=value.shape), 0)
    gradients, tangents = derivatives(fn, arguments, lanes, along, weights)

    rows = []
    for o, (output, weight) in enumerate(weights.items()):
        dot = lambda v, weight=weight: np.sum(v * weight, axis=1)
        for j, name in enumerate(arguments):
            (result, differs), gradient = found[output, name], gradients[name][:, o]
            if name == "M":
                gradient = (gradient + np.swapaxes(gradient, 1, 2)) / 2
            gradient, v = (w.reshape(total, -1) for w in (gradient, along[name]))
            tangent = tangents[output][:, j]
            if not (np.any(gradient) or differs):
                continue  # it does not depend on that
            floor = FLOOR * np.linalg.norm(weight * values[output], axis=1)
            scale = np.maximum(np.linalg.norm(gradient, axis=1), floor)
            scale = np.where(scale > 0, scale, 1)
            slope = np.sum(gradient * v, axis=1)
            is_finite = np.isfinite(gradient).all(axis=1) & np.isfinite(tangent).all(axis=1)
            row = {
                "output": output,
                "argument": name,
                "differences": np.abs(slope - dot(result.central)) / scale,
                "doubt": dot(np.abs(result.doubt) * np.sign(weight)) / scale,
                "forward": np.abs(slope - dot(tangent)) / scale,
                "finite": is_finite,
                "solved": np.isfinite(values[output]).all(axis=1),
                "kinks": [Counter()] * total if group.smooth else result.tally(tangent),
            }
            rows += by_family(group, families, lanes, row)
    return rows


def by_family(group: Group, families: list[str], lanes: Arrays, found: dict) -> list[dict]:
    """The worst lanes of each family, a row for each `ε`."""
    rows = []
    n, d = group.size
    for log_eps in group.log_eps or (None,):
        row: dict[str, Any] = {
            "function": group.name,
            "size": f"{n} × {d}" if d else f"Quadratic, {n}",
            "eps": None if log_eps is None else NAMES[log_eps],
            "output": found["output"],
            "argument": found["argument"],
            "failed": 0,
            "not_finite": 0,
            "differences": {},
            "doubt": {},
            "forward": {},
            "kinks": {},
        }
        for family in dict.fromkeys(families):
            which = np.array([f == family for f in families])
            if log_eps is not None:
                which &= lanes["log_eps"] == log_eps
            row["failed"] += int(np.sum(which & ~found["solved"]))
            which &= found["solved"]
            row["not_finite"] += int(np.sum(which & ~found["finite"]))
            kinks = sum((found["kinks"][i] for i in np.flatnonzero(which)), Counter())
            if kinks:
                row["kinks"][family] = dict(kinks)
            if np.any(which):
                for key in ("differences", "doubt", "forward"):
                    row[key][family] = float(np.max(np.nan_to_num(found[key][which], nan=np.inf)))
        rows.append(row)
    return rows


def print_table(rows: list[dict]) -> None:
    """Worst of all sizes and families, by function, argument and ε."""
    tables: dict[tuple, list[dict]] = {}
    for row in rows:
        key = row["function"], row["output"], row["argument"], row["eps"] or ""
        tables.setdefault(key, []).append(row)
    for (function, output, argument, eps), group in tables.items():
        worst = lambda key, group=group: max(max(r[key].values(), default=0) for r in group)
        kinks = sum((Counter(k) for r in group for k in r["kinks"].values()), Counter())
        bad = sum(r["not_finite"] for r in group)
        print(
            f"{function:15s} {output:11s} by {argument:7s} {eps:6s}: differences "
            f"{worst('differences'):.1e} (themselves {worst('doubt'):.1e}), forward "
            f"{worst('forward'):.1e}"
            + (f"; at kinks {dict(kinks)}" if kinks else "")
            + (f"; {bad} not finite" if bad else "")
            + ("  <--" if worst("differences") > ASKED or kinks["neither"] else ""),
            flush=True,
        )


def main(out: Path, quick: bool) -> None:
    content: dict[str, Any] = {
        "settings": {"quick": quick, "asked": ASKED, "floor": FLOOR, "tolerances": FINE},
        "rows": [],
    }
    for group in [g for g in GROUPS if g.name == "limit, UV"][:1] if quick else GROUPS:
        start = time.perf_counter()
        rows = measure(group, 1 if quick else 2)
        n, d = group.size
        print(f"  {group.name}, {n} × {d or n}: {time.perf_counter() - start:.0f} s", flush=True)
        content["rows"] += rows
        write(out, "derivatives", content)
    print_table(content["rows"])
