"""What went right or wrong in a solve, and how that is raised."""

from typing import TypeVar

import diffrax

_S = TypeVar("_S")


class RESULTS(diffrax.RESULTS):  # pyright: ignore[reportGeneralTypeIssues]
    """Why a solve ended. Extends `diffrax.RESULTS`; `RESULTS[result]` is the message."""

    successful = ""
    invalid_input = (
        "The input of this lane is invalid; call the function outside `jit` and `vmap` on it to be "
        "told why. It is NaN or inf in the data, ε outside (0, 1), a tolerance not positive or not "
        "finite, a negative weight decay or one that the network does not take, a degenerate "
        "shape, or one so large that `x(0)` is out of range, a depth `≤ 2`, "
        "an unsorted or negative `s`, an `s_max` or a `level` that is not positive, a `start` that "
        "the network cannot represent, a negative step size or label noise, or `μ ≤ 0`; "
        "or its numbers leave the range of the dtype: rescale a design whose columns, squared, "
        "overflow or underflow; where `ε^½` underflows, use `gradient_flow` with `DualForm()`."
    )
    max_knots_reached = (
        "The path has more knots than its buffer holds: it is exact up to its last knot "
        "and NaN beyond. Pass a larger `max_knots`."
    )
    path_inaccurate = (
        "The path violates the optimality conditions by more than rounding, because its "
        "columns are almost linearly dependent (or, with non-uniform weights and weight "
        "decay together, because it jumps); `path.kkt_residual(problem)` says where and by "
        "how much. Merge near-duplicate columns, use float64, or pass `throw=False`."
    )
    path_cycled = (
        "The homotopy made too many pivots without moving, on a degenerate knot. Please "
        "report this problem. Perturbing `y` in its last digits works around it."
    )
    limit_inaccurate = (
        "The limit process violates its complementarity conditions by more than rounding, because "
        "its columns are almost linearly dependent; `limit.stats['max_violation']` says by how "
        "much, relative to the largest correlation. Merge near-duplicate columns, use float64, "
        "or pass `throw=False`."
    )
    flow_not_finite = (
        "The trajectory is not finite: it overflows in this precision. Scale the data, or use "
        "float64."
    )
    max_jumps_reached = (
        "The flow has more jumps than the buffer holds: those in it are right. Pass a larger "
        "`max_jumps`, a smaller `s_max`, or a `level` that fewer coordinates reach."
    )
    jumps_missed = (
        "Coordinates crossed `level` too close to each other to be told apart: tighten `rtol` and "
        "`atol`, or move the `level`."
    )
    training_diverged = (
        "Training diverged: weights, or the loss, are not finite after some step. What was "
        "recorded before, up to `stats['last_finite_step']`, is kept. Use smaller steps."
    )
    end_point_not_reached = (
        "Newton's method did not reach the end point of the flow within `max_steps` steps. Raise "
        "`max_steps` or `rtol`, use float64, or see `stats` for the residual. For a design whose "
        "rank is in doubt, remove its (almost) dependent rows."
    )
    end_point_undetermined = (
        "The end point depends on digits of the initialisation that this precision does not "
        "have: several points share the minimum 1-norm and, at depth D > 2, ε^(1 − 2/D) "
        "is below rounding. Use a larger ε, float64, or `limit_point`, the limit as ε → 0."
    )
    gap_not_reached = (
        "The requested relative duality gap was not reached within `max_steps` "
        "iterations. Raise `max_steps`, loosen `gap_tol`, or take the point from "
        "`lasso_path`, which is exact."
    )


def raise_on_failure(solution: _S, result: RESULTS, throw: bool) -> _S:
    """Raise once, at the outermost call, unless `throw=False`."""
    if throw:
        return result.error_if(solution, result != RESULTS.successful)
    return solution


def result_names() -> list[str]:
    """The names of `RESULTS`, in the order of their codes."""
    return list(RESULTS._name_to_item)  # pyright: ignore[reportAttributeAccessIssue]


def result_code(result: RESULTS):
    """The index into `result_names()`, of any batch shape."""
    return result._value  # pyright: ignore[reportAttributeAccessIssue]
