"""The notebooks: committed as executed from top to bottom, and they still run, at tiny sizes."""

import json
from pathlib import Path

import jax
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
# What the cell tagged `parameters` is replaced by, for each notebook.
TINY = {
    "worst_case": "seeds, sizes = range(2), dict(sample=64, restarts=2, steps=5, points=20)",
    "learned_shape": "seeds, sizes = range(2), dict(tasks=6, steps=5, points=10)",
    "discrete_steps": "seeds, steps = 2, 2000",
    "early_stopping": 'name, splits = "diabetes", 2',
    "which_minimum": "lanes, bisections = 16, 3",
    "choosing": "sizes, weight_decades, decades, repeats = [-5, -25], [2, 4], (3, 4), 1\n"
    'rtols = {"float64": (1e-7,)}',
    "sweeps": "flows, paths, eps, sizes = 20, 20, [1e-2, 1e-5], [(2, 3), (3, 4)]",
    "quickstart": "rows, columns, lanes, points = 3, 4, 4, 50",
    "lasso_path_inside_training": "instances, trained, points = 100, 10, 50",
    "saddle_to_saddle": "points, designs = 50, 10",
    "classification": "points, instances = 12, 2",
    "fine_tuning": "points, instances = 12, 2",
    "neighbours": "instances, functions, draws = 2, 2, 2",
}
notebooks = pytest.mark.parametrize("name", TINY)


def path(name: str) -> Path:
    return FOLDER / f"{name}.ipynb"


def code_cells(name: str) -> list[dict]:
    notebook = json.loads(path(name).read_text())
    assert notebook["nbformat"] == 4
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def is_parameters(cell) -> bool:
    return "parameters" in cell["metadata"].get("tags", [])


def test_each_notebook_is_here():
    assert {notebook.stem for notebook in FOLDER.glob("*.ipynb")} == set(TINY)


@notebooks
def test_was_executed_in_order_without_error(name):
    cells = code_cells(name)
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert all(output["output_type"] != "error" for output in outputs)
    assert all(output.get("name") != "stderr" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    # All but these two show something: imports, and the sizes.
    assert all(cell["outputs"] for cell in cells[2:])
    assert [i for i, cell in enumerate(cells) if is_parameters(cell)] == [1]
    assert path(name).stat().st_size < 300_000


@notebooks
def test_runs_at_tiny_sizes(name, monkeypatch):
    """In this process: a kernel for each would take longer than the cells."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.chdir(FOLDER)
    monkeypatch.setattr(pyplot, "show", lambda: pyplot.close("all"))
    names = {"__name__": "__main__"}
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for number, cell in enumerate(code_cells(name)):
            source = TINY[name] if is_parameters(cell) else "".join(cell["source"])
            lines = [line for line in source.splitlines() if not line.startswith("%")]
            exec(compile("\n".join(lines), f"{name}.ipynb, code cell {number}", "exec"), names)
    pyplot.close("all")
