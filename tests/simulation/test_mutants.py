"""Seeded bugs in the way to Redis: the simulation finds each.

A mutant is one changed file of the daemon; the sources that it goes into are compiled again and
linked in front of the libraries that hold them as they are. It must fail in one of the seeds, by the
check that it should; one that passes has survived, and then the simulation sees too little.
"""

import concurrent.futures
import os

import pytest

from harness.mutants import compile_mutated, link_in_front, run, write_mutant

SUITE_TIMEOUT_S = 900
RUN_TIMEOUT_S = 300
SEEDS = 400

RECONCILER = "daemon/reconcile/reconciler.cc"
LEDGER = "daemon/reconcile/ledger.cc"
CALLS = "daemon/redis/client_calls.cc"
STRICT = "daemon/reconcile/strict.cc"
PENALTIES = "daemon/reconcile/penalties.cc"
PLACES = "daemon/lease/place_keeper.cc"
LEASE = "daemon/lease/lease.cc"
COMPILE = "daemon/config/compile.cc"
QUOTAS = "daemon/reconcile/quotas.cc"

# name: (what must be seen, file, the code as it stands, the bug, the sources to compile)
MUTANTS = {
    "resend_merged_into_a_new_batch": (
        "counted twice", RECONCILER,
        "  s.batch->waiting = false;\n  s.backoff_ns",
        "  for (const BatchItem& item : s.batch->items) {\n"
        "    ledger_.bucket(item.bucket).in_flight = false;\n"
        "    ledger_.AddUse(item.bucket, item.tokens, 0, item.since_ns, now_ns);\n"
        "  }\n  s.batch.reset();\n  s.backoff_ns",
        [RECONCILER]),
    "epoch_ignored": (
        "lost:", RECONCILER, "s.journal.empty() ? -1 : s.known_seq", "-1 + 0 * s.known_seq",
        [RECONCILER]),
    "redirect_looping": (
        "redirects", CALLS, "if (++request.redirects > kMaxRedirects)",
        "if (++request.redirects == 0)", [CALLS]),
    "emergency_never_left": (
        "not settled", RECONCILER, "if (!stale && breaker->IsCalm(now_ns))",
        "if (!stale && breaker->IsCalm(now_ns) && index > 1'000'000)", [RECONCILER]),
    "emergency_never_entered": (
        "and no emergency", RECONCILER, "if (old || (cut && !starting) || IsForced(index)) {",
        "if ((old || (cut && !starting)) && index > 1'000'000) {", [RECONCILER]),
    "batch_dropped_when_it_fails": (
        "lost:", RECONCILER, "  s.batch->waiting = false;\n  s.backoff_ns",
        "  s.batch.reset();\n  s.backoff_ns", [RECONCILER]),
    "given_up_after_a_second": (
        "were given up", "daemon/reconcile/reconciler.h", "kGiveUpNs = 12ull * 3600 * 1'000'000'000",
        "kGiveUpNs = 1'000'000'000", [RECONCILER]),
    "forgotten_batches_under_new_numbers": (
        "counted twice", RECONCILER,
        "RestoreQuotas(index, now_ns);\n  SendAgain(index, now_ns);",
        "RestoreQuotas(index, now_ns);\n  while (!s.again.empty()) {\n"
        "    const JournalEntry entry = ledger_.TakeAgain(index);\n"
        "    for (const BatchItem& item : entry.items) {\n"
        "      ledger_.bucket(item.bucket).in_flight = false;\n"
        "      ledger_.AddUse(item.bucket, item.tokens, 0, item.since_ns, now_ns);\n"
        "    }\n  }", [RECONCILER]),
    "journal_shorter_than_stated": (
        "lost:", "daemon/reconcile/ledger.h", "kJournalNs = 2'000'000'000",
        "kJournalNs = 200'000'000", [LEDGER]),
    "newest_first_when_sent_again": (
        "lost:", LEDGER, "s.again.push_front(std::move(s.journal.back()));",
        "s.again.push_back(std::move(s.journal.back()));", [LEDGER]),
    "banned_by_a_third_of_the_denials": (
        "banned: ", PENALTIES, "p.denied >= penalty.after)", "3 * p.denied >= penalty.after)",
        [PENALTIES]),
    "banned_for_what_redis_says_and_as_long_again": (
        "banned: ", PENALTIES, "is_lifted ? 0 : now_ns_ + state.banned_us * 1000;",
        "is_lifted ? 0 : now_ns_ + state.banned_us * 2000;", [PENALTIES]),
    "places_told_to_be_given_back_and_kept": (
        "in flight: ", PLACES,
        "    Put(b, std::min(b.lent, want), now_ns);\n    // M1",
        "    b.stock.cap = std::min(b.lent, want) / 2;\n    b.stock.beyond = 0;\n    // M1",
        [PLACES]),
    "free_places_kept_that_were_told_to_be_given_back": (
        "in flight: ", PLACES, "    b.kept = b.lent = b.stock.counted();",
        "    b.kept = b.stock.held;", [PLACES]),
    "strict_tokens_returned_and_kept": (
        "strict: ", LEASE, "  credits_ -= back;  // L3\n", "", [LEASE]),
    "a_class_leaves_half_of_what_it_must": (
        "class: ", COMPILE, "static_cast<uint16_t>((1 - part) * 65536)",
        "static_cast<uint16_t>((1 - part) * 32768)", [COMPILE]),
    "how_full_a_lent_bucket_is_told_as_twice": (
        "class: ", "shm/credits.h", "return tokens - std::min(tokens, burst - PartAbove(burst, floor_q16));",
        "return tokens - std::min(tokens, (burst - PartAbove(burst, floor_q16)) / 2);",
        ["tests/simulation/host_clients.cc"]),
    "a_candidate_in_the_place_of_its_rule": (
        "candidate: ", COMPILE, "view.hash_seed = shm::HashValue(salt_key_, label, seed);",
        "view.hash_seed = shm::HashValue(salt_key_, label.substr(0, label.find('?')), seed);",
        [COMPILE]),
    "quotas_not_told_again": (
        "quota: ", QUOTAS, "b.told_all <= 0) continue;", "b.told_all <= 1'000'000) continue;",
        [QUOTAS]),
    "the_day_before_taken_for_the_open_one": (
        "quota: ", "daemon/config/calendar.cc", "    if (entry.end_ns == kLongOverNs) continue;\n", "",
        ["daemon/config/calendar.cc"]),
    "private_values_told_as_they_are": (
        "private: ", "daemon/harvest/harvester.cc", "if (rule->privacy != nullptr) named.wire",
        "if (rule->privacy != nullptr && slot % 8 != 0) named.wire", ["daemon/harvest/harvester.cc"]),
    "near_its_limit_told_each_time": (
        "near their limit: ", "daemon/reconcile/near.cc", "if (until_ns > now_ns) return false;",
        "if (until_ns > now_ns + bucket.limit.period_ns) return false;",
        ["daemon/reconcile/near.cc"]),
    "breaker_never_closes": (
        "not settled", "daemon/reconcile/breaker.h",
        "      state_ = State::kClosed;\n      backoff_ns_ = 0;",
        "      state_ = State::kOpen;\n      reopen_ns_ = now_ns + kBackoffMaxNs;", [RECONCILER, STRICT]),
}


def build_and_run(folder, name):
    _, file, code, bug, sources = MUTANTS[name]
    root = os.path.join(folder, name)
    mutant = write_mutant(file, code, bug, root)
    objects = [compile_mutated(source, root, mutant if source == file else None)
               for source in sources]
    program = link_in_front("tests/simulation/simulate", objects, root)
    return run([program, "--seeds", str(SEEDS), "--fail-fast"], RUN_TIMEOUT_S)


@pytest.fixture(scope="module", name="runs")
def fixture_runs(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("mutants"))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return dict(zip(MUTANTS, pool.map(lambda name: build_and_run(folder, name), MUTANTS)))


@pytest.mark.parametrize("name", MUTANTS)
def test_the_simulation_finds(runs, name):
    seen, done = MUTANTS[name][0], runs[name]
    assert done.returncode == 1, f"{name} survived {SEEDS} seeds:\n{done.stdout}{done.stderr}"
    assert seen in done.stdout, f"{name} was found, but not by what it does:\n{done.stdout}"
    assert "replay: scripts/simulate --seed " in done.stdout
