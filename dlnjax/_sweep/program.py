"""One cell of a sweep as one compiled program: a batch of instances in, their metrics out.

| stage | for each | computes |
|---|---|---|
| first | instance and decay | problem, `path`, `limit`, `s`; metrics without an axis of `ε` |
| second | instance, decay and `ε` | `flow`; metrics with an axis of `ε` |

The second stage takes one `ε` after the other, and its lanes in chunks. A `vmap` ends with its
slowest lane: so lanes are sorted by the number of steps that they took at the `ε` before, and
lanes of similar difficulty share a chunk (`python -m benchmarks lanes` measures the gain).

A resumed sweep must repeat every bit. Rounding depends on the shapes of batches and, on a CPU, on
how many devices one program spans: so these have fixed sizes (`Layout`), and each device has a
program of its own.
"""

import json
import math
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._batching import default_chunk
from .._flow.gradient_flow import gradient_flow
from .._lasso.path import lasso_path
from .._limit.limit_flow import limit_flow
from .._problem import AbstractProblem, LeastSquares, without_decay
from .._results import RESULTS, result_code
from ..generators import Given
from ..metrics import Metric
from .spec import Cell, KnotGrid, Sweep

Values = dict[str, Array]
SOLVES = ("path", "limit", "flow")


# A sweep makes no more chunks than this, which leaves room for metadata in 1000 files: file systems
# of clusters are slow with many small ones. One with more variables, sizes and networks has a block
# of each.
_MOST_CHUNKS = 900


class Layout(NamedTuple):
    """How instances are grouped. It decides rounding beside the specification: it is chosen when a
    store is created, and kept in it, so that a machine with other memory goes on with the same."""

    batch: int  # instances that a device works on at a time
    block: int  # instances of a task, and of a chunk on disk: a multiple of `batch`
    lanes: tuple[int, ...]  # how many run in step, in each of `sweep.cells`

    @classmethod
    def from_json(cls, text: str) -> "Layout":
        batch, block, lanes = (json.loads(text)[field] for field in cls._fields)
        return cls(batch, block, tuple(lanes))


def _make_problem(sweep: Sweep, cell: Cell, index: Array, data: Any) -> AbstractProblem:
    """Instance `index`: `data` of a `Given`, or made by the generator from the instance's key."""
    generator = sweep.generator
    if isinstance(generator, Given):
        made = data
    else:
        made = generator(sweep.instance_key(cell, index), cell.n, cell.d)
    if not isinstance(made, AbstractProblem):
        made = LeastSquares(*made)
    rows = made.rows()
    size = (cell.n, *made.r.shape) if rows is None else (*rows[0].shape,)
    asked = (cell.n, cell.d)
    if size != asked:
        raise ValueError(f"The generator made a problem of size {size}, but {asked} was asked.")
    return made


def _with_decay(problem: AbstractProblem, decay: Array) -> AbstractProblem:
    # The sweep's decay replaces that of the generator's problem, in the dtype of the problem.
    decay = decay.astype(problem.r.dtype)
    return eqx.tree_at(lambda problem: problem.weight_decay, problem, decay)


def _measure(sweep: Sweep, cell: Cell, known: dict[str, Any], has_eps: bool) -> Values:
    """The metrics of one lane, those with an axis of `ε` or the others, and the results of the
    solves. A metric is NaN where a solve that it names has failed."""
    values = {}
    for name, metric in sweep.metrics.items():
        if metric.has_eps != has_eps:
            continue
        try:
            value = jnp.asarray(metric.fn(**{need: known[need] for need in metric.needs}))
        except Exception as e:
            e.add_note(f"In the metric {name!r}, at size {cell.n}×{cell.d}.")
            raise
        expected = shape_of(sweep, cell, metric)
        if value.shape != expected:
            raise ValueError(
                f"The metric {name!r} returns shape {value.shape} at size {cell.n}×{cell.d}, but "
                f"its dims {metric.dims} mean {expected}. Reduce it, or pass it as "
                "`Metric(fn, dims=…)` with some of 's' and 'coordinate'."
            )
        good = jnp.asarray(True)
        for solve in metric.needs & {*SOLVES}:
            good = good & (known[solve].result == RESULTS.successful)
        values[name] = jnp.where(good, value.astype(jnp.result_type(float)), jnp.nan)
    for solve in ("flow",) if has_eps else ("path", "limit"):
        if solve in sweep.needs:
            values[f"{solve}_result"] = result_code(known[solve].result).astype(jnp.int8)
    return values


def shape_of(sweep: Sweep, cell: Cell, metric: Metric) -> tuple[int, ...]:
    """The shape of a metric's value in one lane, by its `dims`."""
    lengths = {"s": sweep.points, "coordinate": cell.d}
    return tuple(lengths[dim] for dim in metric.dims)


def _kept(sweep: Sweep) -> set[str]:
    """The names of what the second stage takes from the first."""
    # No more than metrics with an axis of ε name: it is copied into chunks for every ε.
    names = {"problem"} | ({"s"} if isinstance(sweep.s, KnotGrid) else set())
    for metric in sweep.metrics.values():
        names |= metric.needs & {"path", "limit"} if metric.has_eps else set()
    return names


