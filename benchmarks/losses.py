"""`python -m benchmarks.losses`: how far logistic regression at `ε → 0` is from its lasso.

The largest gap of the average for `s` up to 30 times the first jump, relative to how much the lasso
lowers the loss, for signals that come ever closer to separating the data (`docs/losses.md`).
"""

import jax
import jax.numpy as jnp
import numpy as np

import dlnjax as dln

SIGNALS = (0.5, 1.0, 2.0, 4.0, 8.0)
N, D = 200, 6


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, D)) / np.sqrt(N)
    u = 2 * X @ np.array([4.0, -3, 2, 0, 0, 0])
    noise = rng.logistic(size=N) / 2
    network = dln.UV(np.ones(D), np.zeros(D))

    @jax.jit
    def study(y):
        problem = dln.Logistic(X, y)
        s = np.geomspace(1.05, 30, 25) / jnp.max(jnp.abs(problem.r))
        limit, lasso = dln.limit_flow(network, problem), dln.lasso(problem, s)
        least = problem.lasso_objective(lasso.x, s)
        gap = problem.lasso_objective(limit.x_mean(s), s) - least
        return jnp.max(gap / (problem.loss(jnp.zeros(D)) - least)), limit.is_monotone()

    for signal in SIGNALS:
        gap, is_monotone = study(np.sign(signal * u + noise))
        print(f"signal {signal:3g}: gap {gap:.4f} of the decrease, monotone: {bool(is_monotone)}")


if __name__ == "__main__":
    main()
