"""The flow as a user of diffrax would write it, without dlnjax."""

import diffrax
import jax
import jax.numpy as jnp

# diffrax's default: explicit solvers on a stiff problem stop here, rather than never.
MAX_STEPS = 4096


def dual_form(solver: diffrax.AbstractSolver):
    """`(X, y, log_eps, s, rtol) -> x_mean`, vmapped over `X` and `y`, jitted."""

    def solve(X, y, log_eps, s, rtol):
        size = -log_eps

        def field(t, state, args):
            nu, _ = state
            g = X.T @ nu
            x = 0.25 * (jnp.exp(log_eps + size * g) - jnp.exp(log_eps - size * g))
            return y - X @ x, x

        start = jnp.zeros_like(y), jnp.zeros_like(X[0])
        solution = _integrate(solver, field, start, s, rtol, 0.1 * rtol)
        return solution[1] / s[:, None]

    return jax.jit(jax.vmap(solve, in_axes=(0, 0, None, None, None)))


def weight_form(solver: diffrax.AbstractSolver):
    """The same, in `(u, v, z)`."""

    def solve(X, y, log_eps, s, rtol):
        def field(t, state, args):
            u, v, _ = state
            x = u * v
            descent = -0.5 * log_eps * (X.T @ (y - X @ x))
            return v * descent, u * descent, x

        zero, size = jnp.zeros_like(X[0]), jnp.exp(log_eps / 2)
        start = zero + size, zero, zero
        solution = _integrate(solver, field, start, s, rtol, 0.1 * rtol * size)
        return solution[2] / s[:, None]

    return jax.jit(jax.vmap(solve, in_axes=(0, 0, None, None, None)))


def _integrate(solver, field, start, s, rtol, atol):
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        solver,
        t0=0.0,
        t1=s[-1],
        dt0=None,
        y0=start,
        saveat=diffrax.SaveAt(ts=s),
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        max_steps=MAX_STEPS,
        throw=False,
    )
    failed = solution.result != diffrax.RESULTS.successful
    return jax.tree.map(lambda v: jnp.where(failed, jnp.nan, v), solution.ys)
