"""The benchmark for machines with a GPU, at toy size on the CPU."""

import json

from benchmarks import gpu


def test_runs_without_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    gpu.main(tmp_path, quick=False)
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["platform"] == "cpu" and report["settings"]["quick"]
    assert {row["device"] for row in report["rows"]} == {"gpu", "cpu"}
    assert all(row["seconds"] > 0 and row["failed"] == 0 for row in report["rows"])
    assert [row["largest"] for row in report["differences"]] == [0.0]  # the same device twice
    assert (tmp_path / "gpu.png").exists()


def test_rows_grow():
    """The time runs out on the largest batches."""
    lanes = [row.lanes for row in gpu.rows(quick=False)]
    assert lanes == sorted(lanes) and lanes[-1] == 10**6
