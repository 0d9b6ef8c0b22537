"""The tables of `docs/`, from the JSON.

`python -m benchmarks.table [--results DIR] [--write]` prints them; `--write` puts each between its
markers in its page.
"""

import argparse
import json
import math
from pathlib import Path

from ._report import seconds

HERE = Path(__file__).parent


def _digits(ratio: float) -> str:
    return f"{ratio:.2g}" if ratio < 10 else f"{ratio:.0f}"


def speed(results: Path) -> str:
    lines = [
        "| work | dlnjax | error | peer | its time | its error | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    facts = {}
    for name in ("flow", "lasso", "glm", "events", "training"):
        path = results / f"{name}.json"
        if not path.exists():
            continue
        content = json.loads(path.read_text())
        facts = content["machine"]
        for row in content["rows"]:
            ours, *peers = row["solvers"]
            cells = [row["work"], f"{seconds(ours['seconds'])}", _error(ours)]
            for peer in peers:
                theirs = [peer["name"], seconds(peer["seconds"]), _error(peer)]
                lines.append(f"| {' | '.join([*cells, *theirs, _digits(peer['ratio']) + '×'])} |")
                cells = ["", "", ""]
    if facts:
        versions = ", ".join(
            f"{k} {v}" for k, v in facts["versions"].items() if k not in ("dlnjax", "jaxlib")
        )
        lines += ["", f"{facts['cores']} cores of {facts['cpu']}; {versions}."]
    return "\n".join(lines)


def _error(solver: dict) -> str:
    return "failed" if solver["error"] is None else f"{solver['error']:.0e}"


def _range(values: list[float]) -> str:
    median, high, worst = values
    return f"{median:.1e}, {high:.1e}, {worst:.1e}"


def first_calls(results: Path) -> str:
    content = json.loads((results / "startup.json").read_text())
    lines = [
        "| call | size | the first, CPU time | with programs kept on disk | the second |",
        "|---|---|---|---|---|",
    ]
    for row in content["rows"]:
        times = [seconds(row[key]) for key in ("first_cpu", "first_cached_cpu", "second")]
        lines.append(f"| `{row['call']}` | {row['n']} × {row['d']} | {' | '.join(times)} |")
    return "\n".join(lines)


def gradients(results: Path) -> str:
    content = json.loads((results / "gradients.json").read_text())
    lines = [
        "| work | size, lanes | value | value and gradient | kB a lane |",
        "|---|---|---|---|---|",
    ]
    for row in content["rows"]:
        kilobytes = [row[f"{key}_kilobytes_a_lane"] for key in ("forward", "gradient")]
        cells = [
            row["work"],
            f"{row['n']} × {row['d']}, {row['lanes']}",
            seconds(row["forward_seconds"]),
            f"{_digits(row['ratio'])}×",
            ", ".join(f"{value:.3g}" for value in kilobytes),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def gaps(results: Path) -> str:
    content = json.loads((results / "gaps.json").read_text())
    lines = [
        "| n × d | monotone | ε | largest relative gap, monotone | others | others, gap/η |",
        "|---|---|---|---|---|---|",
    ]
    for row in content["gaps"]:
        cells = [
            f"{row['n']} × {row['d']}",
            f"{100 * row['monotone_fraction']:.1f} % of {row['instances']}",
        ]
        for eps, cell in row["eps"].items():
            monotone = cell["relative_gap_monotone"]
            cells += [
                eps,
                _range(monotone) if monotone else "–",
                _range(cell["relative_gap_other"]),
                _range(cell["gap_over_eta_other"]),
            ]
            lines.append(f"| {' | '.join(cells)} |")
            cells = ["", ""]
    return "\n".join(lines)


def limit(results: Path) -> str:
    content = json.loads((results / "gaps.json").read_text())
    lines = ["| n × d | D | log ε | distance | scaled |", "|---|---|---|---|---|"]
    for row in content["limit"]:
        cells = [
            f"{row['n']} × {row['d']}",
            f"{row['depth']:g}",
            f"{row['log_eps']:g}",
            _range(row["distance"]),
            ", ".join(f"{v:.3g}" for v in row["distance_scaled"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def derivatives(results: Path) -> str:
    """Every entry is the worst lane of a size, an `ε`, an argument and a family."""
    content = json.loads((results / "derivatives.json").read_text())
    groups: dict[tuple, list[tuple[float, float]]] = {}
    for row in content["rows"]:
        function = row["function"].partition(",")[0]
        eps = "e^-700" if row["eps"] == "e^-700" else "1e-2 to 1e-20" if row["eps"] else "–"
        pairs = groups.setdefault((function, row["output"], eps), [])
        for family, error in row["differences"].items():
            doubt = float(row["doubt"][family])
            # There is no difference where the problem leaves its domain.
            if doubt < math.inf:
                pairs.append((math.inf if error is None else error, doubt))
    lines = [
        "| function | output | ε | entries | within 1e-6 | worst, differences exact to 1e-8 |",
        "|---|---|---|---|---|---|",
    ]
    for (function, output, eps), pairs in sorted(groups.items()):
        within = sum(error <= 1e-6 for error, _ in pairs) / len(pairs)
        worst = max((error for error, doubt in pairs if doubt <= 1e-8), default=0)
        cells = [function, output, eps, str(len(pairs)), f"{100 * within:.1f} %", f"{worst:.1e}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def cost(results: Path) -> str:
    """Of an instance, on one core."""
    rows = json.loads((results / "cost.json").read_text())["cost"]
    flows = [f"flow, ε = {eps}" for eps in rows[0]["flow"]]
    heads = ["n × d", "network", "path", *flows, "a real run, over this"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        times = [seconds(v) for v in (row["path"], *row["flow"].values())]
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else "–"
        lines.append(f"| {' | '.join([row['size'], row['network'], *times, ratio])} |")
    return "\n".join(lines)


def workers(results: Path) -> str:
    """Of the blocks of a sweep."""
    lines = [
        "| sweep, 3 × 4 | workers | instances/s | over one thread | first sweep, nothing stored | "
        "programs stored |",
        "|---" * 6 + "|",
    ]
    for row in json.loads((results / "sweep.json").read_text())["workers"]:
        firsts = [f"{row[k]:.1f} s" if k in row else "–" for k in ("first_cold", "first_stored")]
        rate = f"{row['instances'] / row['steady']:.0f}"
        cells = [f"{row['instances']} {row['kind']}", row["workers"], rate, f"{row['ratio']:.2f}×"]
        lines.append(f"| {' | '.join([*cells, *firsts])} |")
    return "\n".join(lines)


TABLES = {
    "speed": (speed, "benchmarks.md"),
    "first": (first_calls, "benchmarks.md"),
    "gradients": (gradients, "benchmarks.md"),
    "gaps": (gaps, "how-close.md"),
    "limit": (limit, "how-close.md"),
    "derivatives": (derivatives, "accuracy.md"),
    "cost": (cost, "from-laptop-to-cluster.md"),
    "workers": (workers, "from-laptop-to-cluster.md"),
}


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.table", description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--write", action="store_true", help="into their pages")
    options = parser.parse_args()
    for name, (table, page) in TABLES.items():
        text, begin, end = table(options.results), f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        print(text)
        path = HERE.parent / "docs" / page
        content = path.read_text(encoding="utf-8")
        if begin not in content or end not in content:
            parser.error(f"docs/{page} has no lines {begin} and {end}")
        if options.write:
            before, _, rest = content.partition(begin)
            content = f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"
            path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