def _first_stage(sweep: Sweep, cell: Cell) -> Callable:
    """The function from a problem to its metrics without an axis of `ε`, and to what the second
    stage needs."""
    network = sweep.network(cell)

    def solve(problem: AbstractProblem) -> tuple[Values, dict[str, Any]]:
        known: dict[str, Any] = {"problem": problem, "network": network}
        if "path" in sweep.needs:
            known["path"] = lasso_path(problem, positive=network.positive, throw=False)
        if "limit" in sweep.needs:
            known["limit"] = limit_flow(network, problem, throw=False)
        if "s" in sweep.needs:
            known["s"] = _times(sweep, problem, known)
        kept = {name: known[name] for name in _kept(sweep) if name in known}
        return _measure(sweep, cell, known, has_eps=False), kept

    return solve


def _times(sweep: Sweep, problem: AbstractProblem, known: dict[str, Any]) -> Array:
    if isinstance(sweep.s, KnotGrid):
        return known["s"] if "s" in known else sweep.s(problem, known["path"])
    return jnp.asarray(sweep.s, problem.r.dtype)


def _second_stage(sweep: Sweep, cell: Cell) -> Callable:
    """The function from what the first stage kept and one `ε` to the other metrics, and to the
    number of steps of the flow."""
    network = sweep.network(cell)

    def solve(kept: dict[str, Any], log_eps: Array) -> tuple[Values, Array]:
        known = {**kept, "network": network, "log_eps": log_eps}
        if "s" in sweep.needs:
            known["s"] = _times(sweep, known["problem"], known)
        steps = jnp.zeros((), jnp.int32)
        if "flow" in sweep.needs:
            # A traced decay of 0 would make the flow integrate `w` where ν alone would do, since it
            # might be positive: say statically that there is none.
            decays = np.any(np.asarray(sweep.weight_decay) != 0)
            flow = known["flow"] = gradient_flow(
                network,
                known["problem"] if decays else without_decay(known["problem"]),
                known["s"],
                log_eps=log_eps,
                rtol=sweep.rtol,
                atol=sweep.atol,
                max_steps=sweep.max_steps,
                throw=False,
            )
            steps = jnp.asarray(flow.stats["num_steps"], jnp.int32)
        return _measure(sweep, cell, known, has_eps=True), steps

    return solve


def batch_function(sweep: Sweep, cell: Cell, chunk: int) -> Callable[..., Values]:
    """The function `(index, data) -> values` of a batch of `B` instances: `index` of shape `(B,)`,
    values of shapes `(B, W, …)` and `(B, W, E, …)` for `W` weight decays and `E` values of `ε`."""
    first, second = _first_stage(sweep, cell), _second_stage(sweep, cell)

    def over_eps(kept: dict[str, Any], lanes: int) -> Values:
        chunks = math.ceil(lanes / chunk)

        def one_eps(steps: Array, log_eps: Array) -> tuple[Array, Values]:
            # The hardest first. At the first ε all counts are 0: lanes come as they are.
            order = jnp.argsort(-steps)
            back = jnp.argsort(order)
            # Copies of the easiest lane fill the last chunk: they never are what it waits for.
            filled = jnp.concatenate([order, jnp.repeat(order[-1:], chunks * chunk - lanes)])

            def one_chunk(members: Array) -> tuple[Values, Array]:
                take = jax.tree.map(lambda a: a[members], kept)
                return jax.vmap(second, in_axes=(0, None))(take, log_eps)

            out = lax.map(one_chunk, filled.reshape(chunks, chunk))
            values, steps = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:lanes][back], out)
            return steps, values

        _, values = lax.scan(one_eps, jnp.zeros(lanes, jnp.int32), jnp.asarray(sweep.log_eps))
        return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), values)

    def batch(index: Array, data: Any) -> Values:
        make = lambda index, data: _make_problem(sweep, cell, index, data)
        decays = jnp.asarray(sweep.weight_decay)
        problems = jax.vmap(make)(index, data)
        all_decays = jax.vmap(_with_decay, in_axes=(None, 0))
        problems = jax.vmap(all_decays, in_axes=(0, None))(problems, decays)
        lanes = len(index) * len(decays)
        problems = jax.tree.map(lambda a: a.reshape(lanes, *a.shape[2:]), problems)
        values, kept = jax.vmap(first)(problems)
        if any(metric.has_eps for metric in sweep.metrics.values()):
            values |= over_eps(kept, lanes)
        return jax.tree.map(lambda a: a.reshape(len(index), len(decays), *a.shape[1:]), values)

    return batch


def inputs(sweep: Sweep, start: int, size: int) -> tuple[np.ndarray, Any]:
    """The numbers of `size` instances from `start` on, shape `(size,)`, and their data, if given.

    The last ones may be beyond the last instance: `Store.write` drops them."""
    index = np.arange(start, start + size, dtype=np.uint32)
    generator = sweep.generator
    return index, generator.take(index) if isinstance(generator, Given) else ()


