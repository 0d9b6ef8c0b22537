"""One cell of a sweep as one compiled program: a block of instances in, their metrics out.

| stage | for each | computes |
|---|---|---|
| first | instance and decay | problem, `path`, `limit`, `s`; metrics without an axis of `ε` |
| second | instance, decay and `ε` | `flow`; metrics with an axis of `ε` |

The second stage takes one `ε` after the other, and its lanes in chunks. A `vmap` ends with its
slowest lane: so lanes are sorted by the number of steps that they took at the `ε` before, and
lanes of similar difficulty share a chunk (`python -m benchmarks lanes` measures the gain).

A resumed sweep must repeat every bit. Rounding depends on the shapes of batches and, on a CPU, on
how many devices one program spans: so blocks and chunks have fixed sizes (`Layout`), and each
device has a program of its own.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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


class Layout(NamedTuple):
    """The sizes of batches, which decide rounding beside the specification. Chosen when a store is
    created, and kept in it: a machine with other memory goes on with the same."""

    block: int  # instances that a device works on at a time
    chunks: list[int]  # lanes that run in step, in each of `sweep.cells`


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


def block_function(sweep: Sweep, cell: Cell, chunk: int) -> Callable[..., Values]:
    """The function `(index, data) -> values` of a block of `B` instances: `index` of shape `(B,)`,
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

    def block(index: Array, data: Any) -> Values:
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

    return block


def inputs(sweep: Sweep, block: int, size: int) -> tuple[np.ndarray, Any]:
    """The numbers of the instances in a block, shape `(size,)`, and their data, if given."""
    # The last block may have numbers beyond the last instance. `Store.write` drops them.
    index = np.arange(block * size, (block + 1) * size, dtype=np.uint32)
    generator = sweep.generator
    return index, generator.take(index) if isinstance(generator, Given) else ()


def check_inputs(sweep: Sweep) -> None:
    """Make the networks and trace the generator, without compiling. **Raises:** what they raise."""
    for cell in sweep.cells:
        sweep.network(cell)
        one = jax.tree.map(lambda a: a[0], inputs(sweep, 0, 1))
        jax.eval_shape(lambda index, data, cell=cell: _make_problem(sweep, cell, index, data), *one)


def check(sweep: Sweep) -> None:
    """Trace every cell with a block of one instance, without compiling.

    **Raises:** what a generator or a metric raises, and `ValueError` for a value of another shape
    than its dims say.
    """
    for cell in sweep.cells:
        jax.eval_shape(block_function(sweep, cell, 1), *inputs(sweep, 0, 1))


class Program:
    """The program of a cell, compiled for each of `devices`."""

    def __init__(self, sweep: Sweep, cell: Cell, layout: Layout, devices: Sequence[Any]):
        self._sweep, self._cell, self._layout, self._devices = sweep, cell, layout, devices
        chunk = layout.chunks[sweep.cells.index(cell)]
        jitted = jax.jit(block_function(sweep, cell, chunk))
        lowered = [jitted.lower(*self._put(0, device)) for device in devices]
        with ThreadPoolExecutor() as pool:
            self._compiled = list(pool.map(lambda low: low.compile(), lowered))

    def _put(self, block: int, device: Any) -> Any:
        return jax.device_put(inputs(self._sweep, block, self._layout.block), device)

    def __call__(self, blocks: Sequence[int]) -> list[Values]:
        """Start the blocks, one on each device, and return their values, still being computed."""
        pairs = zip(blocks, self._devices, self._compiled, strict=False)
        return [compiled(*self._put(block, device)) for block, device, compiled in pairs]

    @property
    def bytes(self) -> int:
        """Bytes that a block takes on its device, by XLA's own analysis."""
        memory = self._compiled[0].memory_analysis()
        return (
            memory.temp_size_in_bytes
            + memory.argument_size_in_bytes
            # Twice: while one block is written, the next one is computed.
            + 2 * memory.output_size_in_bytes
        )


def plan(sweep: Sweep, memory: int, devices: Sequence[Any]) -> tuple[Layout, dict[Cell, Program]]:
    """The layout with the largest blocks that fit into `memory` bytes of a device, and the programs
    of the largest size, which were compiled to find out."""
    # Larger blocks amortise what writing one takes, a file and a checksum for each variable; but a
    # kill loses the block at work. By `python -m benchmarks sweep` on one core, 8192 paths of size
    # 3×4 take 0.11 s, a tenth of it for the store, and 1024 instances with flows at two ε 0.8 s.
    # 100 times fewer, and the files cost more than the solves; 100 times more, and a kill loses
    # minutes.
    most = 1024 if devices[0].platform == "cpu" and "flow" in sweep.needs else 8192
    n, d = max(sweep.sizes, key=lambda size: (size[0] * size[1], size))
    block = min(most, sweep.instances)
    programs: dict[Cell, Program] = {}
    cells = [cell for cell in sweep.cells if (cell.n, cell.d) == (n, d)]
    while len(programs) < len(cells):
        cell = cells[len(programs)]
        layout = _layout(sweep, block)
        program = programs[cell] = Program(sweep, cell, layout, devices)
        if program.bytes > memory:
            if block == 1:
                raise ValueError(
                    f"One instance of size {n}×{d} takes {program.bytes} bytes, but `memory` = "
                    f"{memory}. Raise it, or take fewer values of ε and weight decay."
                )
            # Memory is nearly linear in the block. 0.9 makes up for the constant part, so that the
            # next try mostly fits; a smaller factor wastes memory, 1 would compile more often.
            block = max(1, int(0.9 * block * memory / program.bytes))
            programs.clear()
    return _layout(sweep, block), programs


def _layout(sweep: Sweep, block: int) -> Layout:
    lanes = block * len(sweep.weight_decay)
    chunks = [default_chunk(lanes, _bytes_of_lane(sweep, cell)) for cell in sweep.cells]
    return Layout(block, chunks)


def _bytes_of_lane(sweep: Sweep, cell: Cell) -> int:
    """Bytes that a lane of the second stage reads, for the size of chunks: nothing is computed."""

    def kept(index: Array, data: Any) -> dict[str, Any]:
        return _first_stage(sweep, cell)(_make_problem(sweep, cell, index, data))[1]

    one = jax.tree.map(lambda a: a[0], inputs(sweep, 0, 1))
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(jax.eval_shape(kept, *one)))
