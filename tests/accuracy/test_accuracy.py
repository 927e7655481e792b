"""The strict scheme over a few seeds: nothing over in a window of any length, whatever goes wrong."""

import json
import os
import subprocess

import pytest

from harness.sluice import build_dir

SUITE_TIMEOUT_S = 900
SUITE_PARALLEL = True
RUN_TIMEOUT_S = 240
ACCURACY = os.path.join(build_dir(), "tests/accuracy/accuracy")

# scenario: (seeds, the least that must be used, in percent; what a bucket without hosts admits is 100)
RUNS = {
    "hop-100-x2": (3, 98),
    "hop-10-x2-lossy": (3, 5),
    "flash-10-x5": (2, 90),
    "uni-10-x1.2": (1, 97),
    "uni-100-x0.9-failover": (1, 70),
    "uni-100-x0.9-crash": (1, 90),
    "uni-100-x2-low": (2, 98),
    "uni-100-x2-low-cost": (2, 90),
    "uni-2-x2": (1, 98),
    "uni-100-x0.9-loss5": (1, 97),
    "uni-100-x0.9-tcp": (1, 90),
    "uni-100-x2-adopt": (1, 90),
    "uni-100-x2-cpu": (1, 70),
    "uni-100-x2-clock-back": (1, 50),
    "pulse-5-x10-slow": (5, 5),
    "trap-3-x20": (5, 50),
}


@pytest.mark.timeout_s(RUN_TIMEOUT_S)
@pytest.mark.parametrize("scenario", RUNS)
def test_admits_nothing_over_and_wastes_little(scenario):
    seeds, used_percent = RUNS[scenario]
    run = subprocess.run([ACCURACY, "--scenario", scenario, "--seeds", str(seeds)], check=False,
                         capture_output=True, text=True, timeout=RUN_TIMEOUT_S)
    assert run.returncode == 0, run.stderr
    results = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(results) == seeds
    for result in results:
        assert result["over_tokens"] == 0, result
        assert result["over_1s_percent"] == 0 and result["over_10s_percent"] == 0, result
        assert result["used_percent"] >= used_percent, result


# scenario: (over in 1 s and in 10 s at most, the least that must be used, both in percent, calls a
# second and host at most)
OVERDRAFT = {
    "flash-2-x5": (1.5, 0, 99, 25),
    "flash-100-x5": (1.5, 0, 99, 25),
    "hop-100-x0.9": (1.5, 0, 99, 25),
    "onoff-100-x0.9": (1.5, 0, 99, 25),
    "uni-2-x2": (1.5, 0, 99, 25),
    "uni-100-x0.9-loss5": (1.5, 0, 99, 30),
    "uni-100-x0.9-pause": (1.5, 0, 95, 25),
    "uni-100-x2-pause": (1.5, 0, 95, 25),
    "uni-100-x0.9-pause-late": (1.5, 0, 95, 25),
    "uni-100-x2-pause-late": (1.5, 0, 95, 25),
    "uni-100-x0.9-cost": (1.5, 0, 97, 25),
    "uni-100-x2-cost": (1.5, 0, 98.5, 30),
    "uni-100-x2-low": (0, 0, 99.5, 1),
    "uni-100-x0.9-low-now": (30, 3, 90, 4),
    "uni-100-x2-low-now": (30, 3, 98, 10),
}


@pytest.mark.timeout_s(RUN_TIMEOUT_S)
@pytest.mark.parametrize("scenario", OVERDRAFT)
def test_an_overdraft_admits_little_over_for_a_moment_and_uses_nearly_all(scenario):
    over_1s, over_10s, used_percent, calls = OVERDRAFT[scenario]
    run = subprocess.run([ACCURACY, "--scheme", "overdraft", "--scenario", scenario, "--seeds", "2"],
                         check=True, capture_output=True, text=True, timeout=RUN_TIMEOUT_S)
    results = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(results) == 2
    for result in results:
        assert result["over_1s_percent"] <= over_1s, result
        assert result["over_10s_percent"] <= over_10s, result
        assert result["used_percent"] >= used_percent, result
        assert result["calls_per_s_host"] <= calls, result


@pytest.mark.timeout_s(RUN_TIMEOUT_S)
def test_a_clock_set_forward_admits_as_much_more_and_no_more():
    run = subprocess.run([ACCURACY, "--scenario", "uni-100-x2-clock-forward", "--seeds", "2"],
                         check=True, capture_output=True, text=True, timeout=RUN_TIMEOUT_S)
    for line in run.stdout.splitlines():
        result = json.loads(line)
        assert 0 < result["over_tokens"] <= result["may_be_over"], result


@pytest.mark.timeout_s(RUN_TIMEOUT_S)
def test_all_schemes_run_in_the_same_lab():
    run = subprocess.run([ACCURACY, "--scheme", "all", "--scenario", "uni-10-x2"], check=True,
                         capture_output=True, text=True, timeout=RUN_TIMEOUT_S)
    results = [json.loads(line) for line in run.stdout.splitlines()]
    assert [r["scheme"] for r in results] == ["strict", "overdraft", "approximate"]
    strict, overdraft, approximate = results
    assert strict["over_tokens"] == 0
    assert overdraft["over_10s_percent"] == 0 and overdraft["used_percent"] > 99, overdraft
    assert approximate["over_1s_percent"] < 20 and approximate["used_percent"] > 90, approximate


@pytest.mark.timeout_s(RUN_TIMEOUT_S)
@pytest.mark.parametrize("scenario, used", [("hop-100-x2", 97), ("uni-100-x2-pause", 97)])
def test_what_ships_by_default_follows_demand_and_outages(scenario, used):
    """Demand that hops used two thirds before hosts said farewell, a Redis that pauses 87 %."""
    run = subprocess.run([ACCURACY, "--scheme", "approximate", "--scenario", scenario], check=True,
                         capture_output=True, text=True, timeout=RUN_TIMEOUT_S)
    result = json.loads(run.stdout)
    assert result["used_percent"] > used and result["over_10s_percent"] < 0.5, result
