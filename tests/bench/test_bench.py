"""scripts/bench runs from end to end and writes every row. No figure is judged here."""

import json
import os
import subprocess

import pytest

from harness.sluice import ROOT, build_dir

ROWS = {"check_hot_handle", "check_hot_keyed", "check_three_rules", "check_deny",
        "check_deny_keyed", "check_strict_handle", "check_strict_keyed", "check_fixed_window",
        "check_sliding_window", "check_sliding_log", "check_priority_keyed", "check_priority_list",
        "check_given_list", "check_calendar_window", "check_candidate", "check_penalty_deny",
        "check_spread_deny", "check_levels", "check_and_report", "reserve_and_settle", "acquire_at_once", "enter_and_leave",
        "check_cold_1m_single", "check_cold_1m_batch3",
        "check_cold_1m_batch16", "check_three_rules_cold", "check_cold_8m_single",
        "check_cold_8m_batch3", "check_cold_8m_batch16", "check_two_threads_one_key",
        "check_two_threads_one_tenant", "check_two_processes_one_key",
        "policy_swap_handle", "policy_swap_keyed", "policy_swap_three_rules",
        "redis_evalsha_per_request", "harvest", "reconcile", "idle_daemon"}


def bench(*arguments):
    return subprocess.run([os.path.join(ROOT, "scripts", "bench"), "--build", build_dir(),
                           *arguments], capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.timeout_s(400)
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
        if name.startswith(("check_two_", "policy_swap_", "check_strict_", "check_priority_", "check_given_",
                            "check_candidate", "check_penalty_", "check_spread_", "check_levels", "check_and_", "reserve_", "acquire_",
                            "enter_")) or name.endswith(("_window", "_log")):
            assert row["ns"] > 0 and row["beside_ratio"] > 0, row
        elif name.startswith("check_"):
            assert row["ns"] > 0 and row["floor_ns"] > 0 and row["ratio"] > 0, row
            assert row["spread"][0] <= row["ns"] <= row["spread"][1], row
        assert name in done.stdout
    assert rows["redis_evalsha_per_request"]["beside_ratio"] > 0
    assert rows["harvest"]["floor_ns"] > 0 and 0 < rows["harvest"]["core_share"]
    assert rows["reconcile"]["buckets_per_s"] > 0 and rows["reconcile"]["raw_ratio"] > 0
    assert 0 <= rows["idle_daemon"]["cpu_share"] < 1


def test_an_unknown_row_is_named():
    done = bench("check_nothing")
    assert done.returncode == 2
    assert "check_nothing" in done.stderr and "check_hot_handle" in done.stderr


def test_a_check_takes_as_many_instructions_as_recorded(tmp_path):
    if not os.path.exists(os.path.join(build_dir(), "bench", "sluice_instructions")):
        pytest.skip("built without the benchmarks, or without valgrind's header")
    out = tmp_path / "counts.json"
    done = bench("--instructions", "--json", str(out))
    if "not compared" in done.stdout:
        pytest.skip(done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["name"]: row for row in json.loads(out.read_text())}
    # Only a locked instruction that is needed: one for the word, one for the use.
    assert [round(rows[name]["locked"]) for name in
            ("check_hot_handle", "check_hot_keyed", "check_three_rules", "check_deny")] \
        == [2, 2, 6, 0]
    for row in rows.values():
        assert 0 < row["floor_instructions"] < row["instructions"], row
        assert 0 < row["floor_lines"] and 0 < row["lines"], row


def test_counts_off_the_record_are_told():
    # The bench's own module: what it says of numbers that moved.
    code = ("import instructions as i, json\n"
            "kept = json.load(open(i.RECORDED))\n"
            "rows = [{'name': n, **f} for n, f in kept['rows'].items()]\n"
            "assert i.off_record(rows, kept['compiler']) == []\n"
            "assert i.off_record(rows, 'another 1') is None\n"
            "rows[0]['instructions'] *= 1.03\n"
            "[said] = i.off_record(rows, kept['compiler'])\n"
            "assert rows[0]['name'] in said and 'recorded' in said\n")
    done = subprocess.run(["/usr/bin/python3", "-B", "-c", code], capture_output=True, text=True,
                          timeout=60, check=False, cwd=os.path.join(ROOT, "bench"))
    assert done.returncode == 0, done.stderr
