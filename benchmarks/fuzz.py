"""`python -m benchmarks.fuzz [--problems N] [--minutes M] [--workers W] [--seed K] [--out DIR]`:
random problems, most of them degenerate or badly scaled, through `lasso_path`, `limit_flow`,
`gradient_flow`, `end_point`, `limit_point`, `lasso` and `basis_pursuit`.

`_fuzz_problems.py` draws them, `_fuzz_solve.py` solves them, `_fuzz_checks.py` and `_fuzz_flow.py`
check each result that is not flagged: what is beyond the bounds there is *wrong*. A flag on a
well-conditioned problem (`_fuzz_conditioning.py`) is counted apart, and so is bad input that is not
flagged, or for another cause. Prints a tally and writes fuzz.json, which names seed and lane of the
worst wrong results: `--case SEED,CONFIG,ROUND,BATCH,LANE` prints such a problem. What each worker
has so far is in fuzz-part-*.json: with the same options a run goes on from there, and removes them
at its end.
"""

import argparse
import json
import multiprocessing
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np

import dlnjax as dln
from dlnjax._results import result_names

from ._fuzz_bounds import wrong
from ._fuzz_checks import violations
from ._fuzz_conditioning import conditioning, diverges, is_told, is_well
from ._fuzz_flow import flow_violations, scipy_flow, scipy_limit
from ._fuzz_problems import BAD, CONFIGS, Arrays, Config, batch
from ._fuzz_solve import FUNCTIONS, retried, solve
from ._report import write

KEPT = 20  # cases of each kind that are named
CAUSES = {
    "r off the range": "invalid_problem",
    "negative decay": "invalid_decay",
    "degenerate shape": "invalid_shape",
    "nan in start": "invalid_start",
}
CAUSES |= dict.fromkeys(("nan in X", "inf in X", "nan in y"), "invalid_data")
CAUSES |= dict.fromkeys(("indefinite M", "asymmetric M"), "invalid_problem")
CAUSES |= dict.fromkeys(("log_eps = 0", "log_eps = nan"), "invalid_eps")
CAUSES |= dict.fromkeys(("unsorted s", "negative s", "mu = 0"), "invalid_grid")
CAUSES |= dict.fromkeys(("nan in weights", "negative weight"), "invalid_weights")


def takes_free_weights() -> bool:
    """Whether `lasso_path` takes weights 0 and ∞."""
    try:
        dln.lasso_path(dln.LeastSquares(np.eye(2), np.ones(2)), weights=np.array([0.0, np.inf]))
    except ValueError:
        return False
    return True


class Tally:
    """What was seen, as numbers and lists that JSON can hold."""

    def __init__(self, content: dict[str, Any] | None = None):
        new: dict[str, Any] = {"problems": 0, "round": 0, "bad": {}, "scipy": {}}
        new |= {key: {} for key in ("seconds", "results", "families", "counts", "cases", "worst")}
        self.content = content or new

    def count(self, table: str, *keys: str, by: int = 1) -> None:
        at = self.content[table]
        for key in keys[:-1]:
            at = at.setdefault(key, {})
        at[keys[-1]] = at.get(keys[-1], 0) + by

    def case(self, kind: str, name: str, of: dict[str, Any]) -> None:
        """One of `wrong` and the other kinds."""
        self.count("counts", kind, name)
        self.count("families", of["family"], kind)
        kept = self.content["cases"].setdefault(kind, {}).setdefault(name, [])
        kept.append(of)
        kept.sort(key=lambda case: -case["value"])
        del kept[KEPT:]

    def add(self, other: "Tally") -> None:
        _merge(self.content, other.content)


def _merge(a: dict, b: dict) -> None:
    for key, value in b.items():
        if isinstance(value, dict) and "value" not in value:
            _merge(a.setdefault(key, {}), value)
        elif isinstance(value, dict):
            a[key] = max(a.get(key, value), value, key=lambda case: case["value"])
        elif isinstance(value, list):
            a[key] = sorted(a.get(key, []) + value, key=lambda case: -case["value"])[:KEPT]
        else:
            a[key] = a.get(key, 0) + value


