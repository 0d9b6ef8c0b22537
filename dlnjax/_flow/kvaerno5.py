"""Kvaerno5 for the weight form, with derivatives that solve our own linear systems.

diffrax finds the stages of an implicit step, and differentiates each by a dense LU of the size of
the whole state, in calls of LAPACK that may wait for each other (`_linalg.py`). So a step is made
without derivatives, and its stages `k = hf(y₀ + Σ aⱼkⱼ + γk)` get them here, by the implicit
function theorem.
"""

import functools as ft
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import diffrax
import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import optimistix.internal as optxi
from jaxtyping import Array, PyTree

from .._derivatives import held, vanishing
from .quadrature import QuadratureSolver
from .terms.base import RealScalarLike

_TABLEAU = diffrax.Kvaerno5.tableau


_weighted = ft.partial(jnp.tensordot, axes=1, precision=lax.Precision.HIGHEST)


class _Stage(NamedTuple):
    known: PyTree[Array]  # k, without derivatives
    partial: PyTree[Array]  # y₀ + Σ aⱼkⱼ
    term: Any
    t: RealScalarLike
    control: RealScalarLike
    gamma: Array
    args: Any


def _off(k: PyTree[Array], stage: _Stage) -> PyTree[Array]:
    """What is 0 at the stage."""
    y = jax.tree.map(lambda a, b: a + stage.gamma * b, stage.partial, k)
    velocity = stage.term.vf(stage.t, y, stage.args)
    return jax.tree.map(jnp.subtract, k, stage.term.prod(velocity, stage.control))


# optimistix takes functions that close over nothing, also where a type checker wraps definitions.
_root = lambda stage: (stage.known, None)
_off_at = lambda k, _, stage: _off(k, stage)


class StagewiseKvaerno5(diffrax.AbstractImplicitSolver, diffrax.AbstractAdaptiveSolver):
    """`diffrax.Kvaerno5`, of a state `(w, z)` whose `z` is a quadrature."""

    root_finder: optx.AbstractRootFinder = (  # pyright: ignore[reportIncompatibleVariableOverride]
        diffrax.with_stepsize_controller_tols(diffrax.VeryChord)(linear_solver=QuadratureSolver())
    )
    root_find_max_steps: int = 10  # pyright: ignore[reportIncompatibleVariableOverride]

    term_structure: ClassVar[Any] = diffrax.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., Any]] = diffrax.Kvaerno5.interpolation_cls

    def _plain(self) -> diffrax.Kvaerno5:
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
        # Of a trial step that overflows and is rejected, derivatives would be NaN.
        is_finite = jnp.stack([jnp.all(jnp.isfinite(k)) for k in jax.tree.leaves(dense["k"])]).all()
        known = jax.tree.map(lambda k: jnp.where(is_finite, k, 0), dense["k"])
        term = terms.term  # diffrax wraps every term in the direction of integration
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
            k, _ = optxi.implicit_jvp(_root, _off_at, inputs, frozenset(), QuadratureSolver())
            return jax.tree.map(lambda ks, k: ks.at[i].set(k), ks, k), None

        dtype = jax.tree.leaves(y0)[0].dtype
        count = len(_TABLEAU.b_sol)
        lower = [np.pad(row, (0, count - len(row))) for row in _TABLEAU.a_lower]
        rows = (np.stack(lower), np.asarray(_TABLEAU.a_diagonal)[1:], _TABLEAU.c)
        rows = (*(jnp.asarray(v, dtype) for v in rows), jnp.arange(1, count))
        start = jax.tree.map(lambda ks, k: jnp.zeros_like(ks).at[0].set(k), known, first)
        ks, _ = lax.scan(stage, start, rows)
        moved = lambda y, ks: y + _weighted(jnp.asarray(_TABLEAU.b_sol, dtype), ks)
        # The values are those of diffrax.
        y1, ks = jax.tree.map(
            lambda known, v: known + vanishing(v),
            (y1, dense["k"]),
            (jax.tree.map(moved, y0, ks), ks),
        )
        return y1, error, dict(y0=y0, y1=y1, k=ks), solver_state, result
