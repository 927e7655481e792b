"""Seeded bugs in the strict scheme: the tests of its two sides find each.

A mutant of the script is another text of it; one of the host's side is compiled and linked in front
of the library that holds it as it is. One that passes has survived: then the tests see too little.
"""

import os

import pytest

from harness.mutants import COMPILE_TIMEOUT_S, link_with, run, write_mutant
from harness.sluice import build_dir

SUITE_TIMEOUT_S = 600
RUN_TIMEOUT_S = 60

HOST = "daemon/lease/lease.cc"
SCRIPT = "lua/lease.lua"
TEST = "tests/lease/lease_test"
REFILL = "level = max(level, min(level + limit * (at - t), (burst - o0 - o1) * unit))"

# name: (the test that must fail, file, the code as it stands, the bug)
MUTANTS = {
    "outstanding_not_counted": (
        "RefillStopsWhereLevelAndWhatIsOutAreTheBurst", SCRIPT, REFILL,
        REFILL.replace("(burst - o0 - o1)", "burst")),
    "refill_in_a_lump": (
        "RefillIsCountedUpToTheEndOfEachGeneration", SCRIPT,
        "      level = max(level, min(level + limit * (ending - t), (burst - o0 - o1) * unit))\n"
        "      t, gen = ending, gen + 1", "      gen = gen + 1"),
    "expired_returns_credited": (
        "ALiveReturnMovesTokensBackAndAnExpiredOneIsCreditedNothing", SCRIPT,
        "    rem = 0 --", "    rem, level = 0, level + ret * unit --"),
    "duplicate_granted_anew": (
        "ADuplicateIsToldTheSameAndChangesNothing", SCRIPT,
        "if seq == words[1] then", "if seq == words[1] and seq < 0 then"),
    "no_fence_after_a_failover": (
        "AnotherPrimaryLendsNothingUntilAllLeasesOfBeforeHaveEnded", SCRIPT,
        "by == primary and tonumber(since) or now", "tonumber(since or now)"),
    "large_costs_in_parts": (
        "ALargeCostIsServedWholeOrNotAtAll", SCRIPT,
        "rem + g < need then g = 0 end", "rem + g < need then g = g + 0 end"),
    "lifetime_from_the_receipt": (
        "EndsAGenerationAfterTheRequestWasFirstSentHoweverLateItsReply", HOST,
        "= first_sent_ns + kLifetimeNs;", "= now_ns + 0 * first_sent_ns + kLifetimeNs;"),
    "returned_and_kept": (
        "TakesWhatItReturnsOutOfItsCreditsBeforeItIsSent", HOST,
        "  credits_ -= back;  // L3\n", ""),
    "kept_though_no_longer_counted": (
        "DropsAllThatIsNoLongerCountedForIt", HOST,
        "    credits_ = pending_ = 0;\n    frozen_rem_ = 0;\n", ""),
}


@pytest.mark.timeout_s(COMPILE_TIMEOUT_S)
@pytest.mark.parametrize("name", MUTANTS)
def test_a_seeded_bug_is_found(name, tmp_path):
    seen, file, code, bug = MUTANTS[name]
    mutant = write_mutant(file, code, bug, str(tmp_path))
    if file == SCRIPT:
        done = run([os.path.join(build_dir(), TEST)], RUN_TIMEOUT_S, LEASE_SCRIPT=mutant)
    else:
        done = run([link_with(file, mutant, TEST, str(tmp_path))], RUN_TIMEOUT_S)
    assert done.returncode == 1, f"{name} survived:\n{done.stdout}{done.stderr}"
    assert f"{seen}\n" in done.stdout.split("tests, listed below:")[-1].split(
        "test, listed below:")[-1], f"{name} was found, but not by what it does:\n{done.stdout}"
