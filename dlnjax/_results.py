"""`RESULTS`: how a solve ended, and how failures are raised.

Programs hold no host callback. A solver computes its `result` as
an array, one code per lane; after the call, on the host, `raise_on_failure` raises for the first
lane that failed. Under tracing it blanks failed lanes with NaN instead. `first_failure` combines
conditions into one result; `one_unless` keeps NaN out of the derivatives of lanes that failed.
"""

import dataclasses
from typing import Any, TypeVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

_S = TypeVar("_S", bound=eqx.Module)
_T = TypeVar("_T")
_Enumeration: Any = type(diffrax.RESULTS)


class _Readable(_Enumeration):
    """The metaclass that prints a result as `name: message`, and a batch as counts of names.

    equinox shows `RESULTS[result]` in `print` and inside modules. Its own version is the message
    alone: for `successful` it is empty, and for a batch it repeats one per lane."""

    def __getitem__(self, result) -> str:
        if not isinstance(result, self) or not eqx.is_array_like(result._value):
            return _Enumeration.__getitem__(self, result)
        if result.is_traced():
            return "traced"
        codes, names = _on_host(result), result_names()
        if codes.ndim > 0:
            found, counts = np.unique(codes, return_counts=True)
            most_first = np.argsort(-counts, kind="stable")
            return ", ".join(f"{counts[i]} {names[found[i]]}" for i in most_first)
        name, message = names[int(codes)], self._index_to_message[int(codes)]
        return f"{name}: {message}" if message else name


