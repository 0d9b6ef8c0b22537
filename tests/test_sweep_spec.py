"""`dlnjax sweep`: files, what is wrong in them, what it prints and draws. Nothing is solved."""

import functools
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray
from matplotlib.figure import Figure

import dlnjax as dln
from dlnjax._sweep.lock import driving
from dlnjax._sweep.summary import failures, not_computed, summary
from dlnjax._sweep.toml import SpecError, read_sweep
from dlnjax.cli.workers import check_options
from dlnjax.plot import sweep, sweep_figures

ROOT = Path(__file__).parents[1]
GOOD = """# A sweep.
sizes = [[3, 4], [5, 8]]
instances = 100
networks = ["uv", ["deep", 3.0]]
eps = [1e-5,
       1e-20]
metrics = ["is_monotone", "max_gap"]
"""
MINE = """
import jax.numpy as jnp, numpy as np, dlnjax as dln
data = dln.generators.Given(np.ones((5, 2, 3)), np.ones((5, 2)))
def scale(problem): return jnp.sum(problem.r**2)
def decay(problem, log_eps): return scale(problem) / -log_eps
def falling(problem, log_eps, s): return decay(problem, log_eps) * jnp.exp(-s)
falling = dln.Metric(falling, dims=("s",))
def short(problem): return problem.r
def broken(problem): return problem.nothing
"""


