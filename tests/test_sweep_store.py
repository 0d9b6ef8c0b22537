"""Stores of sweeps: what they survive, and what they refuse."""

import json
import os
import resource
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import zarr
from sweeps import cheap, chunks, computed

import dlnjax as dln
from dlnjax._sweep import program, store as _store, task
from dlnjax._sweep.lock import driving
from dlnjax._version import provenance


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return computed(tmp_path_factory)


@pytest.fixture
def copy(store, tmp_path):
    return Path(shutil.copytree(store, tmp_path / "copy"))


def undo(path, size, block):
    """As if the block had not been computed."""
    done = zarr.open_group(str(path))["block_done"]
    assert isinstance(done, zarr.Array)
    done[size, 0, block] = 0


def test_damage_is_not_read(store, copy):
    """Every flipped bit, a torn chunk, a lost one; and `resume` mends them all."""
    files = copy / "correlations" / "c" / "0" / "0"
    first, second = files / "0" / "0" / "0", files / "1" / "0" / "0"
    whole = second.read_bytes()
    rng = np.random.default_rng(0)
    data = dln.open_sweep(copy).correlations.isel(size=0, instance=slice(4096, 8192))
    for bit in rng.choice(8 * len(whole), 50, replace=False):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << (bit % 8)
        second.write_bytes(changed)
        with pytest.raises(ValueError, match="checksum"):
            data.compute()
    first.write_bytes(first.read_bytes()[:100])
    with pytest.raises(ValueError, match="checksum"):
        dln.open_sweep(copy).load()
    (copy / "scaled" / "c" / "1" / "0" / "0" / "0").unlink()
    (files / "0.1.partial").write_bytes(b"half")
    with pytest.warns(UserWarning, match="1 of 10 blocks .* are not on disk any more"):
        computed = dln.open_sweep(copy).computed
    assert computed[0].all() and not computed[1, 0, :4096].any() and computed[1, 0, 4096:].all()
    dln.run_sweep(cheap(), copy, resume=True)
    assert chunks(copy) == chunks(store)


def test_torn_metadata(store, copy):
    for name in ("block_done", "block_made_by"):
        (copy / name / "c" / "0" / "0" / "0").write_bytes(b"torn")
    with pytest.raises(ValueError, match="damaged"):
        dln.open_sweep(copy)
    dln.run_sweep(cheap(), copy, resume=True)
    assert dln.open_sweep(copy).computed.all()
    for file, change in (
        (copy / "zarr.json", lambda text: text[:300]),
        (copy / "zarr.json", lambda text: text.replace("Gaussian", "Gausqian")),
        (copy / "scaled" / "zarr.json", lambda text: text.replace("17000", "16000")),
    ):
        text = file.read_text()
        file.write_text(change(text))
        for look in (dln.open_sweep, lambda path: dln.run_sweep(cheap(), path, resume=True)):
            with pytest.raises(ValueError, match="no sweep at .*damaged"):
                look(copy)
        file.write_text(text)
    assert dln.open_sweep(copy).computed.all()


def test_full_disk_and_no_access(store, copy):
    undo(copy, 1, 1)
    with pytest.warns(UserWarning, match="1 of 10 blocks .* are not computed yet"):
        dln.open_sweep(copy)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Room for metadata, not for a chunk: what the system refuses is a real `OSError`.
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"before are intact.*resume=True"):
            dln.run_sweep(cheap(), copy, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    dln.run_sweep(cheap(), copy, resume=True)
    assert chunks(copy) == chunks(store)
    (copy / "file").write_text("no folder")
    with pytest.raises(OSError, match="Cannot write"):
        dln.run_sweep(cheap(), copy / "file" / "store")


def test_interrupted(store, copy, monkeypatch):
    undo(copy, 0, 1)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as error:
        patch.setattr(_store.Store, "mark", interrupt)
        dln.run_sweep(cheap(), copy, resume=True)
    assert "resume=True" in error.value.__notes__[0]
    dln.run_sweep(cheap(), copy, resume=True)
    assert chunks(copy) == chunks(store)


def test_blocks_of_other_versions(copy, monkeypatch):
    undo(copy, 0, 1)
    other = {**provenance(), "versions": {"jax": "0.0.1"}}
    monkeypatch.setattr(task, "_made_by", lambda: other)
    with pytest.warns(UserWarning, match="other versions .*0.0.1.*`block_made_by`"):
        data = dln.run_sweep(cheap(), copy, resume=True)
    assert json.loads(data.provenance) == [provenance(), other]
    assert data.block_made_by.values.tolist() == [[[0, 1, 0, 0, 0]], [[0, 0, 0, 0, 0]]]


def test_one_driver_at_a_time(copy):
    undo(copy, 0, 0)
    before = chunks(copy)
    with driving(copy):
        who = f"computed by process {os.getpid()} on {socket.gethostname()}, since"
        with pytest.raises(BlockingIOError, match=who):
            dln.run_sweep(cheap(), copy, resume=True)
        # As a driver that was killed leaves them.
        left = [copy.with_name(f".copy.{name}") for name in ("lock", "driver")]
        assert all(file.exists() for file in left)
    assert chunks(copy) == before
    for file in left:
        file.write_text("process 1 on a host that is gone")
    assert dln.run_sweep(cheap(), copy, resume=True).computed.all()


def test_another_sweep_is_refused(store):
    with pytest.raises(FileExistsError, match="resume=True"):
        dln.run_sweep(cheap(), store)
    with pytest.raises(ValueError, match=r"differs in 'instances', 'key'.*17000 there and 7 here"):
        dln.run_sweep(cheap(instances=7, key=1), store, resume=True)


def test_what_is_not_a_sweep(tmp_path):
    with pytest.raises(ValueError, match="no sweep at"):
        dln.open_sweep(tmp_path / "nowhere")
    (tmp_path / "zarr.json").write_text("{")
    with pytest.raises(ValueError, match="no sweep at"):
        dln.run_sweep(cheap(), tmp_path, resume=True)
    # Format 2 can name codecs that unpickle.
    zarr.create_group(str(tmp_path / "old"), zarr_format=2)
    with pytest.raises(ValueError, match="no sweep at"):
        dln.open_sweep(tmp_path / "old")


class Free:
    bytes = 1


def test_many_instances_make_few_files():
    """And few instances some blocks, for several cores."""
    few, many = (
        dln.Sweep(instances=n, sizes=[(3, 4)], metrics=["num_steps", "num_knots"], eps=[1e-5])
        for n in (1000, 10**6)
    )
    layout = program.plan(few, 2**40, lambda *_: Free())  # pyright: ignore[reportArgumentType]
    assert layout.block == layout.batch == 128
    layout = program.plan(many, 2**40, lambda *_: Free())  # pyright: ignore[reportArgumentType]
    assert layout.batch == 1024 and layout.block % 1024 == 0
    variables = 4  # and the results of path and flow
    assert 500 < variables * 10**6 / layout.block <= 900
    with pytest.raises(ValueError, match="takes 1 bytes, but `memory` = 0"):
        program.plan(few, 0, lambda *_: Free())  # pyright: ignore[reportArgumentType]
