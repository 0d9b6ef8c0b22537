"""Kvaerno5 for the weight form, with its own derivatives of the implicit stages.

A stage of the step is the root `k` of

    k − h f(y₀ + Σⱼ aⱼkⱼ + γk) = 0.

diffrax would differentiate it by a dense LU factorisation of the size of the whole state, in
batched calls of LAPACK that may deadlock on machines with few cores (`_linalg.py`). So the step of
diffrax runs without derivatives, and each stage gets them from the implicit function theorem, with
the linear solver of `quadrature.py`.
"""

import dataclasses
import functools as ft
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
from jaxtyping import Array, PyTree

from .._derivatives import held, vanishing
from .quadrature import QuadratureSolver
from .terms.base import RealScalarLike, unwrapped

_TABLEAU = diffrax.Kvaerno5.tableau


# Σ aⱼkⱼ over the leading axis of the stages.
_weighted = ft.partial(jnp.tensordot, axes=1, precision=lax.Precision.HIGHEST)


class _Stage(NamedTuple):
    """What determines the stage `k`, and its value."""

    known: PyTree[Array]  # k as diffrax found it, without derivatives
    partial: PyTree[Array]  # y₀ + Σ aⱼkⱼ
    term: Any
    t: RealScalarLike
    control: RealScalarLike
    gamma: Array
    args: Any


def _off(k: PyTree[Array], stage: _Stage) -> PyTree[Array]:
    """The residual of the stage equation, `k − h f(y₀ + Σ aⱼkⱼ + γk)`."""
    y = jax.tree.map(lambda a, b: a + stage.gamma * b, stage.partial, k)
    velocity = stage.term.vf(stage.t, y, stage.args)
    return jax.tree.map(jnp.subtract, k, stage.term.prod(velocity, stage.control))


def _root(stage: _Stage) -> PyTree[Array]:
    """The stage `k`, as a function of what determines it: two chord steps from its value.

    Each raises the order to which derivatives are right by one: the second are. The value is kept,
    so that a step has the same one with and without derivatives. (`optimistix.implicit_jvp` loses
    derivatives inside a `scan` in forward mode over reverse mode, as JAX may drop a custom rule
    there. The derivatives of `lineax.linear_solve` hold a host callback.)"""
    k, solver = held(stage.known), QuadratureSolver()
    factors = held(solver.init(lx.JacobianLinearOperator(_off, k, held(stage)), {}))
    for _ in range(2):
        change, _, _ = solver.compute(factors, _off(k, stage), {})
        k = jax.tree.map(lambda k, dk: k - vanishing(dk), k, change)
    return k


class _Chord(diffrax.VeryChord):
    """`diffrax.VeryChord`, with the iterations that it needs, and in the units of the state.

    That one reports divergence as soon as the second iteration has not converged, so that stages
    have two at most. And its unknown is the velocity of a stage, which on a plateau is rounding:
    relative to it nothing converges. In both cases half of the steps were rejected, and none became
    longer. Here a change counts by what it moves the state, in units of its tolerance (Hairer and
    Wanner, *Solving Ordinary Differential Equations II*, section IV.8)."""

    def step(self, fn, y, args, options, state, tags):
        y, state, aux = super().step(fn, y, args, options, state, tags)
        _, diagonal, _, prod, _, partial, _, control = args  # of `_implicit_relation_f` in diffrax
        change, moved = prod(state.diff, control), prod(y, control)
        scaled = jax.tree.map(
            lambda d, m, p: diagonal * d / (self.atol + self.rtol * jnp.abs(p + diagonal * m)),
            change,
            moved,
            partial,
        )
        return y, dataclasses.replace(state, diffsize=self.norm(scaled)), aux

    def terminate(self, fn, y, args, options, state, tags):
        ends, result = super().terminate(fn, y, args, options, state, tags)
        # Two changes in a row below `kappa`, the error that is tolerated, are enough: smaller ones
        # may be rounding, and grow.
        rests = jnp.maximum(state.diffsize, state.diffsize_prev) < self.kappa
        is_bad = ends & ~rests
        return ends | rests, optx.RESULTS.where(is_bad, result, optx.RESULTS.successful)


