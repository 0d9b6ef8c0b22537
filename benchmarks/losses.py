"""`python -m benchmarks.losses [gap] [rate] [certificate] [grokking]`: flows and limits of other
losses than the square (`docs/losses.md`).

- *gap*: how far logistic regression at `ε → 0` is from its lasso: the largest gap of the average
  for `s` up to 30 times the first jump, relative to how much the lasso lowers the loss, for signals
  that come ever closer to separating the data.
- *rate*: `log(1/ε)` times the largest distance of the averaged flow from its limit, which tends to
  a constant.
- *certificate*: of 50 problems of each of four losses at 25 times, how many certificates are below
  the gap that they bound, and the quotients of both.
- *grokking*: the large start with weight decay of arXiv 2311.18817 at 256 × 100 000, `α = e⁵`: the
  1-norm margin at `λt/log α` = .95, 1.05, 1.2, at two tolerances, and the time of the first and
  the next call.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import dlnjax as dln
from dlnjax._results import names_of
from dlnjax.papers import lyu24

SIGNALS = (0.5, 1.0, 2.0, 4.0, 8.0)
N, D = 200, 6
INSTANCES, TIMES = 50, 25


def gap() -> None:
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
        worst, is_monotone = study(np.sign(signal * u + noise))
        print(f"signal {signal:3g}: gap {worst:.4f} of the decrease, monotone: {bool(is_monotone)}")


def rate() -> None:
    sizes = jnp.array([200.0, 400.0, 800.0, 1600.0, 2000.0])
    network = dln.UV(np.ones(D), np.zeros(D))

    @jax.jit
    def study(X, y):
        problem = dln.Logistic(X, y)
        s = jnp.linspace(0, 30, 3001)[1:] / jnp.max(jnp.abs(problem.r))
        limit = dln.limit_flow(network, problem).x_mean(s)
        far = lambda L: dln.gradient_flow(network, problem, s, log_eps=-L).x_mean - limit
        return sizes * jax.lax.map(lambda L: jnp.max(jnp.abs(far(L))), sizes)

    for seed in range(4):
        rng = np.random.default_rng(seed)
        X = rng.normal(size=(40, D))
        y = np.where(X @ rng.normal(size=D) + rng.logistic(size=40) > 0, 1.0, -1.0)
        print(f"instance {seed}: L · max|x̄ − x̄⁰| = {study(X, y)} at L = {sizes}")


def certificate() -> None:
    keys = jax.random.split(jax.random.key(0), INSTANCES)
    n, d = 20, 6
    network = dln.UV(np.ones(d), np.zeros(d))

    def problem_of(name, key):
        of_X, of_w, of_y = jax.random.split(key, 3)
        X = jax.random.normal(of_X, (n, d)) / n**0.5
        u = X @ (4 * jax.random.normal(of_w, (d,)))
        if name == "square":
            return dln.LeastSquares(X, u + jax.random.normal(of_y, (n,)))
        if name == "logistic":
            return dln.Logistic(X, jnp.sign(u + jax.random.logistic(of_y, (n,))))
        if name == "Poisson":
            counts = jax.random.poisson(of_y, jnp.exp(jnp.minimum(u, 3)))
            return dln.Poisson(X, counts.astype(X.dtype))
        return dln.Huber(X, u + jax.random.t(of_y, 2.0, (n,)), 1.0)

    for name in ("square", "logistic", "Poisson", "Huber"):

        @jax.jit
        @jax.vmap
        def study(key, name=name):
            problem = problem_of(name, key)
            s = jnp.geomspace(1.05, 30, TIMES) / jnp.max(jnp.abs(problem.r))
            flow = dln.gradient_flow(network, problem, s, eps=1e-6, throw=False)
            lasso = dln.lasso(problem, s, gap_tol=1e-12, throw=False)
            least = problem.lasso_objective(lasso.x, s)
            above = problem.lasso_objective(flow.x_mean, s) - least
            return above, dln.certificate(problem, flow), least, (flow.result, lasso.result)

        above, bound, least, results = map(jax.device_get, study(keys))
        for kind in results:
            names = {*names_of(kind).ravel()} - {"successful"}
            if names:
                print(f"  {names}")
        known = np.isfinite(above) & np.isfinite(bound)
        below = np.sum(bound[known] < above[known] - 1e-12 * np.abs(least[known]))
        share = (bound / np.maximum(above, 1e-300))[known]
        print(
            f"{name}: {below} of {known.sum()} certificates are below the gap; bound over gap: "
            f"median {np.median(share):.3g}, least {np.min(share):.4g}"
        )


def grokking() -> None:
    n, d = 256, 100_000
    A = lyu24.instance(n, d)
    for rtol in (1e-4, 1e-5):
        for call in ("first call", "next call"):
            began = time.perf_counter()
            flow = lyu24.flow(jnp.asarray(A), jnp.asarray(5.0), jnp.array(lyu24.TIMES), rtol=rtol)
            x, took = np.asarray(flow.x), time.perf_counter() - began
            margin = np.min(x @ A.T, axis=1) / np.sum(np.abs(x), axis=1)
            steps = int(flow.stats["num_steps"])
            print(f"{n} × {d}, rtol {rtol:g}, {call}: {took:.0f} s, {steps} steps, margin {margin}")


PARTS = {part.__name__: part for part in (gap, rate, certificate, grokking)}

if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    for name in sys.argv[1:] or PARTS:
        PARTS[name]()
