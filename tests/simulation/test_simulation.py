"""The simulation over 200 seeds, and that a seed decides all of a run."""

import os
import re
import subprocess

from harness.sluice import build_dir

SUITE_TIMEOUT_S = 300
SUITE_PARALLEL = True
RUN_TIMEOUT_S = 240
SIMULATE = os.path.join(build_dir(), "tests/simulation/simulate")


def simulate(*args):
    return subprocess.run([SIMULATE, *args], capture_output=True, text=True, timeout=RUN_TIMEOUT_S,
                          check=False)


def hash_of(run):
    return re.search(r"hash (\w+)", run.stdout)[1]


def test_the_books_close_and_all_recover_over_200_seeds():
    run = simulate("--seeds", "200", "--jobs", str(os.cpu_count() or 1))
    assert run.returncode == 0, run.stdout + run.stderr
    # What happened at all: a simulation of nothing would pass too.
    assert int(re.search(r"(\d+) failovers", run.stdout)[1]) >= 20, run.stdout
    assert int(re.search(r"in (\d+) batches that Redis", run.stdout)[1]) >= 100, run.stdout
    assert int(re.search(r"(\d+) clients killed", run.stdout)[1]) >= 500, run.stdout
    assert int(re.search(r"(\d+) looks at bans", run.stdout)[1]) >= 100, run.stdout
    assert int(re.search(r"(\d+) times one where the limit", run.stdout)[1]) >= 5000, run.stdout
    assert int(re.search(r"(\d+) strict tokens", run.stdout)[1]) >= 20_000, run.stdout
    assert int(re.search(r"(\d+) tokens of classes", run.stdout)[1]) >= 20_000, run.stdout
    assert int(re.search(r"(\d+) of quotas", run.stdout)[1]) >= 10_000, run.stdout
    assert int(re.search(r"(\d+) requests that a candidate", run.stdout)[1]) >= 8_000, run.stdout


def test_a_seed_is_the_same_run_each_time():
    runs = [simulate("--seeds", "6", "--seed", "1000", "--jobs", jobs) for jobs in ("1", "3", "1")]
    assert len({hash_of(run) for run in runs}) == 1, [run.stdout for run in runs]
    other = simulate("--seeds", "6", "--seed", "2000")
    assert hash_of(other) != hash_of(runs[0])