class StagewiseKvaerno5(diffrax.AbstractImplicitSolver, diffrax.AbstractAdaptiveSolver):
    """`diffrax.Kvaerno5` for a state `(w, z)` whose `z` is a quadrature, `dz/ds = x(w)`.

    The method is that of diffrax; when an iteration has converged, linear systems and derivatives
    are our own.
    """

    root_finder: optx.AbstractRootFinder = (  # pyright: ignore[reportIncompatibleVariableOverride]
        diffrax.with_stepsize_controller_tols(_Chord)(linear_solver=QuadratureSolver())
    )
    # The default of `diffrax.Kvaerno5`. If a stage does not converge in 10 chord iterations, the
    # step is rejected and retried with a fifth of its length.
    root_find_max_steps: int = 10  # pyright: ignore[reportIncompatibleVariableOverride]
    # Those of the stages have the value 0, but XLA computes them, in half of the time of a step.
    has_derivatives: bool = eqx.field(static=True, default=True)

    term_structure: ClassVar[Any] = diffrax.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., Any]] = diffrax.Kvaerno5.interpolation_cls

    def _plain(self) -> diffrax.Kvaerno5:
        """The solver of diffrax with these settings, without derivatives."""
        return diffrax.Kvaerno5(
            root_finder=held(self.root_finder), root_find_max_steps=self.root_find_max_steps
        )

    def order(self, terms: Any) -> int:
        return 5

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any) -> Any:
        return held(self._plain().init(terms, t0, t1, y0, args))

    def func(self, terms: Any, t0: RealScalarLike, y0: Any, args: Any) -> Any:
        return terms.vf(t0, y0, args)

    def step(
        self,
        terms: Any,
        t0: RealScalarLike,
        t1: RealScalarLike,
        y0: Any,
        args: Any,
        solver_state: Any,
        made_jump: Any,
    ) -> tuple[Any, Any, dict[str, Any], Any, diffrax.RESULTS]:
        inputs = held((terms, t0, t1, y0, args, solver_state, made_jump))
        y1, error, dense, solver_state, result = self._plain().step(*inputs)
        if not self.has_derivatives:
            return y1, error, dense, solver_state, result
        # A trial step that overflows is rejected. Its stages are replaced by 0, since derivatives
        # through inf would be NaN for the whole trajectory.
        is_finite = jnp.stack([jnp.all(jnp.isfinite(k)) for k in jax.tree.leaves(dense["k"])]).all()
        known = jax.tree.map(lambda k: jnp.where(is_finite, k, 0), dense["k"])
        term = unwrapped(terms)
        control = term.contr(t0, t1)
        first = term.prod(term.vf(t0, y0, args), control)

        def stage(ks, row):
            a, gamma, c, i = row
            inputs = _Stage(
                known=jax.tree.map(lambda k: k[i], known),
                partial=jax.tree.map(lambda y, ks: y + _weighted(a, ks), y0, ks),
                term=term,
                t=t0 + c * (t1 - t0),
                control=control,
                gamma=gamma,
                args=args,
            )
            return jax.tree.map(lambda ks, k: ks.at[i].set(k), ks, _root(inputs)), None

        dtype = jax.tree.leaves(y0)[0].dtype
        count = len(_TABLEAU.b_sol)
        lower = [np.pad(row, (0, count - len(row))) for row in _TABLEAU.a_lower]
        rows = (np.stack(lower), np.asarray(_TABLEAU.a_diagonal)[1:], _TABLEAU.c)
        rows = (*(jnp.asarray(v, dtype) for v in rows), jnp.arange(1, count))
        start = jax.tree.map(lambda ks, k: jnp.zeros_like(ks).at[0].set(k), known, first)
        ks, _ = lax.scan(stage, start, rows)
        moved = lambda y, ks: y + _weighted(jnp.asarray(_TABLEAU.b_sol, dtype), ks)
        # Values from diffrax, derivatives from the stages above.
        y1, ks = jax.tree.map(
            lambda known, v: known + vanishing(v),
            (y1, dense["k"]),
            (jax.tree.map(moved, y0, ks), ks),
        )
        return y1, error, dict(y0=y0, y1=y1, k=ks), solver_state, result
