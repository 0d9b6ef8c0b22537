"""The README's table of speed, from the JSON.

`python -m benchmarks.table [--results DIR] [--write]` prints it; `--write` puts it between
the markers of the README.
"""

import argparse
import json
from pathlib import Path

from ._report import seconds

BEGIN, END = "<!-- speed:begin -->", "<!-- speed:end -->"
HERE = Path(__file__).parent


def _digits(ratio: float) -> str:
    return f"{ratio:.2g}" if ratio < 10 else f"{ratio:.0f}"


def table(results: Path) -> str:
    lines = [
        "| work | dlnjax | error | peer | its time | its error | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    facts = {}
    for name in ("flow", "lasso"):
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


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.table", description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--write", action="store_true", help="into the README")
    options = parser.parse_args()
    text = table(options.results)
    print(text)
    if options.write:
        readme = HERE.parent / "README.md"
        content = readme.read_text()
        if BEGIN not in content or END not in content:
            parser.error(f"{readme.name} has no lines {BEGIN} and {END}")
        before, _, rest = content.partition(BEGIN)
        readme.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
