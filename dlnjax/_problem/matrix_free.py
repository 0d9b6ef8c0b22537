"""`MatrixFree(apply, adjoint, y)`: least squares whose `X` is a function, not an array."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, ArrayLike, Float, Int

from .._checks import as_float, check_finite, check_nonempty, is_concrete
from .base import AbstractProblem
from .design import as_weight_decay
from .schedule import Schedule

# Columns of `X` that are computed at a time, where all of them are needed: `n` numbers each.
_COLUMNS = 64


class MatrixFree(AbstractProblem):
    """Least squares, `ℓ(x) = ½‖Xx − y‖²`, where `X` is known by its products only: graphs and
    images of a million nodes, convolutions, Fourier transforms.

    | takes it | |
    |---|---|
    | `train` on all rows | any network: two products a step |
    | `gradient_flow`, `loss_times` with `AcceleratedForm(α)`, or `WeightForm()` and an explicit \
`solver=diffrax.Tsit5()` | needs the column norms, for the units of its tolerances |
    | `problem.loss`, `.gradient`, `.matvec`, `.duality_gap`; `certificate` | |

    All else forms `M`, or takes rows, and refuses: the error says how to make a `LeastSquares`.

    !!! example

        ```python
        graph = dln.graphs.lattice((1000, 1000), periodic=True)
        edges = jnp.zeros(len(graph.edges))
        problem = dln.MatrixFree(graph.differences, graph.divergence, edges)
        start = dln.Linear(jnp.zeros(graph.num_nodes).at[0].set(1.0))
        run = dln.train(start, problem, dln.jacobi(1.0, step_size=0.25), eps=0.5, steps=5)
        jnp.sum(run.x[-1])  # 0.5, that of the start
        ```
    """

    apply: Callable[[Array], Array]
    adjoint: Callable[[Array], Array]
    y: Float[Array, " n"]
    norms: Float[Array, " d"] | None
    d: int = eqx.field(static=True)
    weight_decay: Any  # as in `AbstractProblem`
    quadratic_by_construction: ClassVar[bool] = True

    def __init__(
        self,
        apply: Callable[[Array], Array],
        adjoint: Callable[[Array], Array],
        y: ArrayLike,
        weight_decay: ArrayLike | Schedule = 0.0,
        *,
        column_norms: ArrayLike | None = None,
    ):
        """**Arguments:**

        - `apply`: `x ↦ Xx`, `(d,) -> (n,)`, in JAX, linear.
        - `adjoint`: `v ↦ Xᵀv`, `(n,) -> (d,)`. Where only `apply` is known, it is
            `lambda v: jax.linear_transpose(apply, x)(v)[0]`, with any `x` of shape `(d,)`.
        - `y`: response, shape `(n,)`.
        - `weight_decay`: `λ ≥ 0`, scalar, in units of `Xᵀy`, or a `Schedule`.
        - `column_norms`: `‖Xⱼ‖`, shape `(d,)`. Default: `d` products, where they are needed; of a
            graph, `√graph.degrees()`.

        Arrays that the functions hold are part of the problem if they are methods of an Equinox
        module, such as a `Graph`, or traced; others of a plain function are constants of the
        program.

        **Raises:** `TypeError` for what are no functions, or for another dtype than that of `y`;
        `ValueError` for mismatched shapes, NaN or inf, `λ < 0`, or if the functions are not adjoint
        to each other, on random vectors.
        """
        for name, function in (("apply", apply), ("adjoint", adjoint)):
            if not callable(function):
                raise TypeError(
                    f"`{name}` must be a function, got {type(function).__name__}. For a matrix `X` "
                    "there is `dlnjax.LeastSquares(X, y)`."
                )
        y = as_float(y, "y")
        if y.ndim != 1:
            raise ValueError(f"`y` must be a vector (n,), got shape {y.shape}.")
        check_nonempty(y, "y")
        check_finite(y, "y")
        x: Any = jax.eval_shape(adjoint, y)
        fit: Any = jax.eval_shape(apply, x) if getattr(x, "ndim", None) == 1 else None
        if getattr(fit, "shape", None) != y.shape:
            raise ValueError(
                "`adjoint` must take shape (n,) to (d,), and `apply` back, got "
                f"{y.shape} to {getattr(x, 'shape', x)} to {getattr(fit, 'shape', fit)}."
            )
        if x.dtype != y.dtype or fit.dtype != y.dtype:
            raise TypeError(
                f"`apply` and `adjoint` must keep the dtype of `y`, {y.dtype}, got {fit.dtype} and "
                f"{x.dtype}. Cast the arrays that they hold."
            )

        self.apply, self.adjoint, self.y, self.d = _held(apply, x), _held(adjoint, y), y, len(x)
        self.weight_decay = as_weight_decay(weight_decay, y.dtype)
        self.norms = None
        if column_norms is not None:
            self.norms = as_float(column_norms, "column_norms", y.dtype)
            if self.norms.shape != (self.d,):
                raise ValueError(
                    f"`column_norms` must have shape ({self.d},), got {self.norms.shape}."
                )
            check_finite(self.norms, "column_norms")
        if is_concrete(y, *jax.tree.leaves((self.apply, self.adjoint))):
            self._check_adjoint()

    def _check_adjoint(self) -> None:
        with jax.ensure_compile_time_eval():
            of_x, of_v = jr.split(jr.key(0))
            x = jr.normal(of_x, (self.d,), self.y.dtype)
            v = jr.normal(of_v, self.y.shape, self.y.dtype)
            fit, back = self.apply(x), self.adjoint(v)
            off = jnp.abs(jnp.vdot(fit, v) - jnp.vdot(x, back))
            size = jnp.linalg.norm(fit) * jnp.linalg.norm(v)
            size = size + jnp.linalg.norm(x) * jnp.linalg.norm(back)
        # A function may close over traced values. Sums of 10⁶ terms lose three digits, an FFT in
        # float32 more: half of the digits. Others that are wrong differ by 1/√n of the size.
        if is_concrete(off) and float(off) > float(jnp.finfo(off.dtype).eps) ** 0.5 * float(size):
            raise ValueError(
                "`apply` and `adjoint` are not adjoint: ⟨Xx, v⟩ and ⟨x, Xᵀv⟩ differ by "
                f"{float(off / size):.1e} of their size for random x and v. Both must be linear, "
                "without a constant; `jax.linear_transpose(apply, x)` is the adjoint of `apply`."
            )

    def _products(self, function: Callable[[Array], Array], x: Array) -> Array:
        """The function of each vector along the last axis."""
        return jnp.vectorize(function, signature="(k)->(l)")(x)

    @property
    def r(self) -> Array:
        return self.adjoint(self.y)

    def matvec(self, x: ArrayLike) -> Array:
        fit = self._products(self.apply, self.as_points(x))
        return self._products(self.adjoint, fit)

    def gram(self) -> Array:
        raise _refusal()

    def gram_block(self, index: Int[Array, " k"]) -> Array:
        raise _refusal()

    def gram_column(self, j: ArrayLike) -> Array:
        return self.adjoint(self.apply(self._unit(jnp.asarray(j))))

    def _unit(self, j: Array) -> Array:
        return jnp.zeros(self.d, self.y.dtype).at[j].set(1)

    def gram_diagonal(self) -> Array:
        if self.norms is not None:
            return self.norms**2
        square = lambda j: jnp.sum(self.apply(self._unit(j)) ** 2)
        return lax.map(square, jnp.arange(self.d), batch_size=min(_COLUMNS, self.d))

    @property
    def rank_bound(self) -> int:
        return min(self.d, len(self.y))

    def is_in_range(self) -> Array:
        return jnp.all(jnp.isfinite(self.y)) & jnp.all(jnp.isfinite(self.r))

    def as_points(self, x: ArrayLike) -> Array:
        x = as_float(x, "x", self.y.dtype)
        if x.ndim == 0 or x.shape[-1] != self.d:
            raise ValueError(
                f"The last axis of `x` must have the {self.d} coordinates of the problem, got "
                f"shape {x.shape}."
            )
        return x

    def loss(self, x: ArrayLike) -> Array:
        fit = self._products(self.apply, self.as_points(x))
        return 0.5 * jnp.sum((fit - jnp.broadcast_to(self.y, fit.shape)) ** 2, axis=-1)

    def gradient(self, x: ArrayLike) -> Array:
        # One product back, of the residual: `Mx − Xᵀy` would be two, and cancel near the minimum.
        fit = self._products(self.apply, self.as_points(x))
        return self._products(self.adjoint, fit - jnp.broadcast_to(self.y, fit.shape))


def _held(function: Any, x: Any) -> Any:
    """The function as a pytree, all of whose leaves are arrays."""
    arrays, program = eqx.partition(eqx.filter_closure_convert(function, x), eqx.is_array)
    # A plain function as static data.
    kept = function if isinstance(function, eqx.Module) else jax.tree_util.Partial(function)
    # Traced arrays that it closes over must be leaves, or the flow does not see that it depends on
    # them. Where there are none it stays as it is: a converted one is new to `jit` each time.
    seen = {id(leaf) for leaf in jax.tree.leaves(kept)}
    if is_concrete(*(array for array in jax.tree.leaves(arrays) if id(array) not in seen)):
        return kept
    return jax.tree_util.Partial(lambda arrays, x: eqx.combine(arrays, program)(x), arrays)


def _refusal() -> TypeError:
    return TypeError(
        "A `MatrixFree` problem has no Gram matrix, which is needed here. Where it fits into "
        "memory, pass `LeastSquares(X, y)`, with `X = jax.vmap(apply, out_axes=1)(jnp.eye(d))`. As "
        "it is, `train` takes it, and `gradient_flow` with `formulation=dlnjax.AcceleratedForm(α)` "
        "or `formulation=dlnjax.WeightForm(), solver=diffrax.Tsit5()`."
    )
