"""Five ways in which lending goes wrong, each seen by the simulation: tokens are over, or the run
itself finds what cannot be. The scheme as it is passes the same runs (test_accuracy.py). A mutant
that passes has survived: then the scenarios see too little.
"""

import json
import os

import pytest

from harness.mutants import link_with, run, write_mutant
from harness.sluice import build_dir

SUITE_TIMEOUT_S = 600
SUITE_PARALLEL = True
MUTANT_TIMEOUT_S = 120
ACCURACY = "tests/accuracy/accuracy"
HOST = "daemon/lease/lease.cc"
SCRIPT = "lua/lease.lua"
SCENARIO = "trap-3-x20"
SEEDS = 12
REFILL = "level = max(level, min(level + pace * (at - t), (burst - o0 - o1) * unit + spare))"

# name: (file, the code as it stands, the bug)
MUTANTS = {
    "outstanding_not_counted": (SCRIPT, REFILL, REFILL.replace("(burst - o0 - o1)", "burst")),
    "lifetime_from_the_receipt": (HOST, "= first_sent_ns + kLifetimeNs;",
                                  "= now_ns + 0 * first_sent_ns + kLifetimeNs;"),
    "expired_returns_credited": (SCRIPT, "    rem = 0 --",
                                 "    rem, level = 0, level + ret * unit --"),
    "duplicate_granted_anew": (SCRIPT, "if seq == words[1] then",
                               "if seq == words[1] and seq < 0 then"),
    "refill_in_a_lump": (
        SCRIPT,
        "      level = max(level, min(level + pace * (ending - t), (burst - o0 - o1) * unit + spare))\n"
        "      t, gen = ending, gen + 1", "      gen = gen + 1"),
}


@pytest.mark.timeout_s(MUTANT_TIMEOUT_S)
@pytest.mark.parametrize("name", MUTANTS)
def test_the_simulation_sees_a_seeded_bug(name, tmp_path):
    file, code, bug = MUTANTS[name]
    mutant = write_mutant(file, code, bug, str(tmp_path))
    program = os.path.join(build_dir(), ACCURACY)
    argv = ["--scenario", SCENARIO, "--seeds", str(SEEDS)]
    if file == SCRIPT:
        argv += ["--script", mutant]
    else:
        program = link_with(file, mutant, ACCURACY, str(tmp_path))
    done = run([program] + argv, MUTANT_TIMEOUT_S)
    if done.returncode == 1:  # tokens that cannot be, in a reply
        assert "no count" in done.stderr, done.stderr
        return
    assert done.returncode == 0, done.stderr
    over = [json.loads(line)["over_tokens"] for line in done.stdout.splitlines()]
    assert len(over) == SEEDS
    assert max(over) > 0, f"{name} survived"