def check_inputs(sweep: Sweep) -> None:
    """Make the networks and trace the generator, without compiling. **Raises:** what they raise."""
    for cell in sweep.cells:
        sweep.network(cell)
        one = jax.tree.map(lambda a: a[0], inputs(sweep, 0, 1))
        jax.eval_shape(lambda index, data, cell=cell: _make_problem(sweep, cell, index, data), *one)


def check(sweep: Sweep) -> None:
    """Trace every cell with a batch of one instance, without compiling.

    **Raises:** what a generator or a metric raises, and `ValueError` for a value of another shape
    than its dims say.
    """
    for cell in sweep.cells:
        jax.eval_shape(batch_function(sweep, cell, 1), *inputs(sweep, 0, 1))


class Program:
    """A batch of a cell as a program for one device, compiled when it is first needed."""

    def __init__(self, sweep: Sweep, cell: Cell, batch: int, lanes: int, device: Any):
        self._sweep, self._batch, self._device = sweep, batch, device
        self._function = jax.jit(batch_function(sweep, cell, lanes))
        self._compiled: Any = None
        self._lock = threading.Lock()

    def compiled(self) -> Any:
        # Tasks in other threads wait for it, rather than compile the same.
        with self._lock:
            if self._compiled is None:
                example = jax.device_put(inputs(self._sweep, 0, self._batch), self._device)
                self._compiled = self._function.lower(*example).compile()
            return self._compiled

    def __call__(self, index: np.ndarray, data: Any) -> Values:
        """Start a batch of instances, and return its values, which may still be computed."""
        return self.compiled()(*jax.device_put((index, data), self._device))

    @property
    def bytes(self) -> int:
        """Bytes that a batch takes on its device, by XLA's own analysis."""
        memory = self.compiled().memory_analysis()
        return (
            memory.temp_size_in_bytes
            + memory.argument_size_in_bytes
            # Twice: while one batch is fetched, the next one is computed.
            + 2 * memory.output_size_in_bytes
        )


def plan(sweep: Sweep, memory: int, program: Callable[[Cell, int, int], Program]) -> Layout:
    """The layout with the largest batches that fit into `memory` bytes of a device. `program` makes
    programs of a cell, a batch and lanes: those of the largest size are compiled to find out."""
    # A batch on a CPU takes some tenths of a second: by `python -m benchmarks sweep` on one core,
    # 8192 paths of size 3×4 take 0.11 s, and 1024 instances with flows at two ε 0.8 s. Small sweeps
    # have smaller ones, so that some dozen cores have work, whatever the number of cores: that must
    # not change rounding. Below the least, starting and storing a block costs as much as solving.
    least, most = (128, 1024) if "flow" in sweep.needs else (4096, 8192)
    if jax.default_backend() != "cpu":
        least = most = 8192
    n, d = max(sweep.sizes, key=lambda size: (size[0] * size[1], size))
    batch = min(sweep.instances, max(least, min(most, math.ceil(sweep.instances / 64))))
    cells = [cell for cell in sweep.cells if (cell.n, cell.d) == (n, d)]
    while True:
        layout = _layout(sweep, batch)
        largest = max(
            program(cell, batch, layout.lanes[sweep.cells.index(cell)]).bytes for cell in cells
        )
        if largest <= memory:
            return layout
        if batch == 1:
            raise ValueError(
                f"One instance of size {n}×{d} takes {largest} bytes, but `memory` = {memory}. "
                "Raise it, or take fewer values of ε and weight decay."
            )
        # Memory is nearly linear in the batch. 0.9 makes up for the constant part, so that the
        # next try mostly fits; a smaller factor wastes memory, 1 would compile more often.
        batch = max(1, int(0.9 * batch * memory / largest))


def _layout(sweep: Sweep, batch: int) -> Layout:
    variables = len(sweep.metrics) + len(sweep.needs & {*SOLVES})
    blocks = max(1, _MOST_CHUNKS // (variables * len(sweep.cells)))
    batches = math.ceil(math.ceil(sweep.instances / batch) / blocks)
    if "flow" not in sweep.needs:
        # Sending and storing a block takes some 7 ms, as long as 1000 paths of size 3×4: without
        # flows a block has up to four batches, where that leaves 64 blocks for the workers.
        batches = max(batches, min(4, sweep.instances // (64 * batch)))
    lanes = batch * len(sweep.weight_decay)
    chunks = (default_chunk(lanes, _bytes_of_lane(sweep, cell)) for cell in sweep.cells)
    return Layout(batch, batch * batches, tuple(chunks))


def _bytes_of_lane(sweep: Sweep, cell: Cell) -> int:
    """Bytes that a lane of the second stage reads, for the size of chunks: nothing is computed."""

    def kept(index: Array, data: Any) -> dict[str, Any]:
        return _first_stage(sweep, cell)(_make_problem(sweep, cell, index, data))[1]

    one = jax.tree.map(lambda a: a[0], inputs(sweep, 0, 1))
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(jax.eval_shape(kept, *one)))
