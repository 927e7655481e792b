"""scripts/bench runs from end to end and writes every row. No figure is judged here."""

import json
import os
import subprocess

import pytest

from harness.sluice import ROOT, build_dir

ROWS = {"check_hot_handle", "check_hot_keyed", "check_three_rules", "check_deny",
        "check_deny_keyed", "check_cold_1m_single", "check_cold_1m_batch16",
        "redis_evalsha_per_request", "reconcile", "idle_daemon"}


def bench(*arguments):
    return subprocess.run([os.path.join(ROOT, "scripts", "bench"), "--build", build_dir(),
                           *arguments], capture_output=True, text=True, timeout=600, check=False)


def test_every_row_is_measured_beside_its_floor(tmp_path):
    if not os.path.exists(os.path.join(build_dir(), "bench")):
        pytest.skip("built without the benchmarks")
    out = tmp_path / "rows.json"
    done = bench("--quick", "--json", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["name"]: row for row in json.loads(out.read_text())}
    assert set(rows) == ROWS
    for name, row in rows.items():
        assert {"ns", "floor_ns", "ratio"} <= set(row)
        if name.startswith("check_"):
            assert row["ns"] > 0 and row["floor_ns"] > 0 and row["ratio"] > 0, row
            assert row["spread"][0] <= row["ns"] <= row["spread"][1], row
        assert name in done.stdout
    assert rows["redis_evalsha_per_request"]["beside_ratio"] > 0
    assert rows["reconcile"]["buckets_per_s"] > 0 and rows["reconcile"]["raw_ratio"] > 0
    assert 0 <= rows["idle_daemon"]["cpu_share"] < 1


def test_an_unknown_row_is_named():
    done = bench("check_nothing")
    assert done.returncode == 2
    assert "check_nothing" in done.stderr and "check_hot_handle" in done.stderr