def judge(tally: Tally, config: Config, seed: list[int], a: Arrays, out: Arrays) -> None:
    """Check a batch, and count."""
    names = result_names()
    codes = {name: v if v.ndim == 1 else v.max(axis=1) for name, v in out["results"].items()}
    is_fine = a["bad"] == ""
    limits = wrong(config)
    described = lambda lane, value: {
        "value": float(value),
        "seed": seed,
        "lane": int(lane),
        "config": config.name,
        "family": str(a["family"][lane]),
        "defects": str(a["defects"][lane]),
    }
    tally.content["problems"] += len(is_fine)
    for family, number in Counter(a["family"].tolist()).items():
        tally.count("families", family, "problems", by=number)

    found = violations(config, a, out)
    if "flow" in out:
        found |= flow_violations(config, a, out)
    found |= _by_scipy(tally, config, seed, a, out, codes, is_fine)
    for name, value in found.items():
        function = name.split(",")[0]
        good = is_fine & (codes[function] == 0)
        kept = np.where(good & (value <= limits[name]), value, 0)
        lane = int(np.argmax(kept))
        kind = f"{name}, {config.dtype}"
        if kept[lane] > tally.content["worst"].get(kind, {"value": 0})["value"]:
            tally.content["worst"][kind] = described(lane, kept[lane])
        for lane in np.flatnonzero(good & ~(value <= limits[name])).tolist():
            if _counts(config, a, lane, name, value[lane] / limits[name]):
                tally.case("wrong", name, described(lane, min(value[lane], 1e300)))

    for function in codes:
        for code, number in Counter(codes[function][is_fine].tolist()).items():
            tally.count("results", config.name, function, names[code], by=number)
        flags = np.flatnonzero(is_fine & (codes[function] != 0))
        for lane in flags.tolist():
            tally.count("families", str(a["family"][lane]), "flagged")
            case = described(lane, 1.0) | {"result": names[codes[function][lane]]}
            if not is_well(config, a, lane):
                continue
            if not is_told(config, a, lane, function, case["result"]):
                continue
            if _has_no_quadratic(config, a, lane, case["result"]):
                continue
            if function == "flow" and not retried(config, a, lane):
                continue
            tally.case("flagged though well-conditioned", f"{function}, {case['result']}", case)
    for lane in np.flatnonzero(~is_fine).tolist():
        bad = str(a["bad"][lane])
        for function in codes.keys() & BAD[bad]:
            name = names[codes[function][lane]]
            tally.count("bad", bad, name)
            case = described(lane, 1.0) | {"result": name}
            if codes[function][lane] == 0:
                tally.case("bad input unflagged", f"{function}, {bad}", case)
            elif name not in (CAUSES[bad], "invalid_input") and not (
                # A second fault.
                _has_no_quadratic(config, a, lane, name)
                or (name == "invalid_problem" and not is_well(config, a, lane))
                or (name == "start_too_large" and not is_told(config, a, lane, function, name))
            ):
                tally.case("bad input, other cause", f"{function}, {bad}, {name}", case)


def _has_no_quadratic(config: Config, a: Arrays, lane: int, name: str) -> bool:
    """Whether `r` is not in the range of `M`, where that has lost a difference of columns."""
    if name != "invalid_problem" or config.problem != "Quadratic":
        return False
    norms = np.sqrt(np.diag(a["M"][lane]))
    norms = np.where(norms > 0, norms, 1)
    r = a["r"][lane] / norms
    values, V = np.linalg.eigh(a["M"][lane] / norms[:, None] / norms)
    lost = V[:, values < 64 * config.eps * values[-1]].T @ r
    return bool(np.max(np.abs(lost), initial=0) > 1e3 * config.eps * np.linalg.norm(r))


def _counts(config: Config, a: Arrays, lane: int, name: str, ratio: float) -> bool:
    """Whether what exceeds the bound is wrong: comparisons with another result of the same ask for
    a problem that determines the result, and lose as many digits as its condition number has."""
    if "copies" not in name and "scipy" not in name:
        return True
    known = conditioning(config, a, lane)
    if not (known.is_general and known.is_clear and is_well(config, a, lane)):
        return False
    if name == "end, copies" and config.positive and diverges(a["X"][lane], a["y"][lane]):
        return False
    if name == "path, copies" and np.sum(a["weights"][lane].min(axis=0) == 0) > config.n:
        return False  # more columns are free than any fit needs
    is_tied = a["family"][lane] != "normal" or "explained" in str(a["defects"][lane])
    return ratio > max(known.worst / 10, 1) and not ("copies" in name and is_tied)


