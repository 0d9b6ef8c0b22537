"""How exact: `python -m benchmarks.accuracy` measures the figures of docs/accuracy.md.

Against SciPy's Radau, scikit-learn's `lars_path`, and, for the certificate, the exact gap.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from scipy.integrate import solve_ivp
from sklearn.linear_model import lars_path

import dlnjax as dln
from dlnjax.cli.data import load, standardize
from tests.families import kkt_violation

LOG_EPS = {
    "1e-2": math.log(1e-2),
    "1e-5": math.log(1e-5),
    "1e-20": math.log(1e-20),
    "1e-100": math.log(1e-100),
    "e^-2000": -2000.0,
}
NETWORKS = {
    "uv": lambda d: dln.UV(jnp.ones(d), jnp.zeros(d)),
    "usquared": lambda d: dln.USquared(jnp.ones(d)),
}


def radau(X, y, network: str, log_eps: float, weight_decay: float, s) -> np.ndarray:
    """`z(s)` by SciPy on the dual form, written here from DESIGN §2 and nothing else."""
    size, (n, d) = -log_eps, X.shape
    signs = np.array([[1.0], [-1.0]]) if network == "uv" else np.array([[1.0]])
    start = 1 - np.log(0.25 if network == "uv" else 1.0) / size

    def q(t, state):
        return np.exp(-size * (start - signs * (X.T @ state[:n]) + weight_decay * t))

    def field(t, state):
        x = (signs * q(t, state)).sum(axis=0)
        return np.concatenate([y - X @ x, x])

    def jacobian(t, state):
        slope = size * q(t, state).sum(axis=0)
        J = np.zeros((n + d, n + d))
        J[:n, :n] = -(X * slope) @ X.T
        J[n:, :n] = slope[:, None] * X.T
        return J

    with np.errstate(all="ignore"):  # trial steps overflow
        solution = solve_ivp(
            field, (0, s[-1]), np.zeros(n + d), "Radau", s, rtol=1e-11, atol=1e-13, jac=jacobian
        )
    return solution.y[n:].T


def flow_accuracy(instances: int = 6) -> None:
    print(
        "\ngradient_flow against SciPy Radau (rtol 1e-11): max error of x_mean, default tolerances"
    )
    s = np.linspace(0.1, 20, 50)
    for shape in [(3, 4), (10, 20), (10, 5)]:
        rng = np.random.default_rng(0)
        data = [(rng.normal(size=shape), rng.normal(size=shape[0])) for _ in range(instances)]
        for label, log_eps in LOG_EPS.items():
            worst, steps = 0.0, []
            for i, (X, y) in enumerate(data):
                network, decay = ("uv", "usquared")[i % 2], (0.0, 0.3)[i // 2 % 2]
                problem = dln.LeastSquares(X, y, decay)
                flow = dln.gradient_flow(NETWORKS[network](shape[1]), problem, s, log_eps=log_eps)
                reference = radau(X, y, network, log_eps, decay, s) / s[:, None]
                worst = max(worst, float(np.max(np.abs(flow.x_mean - reference))))
                steps.append(int(flow.stats["num_steps"]))
            print(
                f"  {shape[0]:3d} × {shape[1]:<3d} ε = {label:8s} {worst:.1e}  steps {max(steps)}"
            )


def weight_form_accuracy() -> None:
    print("\nweight form against dual form: max difference of x_mean (3 × 4, s ≤ 20)")
    rng = np.random.default_rng(1)
    s = jnp.linspace(0, 20, 50)
    for eps in (1e-1, 1e-2, 1e-5):
        worst = 0.0
        for network in NETWORKS.values():
            problem = dln.LeastSquares(rng.normal(size=(3, 4)), rng.normal(size=3))
            dual = dln.gradient_flow(network(4), problem, s, eps=eps)
            weights = dln.gradient_flow(
                network(4), problem, s, eps=eps, formulation=dln.WeightForm()
            )
            worst = max(worst, float(jnp.max(jnp.abs(dual.x_mean - weights.x_mean))))
        print(f"  ε = {eps:g}: {worst:.1e}")


def path_accuracy(instances: int = 200) -> None:
    print(f"\nlasso_path against scikit-learn lars_path, {instances} generic instances a shape")
    solve = eqx.filter_jit(eqx.filter_vmap(lambda X, y: dln.lasso_path(dln.LeastSquares(X, y))))
    for n, d in [(3, 4), (10, 6), (20, 40), (50, 100)]:
        rng = np.random.default_rng(2)
        X, y = rng.normal(size=(instances, n, d)), rng.normal(size=(instances, n))
        paths = solve(X, y)
        difference = violation = 0.0
        for i in range(instances):
            alpha, _, coef = lars_path(X[i], y[i], method="lasso")
            kept = alpha * n > 1e-9 * np.abs(X[i].T @ y[i]).max()  # their last point is κ = 0
            path = jax.tree.map(lambda v, i=i: v[i], paths)
            mu = np.pad(1 / (alpha[kept] * n), (0, 400), mode="edge")[:400]
            x = np.asarray(path.x(mu))
            reference = coef.T[kept]
            error = np.abs(x[: len(reference)] - reference).max() / np.abs(reference).max()
            difference = max(difference, error)
            ratio = kkt_violation(X[i], y[i], x, 1 / mu).max() / np.abs(X[i].T @ y[i]).max()
            violation = max(violation, ratio)
        print(f"  {n:3d} × {d:<4d} max relative difference {difference:.1e}, KKT {violation:.1e}")
    X, y = standardize(load("diabetes"))[1:3]
    alpha = lars_path(X, y, method="lasso")[0] * len(y)
    path = dln.lasso_path(dln.LeastSquares(X, y))
    ours = 1 / np.asarray(path.knots[: path.num_knots])
    error = np.max(np.abs(ours / alpha[:-1] - 1))
    print(
        f"  diabetes: {len(ours)} knots against {len(alpha) - 1}, relative difference {error:.1e}"
    )


def certificate_margin(instances: int = 20) -> None:
    print(
        "\ncertificate − gap over (instance, s) pairs, relative to the objective: the least value"
    )
    s = jnp.geomspace(0.05, 50, 20)
    pairs, least = 0, math.inf
    for n, d in [(3, 4), (10, 20), (10, 5)]:
        for network in NETWORKS.values():
            for decay in (0.0, 0.3):

                @eqx.filter_jit
                @jax.vmap
                def margin(key, n=n, d=d, network=network, decay=decay):
                    x_key, y_key = jr.split(key)
                    problem = dln.LeastSquares(
                        jr.normal(x_key, (n, d)), jr.normal(y_key, (n,)), decay
                    )
                    net = network(d)
                    path = dln.lasso_path(problem, positive=net.positive, throw=False)
                    flow = dln.gradient_flow(net, problem, s, eps=1e-5, throw=False)
                    gap = dln.suboptimality_gap(problem, flow.x_mean, s, path=path)
                    bound = dln.certificate(problem, flow)
                    return (bound - gap.absolute) / problem.lasso_objective(flow.x_mean, s)

                values = margin(jr.split(jr.key(3), instances))
                pairs += values.size
                least = min(least, float(jnp.min(values)))
    print(f"  {pairs} pairs: {least:.1e}")


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    path_accuracy()
    certificate_margin()
    weight_form_accuracy()
    flow_accuracy()
