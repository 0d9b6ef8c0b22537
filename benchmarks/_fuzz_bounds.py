"""Beyond which numbers a result of `fuzz` is wrong; `_fuzz_checks.py` says what they are."""

from ._fuzz_problems import Config


def wrong(config: Config) -> dict[str, float]:
    """Beyond these, results are wrong."""
    single = config.dtype == "float32"
    kkt = 2e-3 if single else 1e-6  # flagged is what violates them by √eps: 3.5e-4, 1.5e-8
    # Steps of flows are to 1e-4 and 1e-7 in `w`; there are some hundred, and some of those count.
    step = 2e-2 if single else 1e-5
    limits = dict.fromkeys(("path", "limit", "end", "limit_point", "basis_pursuit"), kkt)
    limits |= dict.fromkeys(("end, link", "end, range"), kkt)
    limits |= dict.fromkeys(("limit_point, norm", "basis_pursuit, norm"), kkt)
    # Of entries as small as 1e-6 of the largest one (float32: 1e-4), which are as exact as that.
    limits |= dict.fromkeys(("limit, selection", "limit_point, selection"), 0.1 if single else 1e-4)
    limits |= {"lasso": 1.01, "lasso, bound": 1e-3 if single else 1e-9}
    limits |= {"flow, dual": step, "flow, link": step, "flow, bound": step, "flow, far": step}
    limits |= {"flow, certificate": step, "flow, last": 1e-3 if single else 1e-8}
    limits |= {"flow, scipy x": 10 * step, "flow, scipy x_mean": step, "limit, scipy": kkt * 10}
    limits |= {f"{name}, copies": step for name in ("path", "limit", "flow", "end", "limit_point")}
    return limits


def least_share(config: Config) -> float:
    """Of the largest `x` of a flow: before it moves the average is smaller, and has fewer digits,
    since the tolerance of `z = s x̄` is absolute: 1e-7 of the largest one. At `D > 2` most of the
    way to the jump is of powers of ten."""
    if config.depth > 2:
        return 1.0
    return 0.1 if config.dtype == "float32" else 1e-2