class RESULTS(diffrax.RESULTS, metaclass=_Readable):  # pyright: ignore[reportGeneralTypeIssues]
    """How a solve ended: `successful`, or the cause of a failure. Extends `diffrax.RESULTS`.

    `print(result)` and `RESULTS[result]` show the name, the cause and the fix; for a batch, how
    many lanes ended with each name.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        path = dln.lasso_path(problem, max_knots=1, throw=False)
        path.result == dln.RESULTS.successful  # False
        path.result  # max_knots_reached: The path has more knots than …
        ```
    """

    # The name under which users import it, which equinox prints.
    __module__ = "dlnjax"

    successful = ""
    invalid_data = (
        "The data are NaN or inf, or the squares of the columns, or of `y` for `lasso`, leave the "
        "range of the dtype; or the loss does not take a target. Remove or impute what is not "
        "finite; rescale the data, or use float64; labels are 1 and −1, counts ≥ 0."
    )
    invalid_problem = (
        "The loss is unbounded below, or no quadratic: `M` is not symmetric and positive "
        "semidefinite, `r` is not in its range, or `constant` makes the loss negative. Build the "
        "problem outside `jit` to be told which, or use `LeastSquares(X, y)`."
    )
    invalid_decay = (
        "The weight decay is negative or not finite, or the network takes none. Use "
        "`weight_decay=0`, or a network of depth 2."
    )
    invalid_eps = (
        "ε does not lie in (0, 1), or is so small that the weights do not hold it: they underflow, "
        "or the sign of `x` drowns in their rounding (in the dual form, with a link of one's own, "
        "or where `Pretrained` of depth D > 2 starts at a size of its own, not of size `ε`: that "
        "of `w(0)` hides an active `w`). Put a larger initialisation into the shape of the "
        "network; for ε → 0 use `limit_flow`, or `gradient_flow` with `DualForm()` and `log_eps=`, "
        "and give a network of one's own the method `growth`."
    )
    invalid_shape = (
        "The shape of the network is degenerate (a coordinate that could never move), not finite, "
        "so large that `x(0)` is out of range, or its depth is not above 2. Use a shape of about "
        "1; depth 2 is the Python number 2."
    )
    invalid_network = (
        "The functions of the network contradict each other: its `link` is negative, or NaN, at a "
        "`w` that the flow reached. `dlnjax.check_network(network)` says what is wrong."
    )
    invalid_start = (
        "`start`, or `x0` of `Pretrained`, is not finite, or negative where the network represents "
        "`x ≥ 0` only (use `UV` for signed models); or an exponent is negative or not finite."
    )
    invalid_grid = (
        "A grid is out of range: `s` must be finite, non-negative and sorted; `s_max`, `level` and "
        "`mu` positive; `log_inverse_loss` finite, sorted, and above log(1/loss) of the start."
    )
    invalid_weights = (
        "`weights` must not be negative or NaN. 0 leaves a coordinate unpenalised, `inf` keeps it "
        "at 0."
    )
    invalid_tolerance = "A tolerance is not positive or not finite. Leave it out for the default."
    invalid_inertia = (
        "The inertia of `MomentumForm` is not positive or not finite. Without momentum use "
        "`DualForm()`."
    )
    start_too_large = (
        "The start is so much larger than `x`, a difference of numbers of its size, that the "
        "digits of `x` are lost. Pass `formulation=DualForm(large_start=True)` to "
        "`gradient_flow`, or start smaller."
    )
    invalid_alpha = (
        "The `alpha` of `AcceleratedForm` is below −1/2 or not finite: the friction (2α + 1)/t "
        "would be negative. Nesterov's flow has 1."
    )
    invalid_training = (
        "A step size or the label noise is negative or not finite, or `batches` has a row that `X` "
        "does not have. Use positive step sizes, `label_noise=0` for none, rows from 0 to n − 1."
    )
    invalid_law = (
        "`delta` is not positive and finite, `noise` or `kappa` negative or NaN, a value of the "
        "prior not finite, or its probabilities are negative or do not sum to 1. Build the "
        "`GaussianDesign` outside `jit` to be told which."
    )
    law_not_finite = (
        "The risk is infinite, or larger than this precision tells: at `delta = 1` least squares "
        "has none. Use `kappa` > 0, another `delta`, or units in which `x` is smaller."
    )
    law_not_resolved = (
        "`noise` and `kappa` both are too small, beside the prior, for this precision. Use `noise` "
        "0, or float64."
    )
    prior_not_resolved = (
        "The panels on which a density of the prior is integrated are too wide: it, or soft "
        "thresholding at the scale `tau`, varies within their nodes. Put more `edges` near 0, "
        "where the density is large, and at its kinks."
    )
    invalid_graph = (
        "A variance of the `GaussianGraph` is not positive and finite, a matrix is not finite, or "
        "that of a loop not symmetric. Build the graph outside `jit` to be told which."
    )
    invalid_gossip = (
        "The edges of positive probability do not connect all nodes, or the probabilities are "
        "negative or do not sum to 1, or an edge does not connect two different nodes of the "
        "graph. Add edges, or keep the largest component."
    )
    gossip_not_resolved = (
        "The graph is connected, but its smallest eigenvalue `mu` is below the rounding of the "
        "largest one. Use float64, or probabilities that are less uneven."
    )
    messages_not_finite = (
        "The messages overflow, or are NaN: the iteration diverges. Damp the functions, check "
        "their signs and the variances of `GaussianGraph` (by default 1/n_w), or take fewer steps."
    )
    max_knots_reached = (
        "The path has more knots than its buffer holds: it is exact up to its last knot "
        "and NaN beyond. Pass a larger `max_knots`."
    )
    path_inaccurate = (
        "The path violates the optimality conditions by more than rounding: its columns are almost "
        "linearly dependent, once scaled to norm 1 (or, with non-uniform weights and weight decay "
        "together, it jumps; or its knots leave the range of the dtype). "
        "`path.kkt_residual(problem)` says where and by how much. Merge near-duplicate columns, "
        "use float64, or pass `throw=False`."
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
    limit_undetermined = (
        "Columns that are active together depend on each other, or almost, so that several `x` "
        "minimise the loss, and this precision, or a network without the method `growth`, does not "
        "tell which of them is the limit: `x` is some of them; `Xx` and the jumps are right. Merge "
        "near-duplicate columns, use float64, give the network a `growth`, or pass `throw=False`."
    )
    minimizer_not_reached = (
        "Newton's method found no minimiser of the loss on the active coordinates, or several: the "
        "curvature of the loss vanishes there to rounding. Some rows are almost separated from the "
        "others, or all residuals are outliers (`Huber`), or columns almost depend on each other. "
        "Add weight decay, use float64, or merge near-duplicate columns."
    )
    data_separate = (
        "The data, or some rows of them, separate: the loss has no minimiser, and the flow goes to "
        "infinity, so that it has no end point. `limit_flow(network, problem).face` says on which "
        "coordinates it leaves as ε → 0; with weight decay the end point is finite."
    )
    not_separable = (
        "No linear model, or none that the network or the weights allow, has all labels right, or "
        "by a margin that this precision does not tell from 0 only (relative to the entries, 1e-6 "
        "in float64 and 2e-3 in float32): no loss tends to 0. Remove rows that contradict each "
        "other, use float64, "
        "add features (an intercept is a column of ones, in `max_margin` of weight 0), or take "
        "`lasso(problem, mu)` or `end_point`, which have a minimiser then."
    )
    flow_not_finite = (
        "The trajectory is not finite: it overflows in this precision. Scale the data, or use "
        "float64."
    )
    momentum_oscillates = (
        "With this inertia a weight passes through 0, where its logarithm ends: `4 m c a < −1` "
        "held for some sign of a coordinate (`MomentumForm` says what these are), so that its "
        "weights are a damped oscillator. Use a smaller inertia, or times `s` before that."
    )
    steps_too_long = (
        "A step of the stochastic flow is too long for how fast its residual decays: "
        "`stats['stiffness']` is by how much (NaN if the flow overflowed). Pass as many times more "
        "`steps`."
    )
    flow_not_resolved = (
        "At times so far, or with columns of so uneven norms, the rounding of the gradient moves "
        "the dual variable by more than the tolerance: steps cannot grow. Save earlier times, "
        "scale the columns (`standardize`), pass `LeastSquares` in place of `Quadratic`, or use "
        "float64; or raise `max_steps`, if it is below the default."
    )
    step_too_small = (
        "A step of the solver fell below the rounding of `s`: the trajectory changes too fast "
        "there for this precision. Use float64, or a larger ε; with an explicit solver, the "
        "default one."
    )
    max_crossings_reached = (
        "The flow has more jumps than the buffer holds: those in it are right. Pass a larger "
        "`max_crossings`, a smaller `s_max`, or a `level` that fewer coordinates reach."
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
        "is below rounding; or the initialisation is so much larger than `x` that its rounding "
        "hides `x`. Use a larger ε, float64, or `limit_point`, the limit as ε → 0; in the second "
        "case a smaller initialisation."
    )
    gap_not_reached = (
        "The requested relative duality gap was not reached within `max_steps` "
        "iterations. Raise `max_steps`, loosen `gap_tol`, or, for least squares, take the point "
        "from `lasso_path`, which is exact. (Where coordinates of weight 0 separate the classes, a "
        "logistic loss has no minimiser; of a loss of your own, see `dlnjax.check_loss`.)"
    )


def first_failure(*checks: tuple[Bool[Array, ""], RESULTS] | RESULTS) -> RESULTS:
    """The cause of the first condition that fails, or `successful`.

    **Arguments:** pairs `(condition, cause)`, where `cause` is the result if the condition is
    false; or results, which count as failed unless successful."""
    result = RESULTS.successful
    for check in reversed(checks):
        if isinstance(check, tuple):
            holds, cause = check
            result = RESULTS.where(holds, result, cause)
        else:
            result = RESULTS.where(check == RESULTS.successful, result, check)
    return result


def raise_on_failure(solution: _S, result: RESULTS, throw: bool, kept: tuple[str, ...] = ()) -> _S:
    """`solution`. Raises an `EquinoxRuntimeError` if a lane failed, unless `throw=False`.

    Under tracing nothing can be raised without a host callback, which programs of the library do
    not hold (but for diffrax's own, in flows). With `throw=True`, failed lanes are then NaN, with
    their result: `kept` names the fields in which `throw=False` keeps numbers of a failed lane,
    such as the exact part of a path.
    """
    if not throw:
        return solution
    if result.is_traced():
        good = result == RESULTS.successful
        blank = lambda v: jnp.where(good, v, jnp.nan) if eqx.is_inexact_array(v) else v
        blanked = {name: jax.tree.map(blank, getattr(solution, name)) for name in kept}
        return dataclasses.replace(solution, **blanked)
    codes = _on_host(result)
    failed = np.argwhere(codes != result_code(RESULTS.successful))
    if len(failed) == 0:
        return solution
    first = tuple(int(i) for i in failed[0])
    cause = RESULTS[jax.tree.map(lambda _: codes[first], result)]
    if first:
        lane = first[0] if len(first) == 1 else first
        cause = (
            f"{len(failed)} of {codes.size} lanes failed ({RESULTS[result]}); lane {lane} is the "
            f"first. {cause}"
        )
    raise eqx.EquinoxRuntimeError(cause)


def is_known_to_succeed(result: RESULTS) -> bool:
    """Whether every lane is successful; False under tracing, where nothing is known, and where
    other processes hold lanes, which must decide alike."""
    codes: Any = result_code(result)
    if result.is_traced() or not getattr(codes, "is_fully_addressable", True):
        return False
    return bool(np.all(np.asarray(codes) == result_code(RESULTS.successful)))


def _on_host(result: RESULTS) -> np.ndarray:
    """The codes of all lanes; if they are distributed, of those that this process holds."""
    codes: Any = result_code(result)
    if isinstance(codes, jax.Array) and not codes.is_fully_addressable:
        if not codes.is_fully_replicated:
            return np.concatenate([np.ravel(shard.data) for shard in codes.addressable_shards])
    return np.asarray(codes)


def result_names() -> list[str]:
    """The names of `RESULTS`, in the order of their codes."""
    return list(RESULTS._name_to_item)  # pyright: ignore[reportAttributeAccessIssue]


def names_of(result: RESULTS) -> np.ndarray:
    """The name of each lane's result, with the shape of `result`, which must be concrete."""
    return np.asarray(np.asarray(result_names())[_on_host(result)])


def result_code(result: RESULTS):
    """The index of a result in `result_names()`, an array of any batch shape."""
    return result._value  # pyright: ignore[reportAttributeAccessIssue]


def one_unless(good: Bool[Array, ""], tree: _T) -> _T:
    """`tree`, with all its numbers replaced by 1 unless `good`.

    For results that are blanked with NaN unless `good`: computed from ones, they have derivatives 0
    in both modes. Computed from NaN, their derivatives are NaN even behind a `where`, as `0 · NaN`
    is.
    """
    one = lambda a: jnp.where(good, a, 1) if eqx.is_inexact_array(a) else a
    return jax.tree.map(one, tree)


def has_no_nan(tree: Any) -> Bool[Array, ""]:
    """Whether no number of `tree` is NaN. Shape `()`."""
    leaves = [a for a in jax.tree.leaves(tree) if eqx.is_inexact_array(a)]
    return ~jnp.stack([jnp.any(jnp.isnan(a)) for a in leaves]).any()
