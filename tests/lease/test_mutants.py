"""Seeded bugs in the strict scheme: the tests of its sides find each.

A mutant of the script is another text of it; one of the host's side is compiled and linked in front
of the library that holds it as it is, one of a header with the test that includes it. One that passes
has survived: then the tests see too little.
"""

import os

import pytest

from harness.mutants import COMPILE_TIMEOUT_S, link_with, run, write_mutant
from harness.sluice import build_dir

SUITE_TIMEOUT_S = 600
SUITE_PARALLEL = True
RUN_TIMEOUT_S = 60

HOST = "daemon/lease/lease.cc"
SCRIPT = "lua/lease.lua"
KEEPER = "daemon/lease/keeper.cc"
PURSE = "shm/purse.h"
TEST = "tests/lease/lease_test"
KEEPER_TEST = "tests/lease/keeper_test"
PURSE_TEST = "tests/shm/purse_test"
REFILL = "level = max(level, min(level + pace * (at - t), (burst - o0 - o1) * unit + spare))"

# What holds what is changed.
BUILT_INTO = {HOST: TEST, KEEPER: KEEPER_TEST, PURSE: PURSE_TEST}

# name: (the test that must fail, file, the code as it stands, the bug)
MUTANTS = {
    "outstanding_not_counted": (
        "RefillStopsWhereLevelAndWhatIsOutAreTheBurst", SCRIPT, REFILL,
        REFILL.replace("(burst - o0 - o1)", "burst")),
    "refill_in_a_lump": (
        "RefillIsCountedUpToTheEndOfEachGeneration", SCRIPT,
        "      level = max(level, min(level + pace * (ending - t), (burst - o0 - o1) * unit + spare))\n"
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
    "overdraft_not_paid": (
        "Script.WhatWasSpentBeyondTheLeaseIsTakenFromTheLevelDownToItsFloor", SCRIPT,
        "level - (over + alone) * unit + paid", "level - alone * unit + paid"),
    "lost_refill_pays_twice": (
        "Script.WhatAHostSpentAloneIsPaidByRefillThatWasLostWhileNobodyCame", SCRIPT,
        "    lost = lost - paid\n", ""),
    "unsettled_use_not_told": (
        "OverdraftKeeperTest.WhatWasSpentBeforeTheDaemonLookedIsTold", KEEPER,
        "b.lease->Observe(unsettled, 0, 1, now_ns);", "(void)unsettled;"),
    "ask_not_settled_by_the_word": (
        "KeeperTest.ClientsThatSpendWhileAReportIsMadeAreSeen", KEEPER,
        "lease.Settle(&ask, back, change.taken,", "lease.Settle(&ask, back, back + 0 * change.taken,"),
    "returned_and_left_in_the_word": (
        "KeeperTest.ClientsThatSpendWhileAReportIsMadeAreSeen", KEEPER,
        "lease.Settle(&ask, back, change.taken, kept - std::min(kept, extra) + outside);",
        "lease.Settle(&ask, back, change.taken, kept - std::min(kept, extra) + outside); "
        "(void)b.purse.Put(back, lease.expiry_ns());"),
    "kept_in_the_word_after_a_fence": (
        "KeeperTest.WhatIsNoLongerCountedIsTakenOutOfTheWord", KEEPER,
        "  if (!grant.live) Note(b, b.purse.TakeOut(shm::credits::kMax), now_ns);\n", ""),
    "a_word_of_before_believed": (
        "PurseTest.WhatStoodThereBeforeIsNobodys", PURSE,
        "credits::NextTurn(w), 0);", "credits::Turn(w), credits::Count(w));"),
    "expired_counted_without_a_look": (
        "PurseTest.AnExpiredWordIsEmptiedBeforeItIsCounted", PURSE,
        "(!expired || left == 0)) return", "true) return"),
    "a_turn_that_never_changes": (
        "PurseTest.EachReportBeginsATurn", PURSE,
        "credits::NextTurn(word_), left - taken);", "credits::Turn(word_), left - taken);"),
    "taken_without_a_look": (
        "PurseBetweenTest.WhoSpendsBetweenTheLookAndTheChangeIsSeen", PURSE,
        "return slot_->word.compare_exchange_strong(w, next, std::memory_order_acq_rel);",
        "slot_->word.store(next); return w != 0;"),
    "ends_later_than_told": (
        "PurseTest.EndsNoLaterThanItWasTold", PURSE,
        "credits::Make(expiry_ns, credits::Turn(word_), left + fitting)",
        "credits::Make(expiry_ns + credits::kStepNs, credits::Turn(word_), left + fitting)"),
}


@pytest.mark.timeout_s(COMPILE_TIMEOUT_S)
@pytest.mark.parametrize("name", MUTANTS)
def test_a_seeded_bug_is_found(name, tmp_path):
    seen, file, code, bug = MUTANTS[name]
    mutant = write_mutant(file, code, bug, str(tmp_path))
    if file == SCRIPT:
        done = run([os.path.join(build_dir(), TEST)], RUN_TIMEOUT_S, LEASE_SCRIPT=mutant)
    else:
        done = run([link_with(file, mutant, BUILT_INTO[file], str(tmp_path))], RUN_TIMEOUT_S)
    assert done.returncode == 1, f"{name} survived:\n{done.stdout}{done.stderr}"
    assert f"{seen}\n" in done.stdout.split("tests, listed below:")[-1].split(
        "test, listed below:")[-1], f"{name} was found, but not by what it does:\n{done.stdout}"


REGIONS_TEST = "tests/lease/regions_test"
HOME = "lua/home.lua"
HOMES = "daemon/lease/homes.cc"
MOVES = "AHomeMovesWhileHostsLearnOfItAtDifferentTimes"
FORGETS = "AFailoverThatForgetsAMoveOpensTheFormerHomeForNobody"

# As above, of homes that move between regions.
REGION_MUTANTS = {
    "lent_where_it_is_not_at_home": (
        MOVES, SCRIPT, "  if away > 0 then g = 0 end\n", ""),
    "full_from_the_start": (
        MOVES, SCRIPT, "  since = max(since, fence)\n", "  since = fence\n"),
    "open_under_another_primary": (
        FORGETS, SCRIPT, "opened > 0 and opened >= fence and", "opened > 0 and"),
    "opened_late_whatever_was_set_since": (
        "HomeScriptTest", HOME, "if open == set and", "if open > 0 and"),
    "set_once_for_all_primaries": (
        "AFailoverOfTheHomeCostsItsFence", HOME, "if e < epoch or set < fence then", "if e < epoch then"),
    "opened_before_all_have_heard": (
        MOVES, HOMES, "  if (!all_answered) return absl::OkStatus();\n", ""),
    "a_lease_that_stays_where_it_was": (
        MOVES, KEEPER, " &&\n        HomeOf(*rule) == b.home) {", ") {"),
}


@pytest.mark.timeout_s(COMPILE_TIMEOUT_S)
@pytest.mark.parametrize("name", REGION_MUTANTS)
def test_a_seeded_bug_of_homes_is_found(name, tmp_path):
    seen, file, code, bug = REGION_MUTANTS[name]
    mutant = write_mutant(file, code, bug, str(tmp_path))
    program = os.path.join(build_dir(), REGIONS_TEST)
    env = {}
    if file.endswith(".lua"):
        env["LEASE_SCRIPT" if file == SCRIPT else "HOME_SCRIPT"] = mutant
    else:
        program = link_with(file, mutant, REGIONS_TEST, str(tmp_path))
    done = run([program, f"--gtest_filter=*{seen}*"], COMPILE_TIMEOUT_S, **env)
    assert done.returncode == 1, f"{name} survived:\n{done.stdout}{done.stderr}"


PLACES_TEST = "tests/lease/places_test"
PLACES = "lua/places.lua"
PLACE_KEEPER = "daemon/lease/place_keeper.cc"
NEVER = "NoMoreThanTheLimitAreEverIn"

# As above, of places of requests in flight.
PLACE_MUTANTS = {
    "what_the_host_keeps_is_not_counted": (
        NEVER, PLACES, "limit - out - kept - ahead", "limit - out - ahead"),
    "a_copy_is_run_again": (NEVER, PLACES, "if seq == words[1] then", "if seq < 0 then"),
    "a_call_of_before_is_run": (NEVER, PLACES, "if seq < words[1] then", "if seq < 0 then"),
    "lent_before_all_have_reported": (
        "AfterAFailoverThatLosesAllNothingIsLent", PLACES, "max(0, since + FENCE_US - now)", "0"),
    "silent_while_redis_was_away": (
        "NobodyIsSilentWhileRedisIsAway", PLACES, "now - called > PAUSE_US then", "now < 0 then"),
    "a_former_daemon_counts": (
        "ADaemonThatStartsAgainTakesOver", PLACES, "not is_before(who) and", "who ~= '' and"),
    "nobody_is_ever_silent": (
        "PlacesOfAHostThatIsSilent", PLACES, "<= SILENT_US and o", "<= SILENT_US * 9 and o"),
    "who_leaves_is_followed_though_more_are_out": (
        "ALowerLimitLetsNobodyIn", PLACES, "max(0, out + kept - limit)", "0"),
    "good_from_the_receipt": (
        "AFreePlaceOfAHostThatIsCutOff", PLACE_KEEPER, "s.first_sent_ns + kPlacesGoodNs",
        "s.first_sent_ns + 2 * kPlacesGoodNs"),
    "lent_on_though_it_was_given_back": (
        NEVER, PLACE_KEEPER, "    b.kept = b.lent = b.stock.counted();",
        "    b.kept = b.stock.held;"),
}


@pytest.mark.timeout_s(COMPILE_TIMEOUT_S)
@pytest.mark.parametrize("name", PLACE_MUTANTS)
def test_a_seeded_bug_of_places_is_found(name, tmp_path):
    seen, file, code, bug = PLACE_MUTANTS[name]
    mutant = write_mutant(file, code, bug, str(tmp_path))
    program = os.path.join(build_dir(), PLACES_TEST)
    env = {"PLACES_SCRIPT": mutant} if file == PLACES else {}
    if file == PLACE_KEEPER:
        program = link_with(file, mutant, PLACES_TEST, str(tmp_path))
    done = run([program, f"--gtest_filter=*{seen}*"], COMPILE_TIMEOUT_S, **env)
    assert done.returncode == 1, f"{name} survived:\n{done.stdout}{done.stderr}"