def _by_scipy(
    tally: Tally, config: Config, seed: list[int], a: Arrays, out: Arrays, codes, is_fine
) -> dict[str, np.ndarray]:
    """Of one flow and one limit process of a batch."""
    found = {}
    # SciPy takes a second for a flow, and far more for large ones.
    every = (seed[-2] + seed[-1]) % 8 if config.d < 12 else 1
    none = np.ones(len(is_fine), int)
    good = np.flatnonzero(is_fine & (codes.get("flow", none) == 0) & ~a["is_far"])
    for lane in good[: every in (0, 4)].tolist():
        errors = scipy_flow(config, a, out, lane)
        tally.count("scipy", "flow", "failed" if errors is None else "done")
        for name, error in (errors or {}).items():
            found[name] = np.zeros(len(is_fine))
            found[name][lane] = error
    good = is_fine & (codes.get("limit", none) == 0) & ~np.any(a["start"] != 0, axis=1)
    good = np.flatnonzero(good)
    for lane in good[: every == 2].tolist():
        error = scipy_limit(config, a, out, lane)
        tally.count("scipy", "limit", "failed" if error is None else "done")
        found["limit, scipy"] = np.zeros(len(is_fine))
        found["limit, scipy"][lane] = error or 0
    return found


def work(options: argparse.Namespace, worker: int) -> None:
    """Its part of the programs, round by round."""
    jax.config.update("jax_enable_x64", True)
    part = options.out / f"fuzz-part-{worker}.json"
    settings = [options.seed, options.workers, [config.name for config in CONFIGS]]
    tally, spent = Tally(), 0.0
    if part.exists():
        stored = json.loads(part.read_text())
        if stored["settings"] == settings:
            tally, spent = Tally(stored["tally"]), stored["seconds"]
    free, start = takes_free_weights(), time.perf_counter()
    seconds = lambda: spent + time.perf_counter() - start
    goal = options.problems / options.workers
    is_done = lambda: tally.content["problems"] >= goal or seconds() > 60 * options.minutes
    while not is_done():
        now = tally.content["round"]
        for index in (options.configs or range(len(CONFIGS)))[worker :: options.workers]:
            for number in range(CONFIGS[index].batches):
                if is_done():
                    break
                seed = [options.seed, index, now, number]
                a = batch(CONFIGS[index], seed, free, not options.only_valid)
                out = solve(CONFIGS[index], a, options.functions)
                judge(tally, CONFIGS[index], seed, a, out)
                for name, spent_on in out["seconds"].items():
                    tally.count("seconds", name, by=spent_on)
                content = {"settings": settings, "seconds": seconds(), "tally": tally.content}
                part.write_text(json.dumps(content))
        tally.content["round"] += 1
        counts = {kind: sum(of.values()) for kind, of in tally.content["counts"].items()}
        print(f"worker {worker}: {tally.content['problems']} problems, {seconds():.0f} s, {counts}")


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--problems", type=int, default=1_000_000)
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--configs", type=int, nargs="*", help="of CONFIGS, by number; all")
    parser.add_argument("--functions", nargs="*", choices=FUNCTIONS, default=FUNCTIONS)
    parser.add_argument("--only-valid", action="store_true", help="no bad input")
    parser.add_argument("--case", help="SEED,CONFIG,ROUND,BATCH,LANE: print one problem")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if options.case:
        *seed, lane = map(int, options.case.split(","))
        a = batch(CONFIGS[seed[1]], seed, takes_free_weights())
        print({key: value[lane].tolist() for key, value in a.items()})
        return
    options.out.mkdir(parents=True, exist_ok=True)
    if options.workers == 1:
        work(options, 0)
    else:
        # Fresh processes, one on each core: forked ones would share what JAX has started.
        run = multiprocessing.get_context("spawn")
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        processes = [run.Process(target=work, args=(options, k)) for k in range(options.workers)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    parts = [options.out / f"fuzz-part-{k}.json" for k in range(options.workers)]
    stored = [json.loads(part.read_text()) for part in parts if part.exists()]
    tally = Tally()
    for part in stored:
        tally.add(Tally(part["tally"]))
    settings = {"seed": options.seed, "workers": options.workers, "wrong": wrong(CONFIGS[0])}
    settings |= {"wrong_float32": wrong(Config(1, 1, dtype="float32"))}
    minutes = round(max(part["seconds"] for part in stored) / 60, 1)
    write(options.out, "fuzz", {"settings": settings, "minutes": minutes} | tally.content)
    report(tally.content)
    for part in parts:
        part.unlink(missing_ok=True)


def report(content: dict[str, Any]) -> None:
    print(f"{content['problems']} problems")
    for config, functions in content["results"].items():
        print(config)
        for function, results in functions.items():
            print(f"  {function:14s} {results}")
    for kind, of in content["counts"].items():
        print(f"{kind}: {sum(of.values())}")
        for name, number in sorted(of.items()):
            first = content["cases"][kind][name][0]
            where = ",".join(map(str, [*first["seed"], first["lane"]]))
            print(f"  {name}: {number}, worst {first['value']:.2g} at {where} ({first['defects']})")
    for name, case in sorted(content["worst"].items()):
        print(f"  worst of what is right: {name}: {case['value']:.1e}")


if __name__ == "__main__":
    main()