@pytest.fixture
def spec(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mine.py").write_text(MINE)
    yield tmp_path / "spec.toml"
    sys.modules.pop("mine", None)


def test_what_is_read(spec):
    spec.write_text(
        GOOD.replace('"max_gap"', '"mine:scale"') + 'generator = ["toeplitz", 0.5]\n'
        "s = { points = 50, after = 3.0 }\nweight_decay = [0.0]\nrtol = 1e-4\nkey = 3"
    )
    read = read_sweep(spec)
    scale = sys.modules["mine"].scale
    ours = dln.Sweep(
        sizes=[(3, 4), (5, 8)],
        instances=100,
        networks=["uv", ("deep", 3.0)],
        eps=[1e-5, 1e-20],
        generator=("toeplitz", 0.5),
        s=dln.KnotGrid(50, after=3.0),
        metrics=["is_monotone", scale],
        rtol=1e-4,
        key=3,
    )
    assert read.describe() == ours.describe()


def test_own_data_needs_no_sizes(spec):
    spec.write_text('generator = "mine:data"\n[metrics]\nof_data = "mine:scale"')
    read = read_sweep(spec)
    assert (read.instances, read.sizes, list(read.metrics)) == (5, ((2, 3),), ["of_data"])


@pytest.mark.parametrize(
    "old, new, line, words",
    [
        ("sizes =", "sizes ==", 2, "not TOML"),
        ("1e-20]", "1e-20", 7, "not TOML"),
        ("# A sweep.", "sizs = 1", 1, "no key `sizs`. Did you mean `sizes`?"),
        ("# A sweep.", "colour = 1", 1, "no key `colour`. There are sizes, instances"),
        ("# A sweep.", "[sweep]", 1, "no key `sweep`"),
        ("instances = 100\n", "", 6, "`instances` is missing. Add, say, `instances = 1000`"),
        ("metrics =", "#", 7, '`metrics` is missing. Add, say, `metrics = ["is_monotone"]`'),
        ("100", "0", 3, "must be a positive integer, got 0"),
        ("100", "true", 3, "must be a positive integer, got True"),
        ("[[3, 4], [5, 8]]", "[3, 4]", 2, "`sizes` are pairs (n, d)"),
        ("[[3, 4], [5, 8]]", "3", 2, "`sizes` is a list of pairs"),
        ("[5, 8]", "[3, 4]", 2, "none twice"),
        ('"uv"', '"vv"', 4, "no network 'vv': there are 'uv'"),
        ('["deep", 3.0]', '"deep"', 4, "no network 'deep'"),
        ("3.0", "1.5", 4, "at least 2"),
        ('["uv", ["deep", 3.0]]', '"uv"', 4, "Use ['uv']"),
        ("1e-5,", "1.0,", 5, "`eps` must lie in (0, 1), got 1.0"),
        ("1e-20]", "1e-5]", 5, "the same value twice"),
        ("eps", "log_eps", 5, "`log_eps` must lie in"),
        ("eps = [1e-5,\n       1e-20]\n", "", 5, "'max_gap' depends on ε: pass `eps"),
        ("max_gap", "gap", 7, "no metric 'gap': there are is_monotone"),
        ('["is_monotone", "max_gap"]', '{ size = "max_gap" }', 7, "cannot use the name 'size'"),
        ("max_gap", "yours:size", 7, "module 'yours', which is neither in"),
        ("max_gap", "mine:nothing", 7, "no 'nothing' in the module 'mine'"),
        ('is_monotone", "max_gap', "mine:short", 7, "returns shape (4,) at size 3×4"),
        ('is_monotone", "max_gap', "mine:broken", 7, "In the metric 'broken', at size 3×4"),
        ("# A sweep.", "weight_decay = [0.1]", 1, "depth 3.0 takes no weight decay"),
        ("# A sweep.", "weight_decay = [-1.0]", 1, "`weight_decay` must lie in"),
        ("# A sweep.", 'generator = "normal"', 1, "no generator 'normal': there are gaussian"),
        ("# A sweep.", 'generator = ["planted", 7]', 1, "7 nonzeros, but d = 4"),
        ("# A sweep.", 'generator = "z_matrix"', 1, "square designs, got n = 3 and d = 4"),
        ("# A sweep.", "log_eps = [-9.0]", 1, "`eps` or `log_eps`, not both"),
        ("# A sweep.", "s = [2, 1]", 1, "increasing"),
        ("# A sweep.", "s = { point = 3 }", 1, "`s` has no 'point': as a table it has points"),
        ("# A sweep.", "s.before = 2.0", 1, "0 < before ≤ 1 ≤ after"),
        ("# A sweep.", "rtol = 2.0", 1, "`rtol` must lie in (0, 1)"),
        ("# A sweep.", "max_steps = 0", 1, "`max_steps` must be a positive integer"),
        ("# A sweep.", "key = 1979-05-27", 1, "`key` must be an integer"),
        ('"max_gap"]', '"max_gap"]\n[s]\npoints = 1', 8, "at least 2 `points`"),
    ],
)
def test_errors_name_file_line_and_fix(spec, old, new, line, words):
    spec.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(SpecError) as error:
        read_sweep(spec)
    assert str(error.value).startswith(f"{spec}, line {line}: ")
    assert words in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(SpecError, match="Cannot read .*: No such file"):
        read_sweep(tmp_path / "nothing.toml")
    (tmp_path / "latin.toml").write_bytes(b"# \xe9")
    with pytest.raises(SpecError, match="save it"):
        read_sweep(tmp_path / "latin.toml")


CHEAP = """sizes = [[2, 3], [3, 4]]
instances = 40
networks = ["uv"]
eps = [1e-5, 1e-20]
s = [0, 1, 2]
metrics = ["mine:scale", "mine:decay", "mine:falling"]
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a file, and what the command makes of it in `results`."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "mine.py").write_text(MINE)
    (folder / "spec.toml").write_text(CHEAP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        dln.run_sweep(read_sweep(folder / "spec.toml"), folder / "results" / "sweep.zarr")
    sys.modules.pop("mine")
    return folder


@pytest.fixture
def run(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    return functools.partial(run, "sweep")


def test_command(finished, run):
    spec, out = finished / "spec.toml", finished / "results"
    code, text, _ = run(spec, "--out", out, "--resume")
    assert code == 0 and "40 instances × 2 sizes × 2 values of ε: done" in text
    names = ["decay-scaling", "falling", "scale-sizes"]
    assert sorted(file.stem for file in out.glob("*.png")) == names
    assert sum(line.startswith("scale") for line in text.splitlines()) == 2
    code, _, message = run(spec, "--out", out)
    assert code == 1 and "already. Pass `--resume`" in message
    other = spec.with_name("other.toml")
    other.write_text(CHEAP.replace("40", "41"))
    code, _, message = run(other, "--out", out, "--resume")
    assert code == 1 and "differs in 'instances'" in message and "Traceback" not in message


@pytest.mark.parametrize("signal_, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_command(spec, run, monkeypatch, signal_, code):
    before = signal.getsignal(signal.SIGTERM)
    # Tests that were started in the background ignore it.
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupted(*_, **__):
        os.kill(os.getpid(), signal_)
        time.sleep(60)  # another thread may be the one that the signal reaches first

    monkeypatch.setattr("dlnjax._sweep.run.run_sweep", interrupted)
    spec.write_text(CHEAP)
    try:
        got, _, message = run(spec, "--out", spec.parent)
    finally:
        signal.signal(signal.SIGINT, ours)
    again = f"dlnjax sweep {spec} --out {spec.parent} --resume"
    assert got == code and message.rstrip().endswith(again)
    assert signal.getsignal(signal.SIGTERM) == before


def test_tables_are_whole_off_a_terminal(finished, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    code, text, _ = run(finished / "spec.toml", "--out", finished / "results", "--resume")
    rows = [line.split() for line in text.splitlines() if line.startswith("decay ")]
    # Metric, size, ε, mean, standard error, median, 95 %, largest: over 40 columns.
    assert code == 0 and [len(row) for row in rows] == [8] * 4 and "…" not in text


def test_two_drivers(finished, run, monkeypatch):
    """The second one says who drives, and ends with a code of its own, or waits."""
    store = finished / "results" / "sweep.zarr"
    command = finished / "spec.toml", "--out", finished / "results", "--resume"
    with driving(store):
        code, text, message = run(*command)
        assert code == 75 and not text
        assert f"computed by process {os.getpid()} on" in message and "--wait" in message
    other = driving(store)
    other.__enter__()
    monkeypatch.setattr("dlnjax.cli.sweep._POLL", 0)
    monkeypatch.setattr("time.sleep", lambda _: other.__exit__(None, None, None))
    code, text, message = run(*command, "--wait")
    assert code == 0 and "Waiting" in message and "done" in text


@pytest.mark.parametrize(
    "args, code, words",
    [
        (["--out", "OUT", "--workers", "0"], 2, "--workers"),
        (["--out", "OUT", "--workers", "2", "--scheduler", "tls://a:1"], 2, "not both"),
        (["--out", "OUT", "--scheduler", "node7:8786"], 2, "can run code as you"),
        (["--out", "OUT", "--scheduler", "tcp://127.evil.org:8786"], 2, "or pass --insecure"),
        (["--out", "OUT", "--memory", "0"], 2, "must be positive"),
        ([], 2, "--out"),
        (["--out", "SPEC"], 1, "Cannot create the folder"),
    ],
)
def test_bad_calls(spec, run, args, code, words):
    spec.write_text(CHEAP)
    places = {"OUT": spec.parent / "out", "SPEC": spec}
    got, _, message = run(spec, *(places.get(arg, arg) for arg in args))
    assert got == code and words in " ".join(message.replace("│", " ").split())


def test_schedulers_that_others_cannot_reach():
    for address in ("localhost:8786", "tcp://127.0.0.1:8786", "tcp://[::1]:1", "tls://node7:8786"):
        check_options(None, address, insecure=False)
    check_options(None, "node7:8786", insecure=True)


def test_summary_and_figures_of_unfinished_sweeps(finished):
    """Against NumPy; with lanes that failed, and whole cells missing."""
    data = dln.open_sweep(finished / "results" / "sweep.zarr").load()
    data["falling"][0, 0, :3] = np.nan
    data["falling"][1] = data["decay"][1] = np.nan
    rows = [row for row in summary(data) if row.metric == "decay"]
    assert [row.known for row in rows] == [40, 40, 0, 0]
    values = data["decay"].values[0, 0, :, 0, 0]
    quantiles = np.asarray(np.quantile(values, [0.5, 0.95, 1]))
    error = values.std(ddof=1) / 40**0.5
    np.testing.assert_allclose(rows[0][4:], [values.mean(), error, *quantiles])
    assert failures(data) == {}
    figures = sweep_figures(data.isel(network=[0, 0, 0]).assign_coords(network=[*"abc"]))
    assert sorted(figures) == ["decay-networks", "decay-scaling", "falling", "scale-sizes"]
    scaling, falling = figures["decay-scaling"].axes[0], figures["falling"].axes[0]
    ends = [np.asarray(line.get_ydata())[0] for line in scaling.get_lines()[:2]]
    np.testing.assert_allclose(ends, quantiles[:2])
    median = np.median(data["falling"].values[0, 0, 3:, 0, 1], axis=0)
    np.testing.assert_allclose(np.asarray(falling.get_lines()[0].get_ydata()), median)


def test_figures_say_what_is_not_computed(finished):
    """In the panel, the cell of a heat map, the legend; and a scale holds for all panels."""
    data = dln.open_sweep(finished / "results" / "sweep.zarr").load()
    for name in data.data_vars:
        data[name][1] = np.nan
    data = data.isel(network=[0, 0, 0]).assign_coords(network=[*"abc"])
    data["scale"][:, 1:] *= 10
    partly = data.assign_coords(computed=data.computed & (data["size"] == "2×3"))
    for version, why in ((partly, "not computed"), (data, "all failed")):
        figures = sweep_figures(version)
        panels = [[text.get_text() for text in ax.texts] for ax in figures["falling"].axes]
        assert panels == [[], [], [], [why], [why], [why]]
        legend = figures["decay-scaling"].axes[0].get_legend()
        assert legend and f"3×4, a: {why}" in [text.get_text() for text in legend.get_texts()]
        maps = figures["scale-sizes"].axes
        assert len(maps) == 3 and len({ax.images[0].get_clim() for ax in maps}) == 1
        assert sum(text.get_text() == why for ax in maps for text in ax.texts) == 3
    title = sweep_figures(partly)["falling"].get_suptitle()
    assert title.endswith("50 % computed")


def test_quantiles_over_times_of_each_instance():
    """Where `x = s` at times of its own, the quantiles are the times, wherever these are."""
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0.5, 2, (40, 1)) * np.geomspace(1, 100, 30), axis=1)
    values = ("instance", "s"), np.log(times)
    data = xarray.Dataset({"x": values}, {"time": (("instance", "s"), times)})
    (line,) = sweep(data, "x", ax=Figure().subplots()).get_lines()
    s, median = np.asarray(line.get_data())
    assert np.isclose(s[0], np.median(times[:, 0])) and np.isclose(s[-1], np.median(times[:, -1]))
    np.testing.assert_allclose(median, np.log(s), rtol=1e-12)


def test_failures_are_named():
    names = {"flag_values": [-1, 0, 1], "flag_meanings": "not_computed successful stuck"}
    data = xarray.Dataset({"flow_result": ("instance", np.array([0, 1, 1, -1]), names)})
    data = data.assign_coords(computed=("instance", np.array([True, True, True, False])))
    assert failures(data) == {"flow: stuck": 2} and not_computed(data) == 1


def test_files_of_the_project(tmp_path):
    page = (ROOT / "docs" / "from-laptop-to-cluster.md").read_text()
    (tmp_path / "study.toml").write_text(page.split("```toml\n")[1].split("```")[0])
    for path in (tmp_path / "study.toml", *(ROOT / "studies").glob("*.toml")):
        assert read_sweep(path).log_eps
