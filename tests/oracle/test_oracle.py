"""Our decisions against golang.org/x/time/rate's, explained to the last check.

`ORACLE_CHECKS` and `ORACLE_SEED` make another run. Without Go, or where its module cannot be had,
all is skipped.
"""

import json
import os
import shutil
import subprocess

import pytest

from harness.processes import run
from harness.sluice import build_dir

# Building Go's standard library for the first time takes most of it.
SUITE_TIMEOUT_S = 900
SUITE_PARALLEL = True
DOWNLOAD_DEADLINE_S = 120.0
BUILD_DEADLINE_S = 400.0
# Ten million checks take seconds; a loaded machine takes longer.
RUN_DEADLINE_S = 280.0

CHECKS = int(os.environ.get("ORACLE_CHECKS", "10000000"))
SEED = int(os.environ.get("ORACLE_SEED", "1"))
MUTANT_CHECKS = 500_000
HERE = os.path.dirname(os.path.abspath(__file__))

DIFFERENCES = ("differ_ours_denies_by_rounding_up", "differ_ours_allows_by_wider_tau",
               "differ_theirs_allows_under_1_ns_early", "differ_theirs_by_float64")


@pytest.fixture(scope="module", name="oracle")
def fixture_oracle(tmp_path_factory):
    """The built Go program."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("no Go here: install golang-go")
    # Built from a copy: nothing that the go command may write ends up in the tree.
    folder = tmp_path_factory.mktemp("oracle")
    for name in ("oracle.go", "go.mod", "go.sum"):
        shutil.copy(os.path.join(HERE, name), folder)
    try:
        done = run([go, "mod", "download"], DOWNLOAD_DEADLINE_S, cwd=folder, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("golang.org/x/time cannot be had: no answer from the module proxy")
    # Another module under the pinned version is no reason to skip.
    assert "checksum mismatch" not in done.stderr, done.stderr
    if done.returncode != 0:
        pytest.skip(f"golang.org/x/time cannot be had: {done.stderr.strip()[-300:]}")
    program = folder / "oracle"
    run([go, "build", "-trimpath", "-buildvcs=false", "-o", program, "."], BUILD_DEADLINE_S,
        cwd=folder)
    return program


def replay(oracle, checks, *options):
    """(the report, what was said beside it, the exit code) of one run."""
    program = os.path.join(build_dir(), "tests", "oracle", "replay")
    assert os.access(program, os.X_OK), f"no replay at {program}: build it, or set SLUICE_BUILD"
    done = run([program, "--checks", checks, "--seed", SEED, *options, oracle], RUN_DEADLINE_S,
               check=False)
    assert done.returncode in (0, 1), f"{done.returncode}: {done.stderr}"
    return json.loads(done.stdout), done.stderr, done.returncode


@pytest.mark.timeout_s(300)
def test_every_decision_is_right_or_off_by_a_stated_rounding(oracle):
    report, said, code = replay(oracle, CHECKS)
    print(json.dumps(report, indent=1))
    assert report["unexplained"] == 0, said
    assert report["alone_unexplained"] == 0, said
    assert code == 0
    assert report["checks"] >= CHECKS
    assert report["equal"] + sum(report[name] for name in DIFFERENCES) == report["checks"]
    # What the trace is for: both answers, and many checks where rounding decides.
    assert 0.2 < report["allowed"] / report["checks"] < 0.9
    assert report["within_3_ns_of_the_edge"] > 0.05 * report["checks"]
    if CHECKS >= 1_000_000:
        assert all(report[name] > 0 for name in DIFFERENCES), report


# tau_of_burst_plus_one: one token too many. tau_plus_one_ns: a nanosecond too early, where no
# rounding allows it. cost_plus_one_ns: more than rounding up. cost_rounded_down: over the rate.
@pytest.mark.timeout_s(300)
@pytest.mark.parametrize("mutant", ["tau_of_burst_plus_one", "tau_plus_one_ns", "cost_plus_one_ns",
                                    "cost_rounded_down"])
def test_a_seeded_bug_on_our_side_is_unexplained(oracle, mutant):
    report, said, code = replay(oracle, MUTANT_CHECKS, "--mutant", mutant)
    assert code == 1
    assert report["unexplained"] > 100, report
    assert report["alone_unexplained"] > 100, report
    assert "unexplained: limit " in said


def test_a_mutant_that_does_not_exist_is_refused(oracle):
    program = os.path.join(build_dir(), "tests", "oracle", "replay")
    done = run([program, "--mutant", "nothing", oracle], RUN_DEADLINE_S, check=False)
    assert done.returncode == 2
