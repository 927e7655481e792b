"""Seeded bugs in the slot protocol, one or more for each invariant: the model checker finds each.

A mutant is a copy of shm/ with one change. The model's test program is compiled against it and must
fail; one that passes has survived, and then either the model or the code says too little.
"""

import concurrent.futures
import os
import shutil
import subprocess

import pytest

from harness.sluice import ROOT

# Compiling and running all mutants.
SUITE_TIMEOUT_S = 900
COMPILE_TIMEOUT_S = 300
RUN_TIMEOUT_S = 300
# Most mutants are found early: the scenarios before the one that finds them need not be walked far.
# The code as it is walks the first bound here, and further in its own suite.
STATES = (60_000, 1_000_000)

TABLE, BUCKET, TAKE = "slot_table.h", "bucket.h", "take.h"
WINDOW, WINDOW_SLOT, PURSE = "window.h", "window_slot.h", "purse.h"
LOG, LOG_ROW, LOG_SLOT = "log.h", "log_row.h", "log_slot.h"
PLACES, PLACE_SLOT, LENT_PLACES = "places.h", "place_slot.h", "lent_places.h"
SLOT_TEST, WINDOW_TEST = "tests/model/slot_protocol_test.cc", "tests/model/window_slot_test.cc"
PURSE_TEST, LOG_TEST = "tests/model/purse_test.cc", "tests/model/log_slot_test.cc"
PLACE_TEST = "tests/model/place_slot_test.cc"
TEST_OF = {WINDOW: WINDOW_TEST, WINDOW_SLOT: WINDOW_TEST, PURSE: PURSE_TEST,
           LOG: LOG_TEST, LOG_ROW: LOG_TEST, LOG_SLOT: LOG_TEST, PLACES: PLACE_TEST,
           PLACE_SLOT: PLACE_TEST, LENT_PLACES: PLACE_TEST}  # else SLOT_TEST; F1 to F6 PLACE_TEST
EXPLORER = "tests/model/explorer.cc"

# name: (what it breaks, file, the code as it stands, the bug)
MUTANTS = {
    "fresh_word_not_above_the_old": (
        "I1", TABLE, "std::max(now_us, (has_payload ? AboveNs(w) : w) / 1000 + 1)", "w / 1000"),
    "spend_without_compare": (
        "I1", BUCKET,
        "return slot.word.compare_exchange_strong(w, seen.verdict.new_ns, "
        "std::memory_order_acq_rel);",
        "slot.word.store(seen.verdict.new_ns + 0 * w); return true;"),
    "key_before_word": (
        "I2", BUCKET,
        "  const uint64_t w = slot.word.load(std::memory_order_acquire);\n"
        "  if (word::IsDead(w)) [[unlikely]] {\n    return Outcome::kLost;\n  }\n"
        "  const uint64_t k = slot.key.load(std::memory_order_acquire);  // after the word: I2\n",
        "  const uint64_t k = slot.key.load(std::memory_order_acquire);\n"
        "  const uint64_t w = slot.word.load(std::memory_order_acquire);\n"
        "  if (word::IsDead(w)) [[unlikely]] {\n    return Outcome::kLost;\n  }\n"),
    "key_not_looked_at": (
        "I2", BUCKET, "if (key::Fp(k) != fp) [[unlikely]] {", "if (key::Fp(k) != fp && fp == 0) {"),
    "refund_of_any_tenant": (
        "I2", BUCKET,
        "if ((fp != 0 && key::Fp(k) != fp) || key::Gen(k) != gen) return false;\n"
        "    // Never below",
        "if (k == gen + fp) return false;\n    // Never below"),
    "fold_of_any_tenant": (
        "I2", TAKE,
        "if (word::IsDead(w) || slot.key.load(std::memory_order_acquire) != k) return false;",
        "if (word::IsDead(w)) return false;"),
    "use_left_to_the_next_tenant": (
        "I3", TABLE,
        "if (used::Gen(u) == key::Gen(k) || s.word.load(std::memory_order_seq_cst) != d) break;",
        "break;"),
    "use_reset_tried_once": (
        "I3", TABLE,
        "    for (int attempt = 0; attempt < kMaxRestarts; ++attempt) {\n"
        "      uint64_t u = s.used.load(std::memory_order_seq_cst);\n"
        "      // Loaded before",
        "    for (int attempt = 0; attempt < 1; ++attempt) {\n"
        "      uint64_t u = s.used.load(std::memory_order_seq_cst);\n"
        "      // Loaded before"),
    "take_without_gen": (
        "I3", TAKE,
        "if (used::Gen(u) != key::Gen(k) || slot.key.load(std::memory_order_acquire) != k) "
        "return 0;", ""),
    "take_without_compare": (
        "I3", TAKE,
        "    if (slot.used.compare_exchange_strong(u, used::Make(key::Gen(k), 0),\n"
        "                                          std::memory_order_seq_cst)) {\n"
        "      return count;\n    }\n",
        "    slot.used.store(used::Make(key::Gen(k), 0));\n    return count;\n"),
    "dirty_flag_before_use": (
        "the dirty flag", BUCKET,
        "  slot.used.fetch_add(tokens, std::memory_order_seq_cst);\n"
        "  return slot.aux.load(std::memory_order_seq_cst);\n",
        "  const uint64_t a = slot.aux.load(std::memory_order_seq_cst);\n"
        "  slot.used.fetch_add(tokens, std::memory_order_seq_cst);\n  return a;\n"),
    "wild_dead_word_left": (
        "I4", TABLE,
        "} else if (s.word.compare_exchange_strong(d, word::Dead(key::Gen(k), now_ns / 1000),\n"
        "                                              std::memory_order_acq_rel)) {",
        "} else if (now_ns == 0) {"),
    "stalled_claim_left": (
        "I4", TABLE,
        "      if (s.key.compare_exchange_strong(k, emptied, std::memory_order_acq_rel)) {\n"
        "        const int64_t left = Finish(i, d, emptied);\n",
        "      if (emptied == 0) {\n        const int64_t left = Finish(i, d, emptied);\n"),
    "lower_duplicate_emptied": (
        "I5", TABLE, "if (i <= winner || FpAt(i) != ", "if (i == winner || FpAt(i) != "),
    "duplicates_left": (
        "I5", TABLE, "return ResolveDuplicates(hash, env);", "return candidate.slot;"),
    "larger_debt_instead_of_both": (
        "I5", TABLE,
        "const uint64_t sum = std::max(w, env.now_ns) + owed.debt_ns;",
        "const uint64_t sum = std::max(w, env.now_ns + owed.debt_ns);"),
    "debt_into_a_winner_that_loses": (
        "I5", TABLE,
        "        use += SettleTenancy(winner, w, FingerprintOf(hash), env.now_ns);\n"
        "        continue;\n",
        "        return;\n"),
    "second_word_of_any_tenancy": (
        "W1", WINDOW,
        "  const bool is_ours = second::Gen(s) == gen;\n  if (end_ns",
        "  const bool is_ours = gen == gen;\n  if (end_ns"),
    "second_word_of_another_instant": (
        "W1", WINDOW_SLOT,
        "return second == nullptr || slot.word.load(std::memory_order_acquire) == pair->word;",
        "return true;"),
    "second_word_without_compare": (
        "W1", WINDOW_SLOT,
        "  if (m.second_first != s &&\n"
        "      !beside->compare_exchange_strong(s, m.second_first, std::memory_order_acq_rel)) {\n"
        "    return false;\n  }\n",
        "  if (m.second_first != s) beside->store(m.second_first);\n"),
    "late_spends_of_a_closed_window_left_out": (
        "W2", WINDOW, "std::max(Count(w), is_half_begun ? second::Closed(s) : 0);",
        "is_half_begun ? second::Closed(s) : Count(w);"),
    "word_before_the_second_word": (
        "W2", WINDOW, "  m.second_first = price.is_from_purse ? paid : begun;\n",
        "  m.second_first = price.is_from_purse ? paid : s;\n"),
    "purse_paid_from_after_the_word": (
        "W3", WINDOW, "  m.second_first = price.is_from_purse ? paid : begun;\n",
        "  m.second_first = begun;\n"),
    "purse_paid_into_before_the_word": (
        "W3", WINDOW, "  m.second_first = price.is_from_purse ? paid : begun;\n",
        "  m.second_first = paid;\n"),
    "purse_lowered_by_a_refund_after_the_word": (
        "W3", WINDOW, "    m.new_word -= 1;\n    m.second_first = m.second_after;\n",
        "    m.new_word -= 1;\n"),
    "turn_kept_over_a_report": (
        "P1", PURSE,
        "credits::NextTurn(word_), left - taken);", "credits::Turn(word_), left - taken);"),
    "more_than_was_put_in_believed": (
        "P1", PURSE,
        "std::min(credits::Count(w), credits_ + told_) : 0;", "credits::Count(w) : credits_;"),
    "credits_changed_without_compare": (
        "P2", PURSE,
        "return slot_->word.compare_exchange_strong(w, next, std::memory_order_acq_rel);",
        "slot_->word.store(next + 0 * w); return true;"),
    "purse_of_any_tenant": (
        "P2", PURSE,
        "if (word::IsDead(*w) || slot_->key.load(std::memory_order_acquire) != key_) slot_",
        "if (word::IsDead(*w)) slot_"),
    "expired_counted_without_a_look": (
        "P3", PURSE, "(!expired || left == 0)) return", "true) return"),
    "a_word_of_before_believed": (
        "K4", PURSE, "credits::NextTurn(w), 0);", "credits::Turn(w), credits::Count(w));"),
    "moved_use_not_taken_back": (
        "I3", TABLE, "if (use != 0 && !MoveUse(s, k, -use, /*is_back=*/true)) use = 0;", ""),
    "entry_taken_without_compare": (
        "L1", LOG_ROW,
        "    if (IsFree(t, e, gen, now_ns) &&\n"
        "        row.entries[i].compare_exchange_strong(e, stamp, std::memory_order_seq_cst)) {\n",
        "    if (IsFree(t, e, gen, now_ns)) {\n      row.entries[i].store(stamp);\n"),
    "given_back_as_never_taken": (
        "L1", LOG_ROW, "row.entries[i].compare_exchange_strong(e, stamp | kGivenBack,",
        "row.entries[i].compare_exchange_strong(e, 0,"),
    "more_given_back_than_taken": (
        "L2", LOG_ROW, "n < size && given < tokens; ++n", "n < size && given < tokens + 1; ++n"),
    "entries_left_in_a_duplicate": (
        "L3", LOG_ROW, "if (word::IsDead(ours)) return true;", "return true;"),
    "entry_moved_by_two": (
        "L3", LOG_ROW,
        "      GiveBack(to, t.limit, to_gen, moved & kTimeMask, 0, 1);\n    }\n  }\n", "    }\n  }\n"),
    "word_not_raised": (
        "L4", LOG_SLOT, "if (payload::TimeNs(w) < until_ns) {", "if (until_ns == 0) {"),
    "entry_of_a_later_gen_is_free": (
        "L4", LOG, "e == 0 || static_cast<int16_t>(Gen(e) - gen) < 0", "!IsOurs(e, gen)"),
    "a_part_taken_for_the_whole": (
        "L5", LOG_SLOT, "taken.count < tokens ||", "taken.count == 0 ||"),
    "a_class_does_not_count_again": (
        "L6", LOG_SLOT, "|| IsOver(row, t, room, seen->gen, now_ns, tokens));", "|| false);"),
    "what_was_too_little_is_kept": (
        "L5", LOG_SLOT,
        "        GiveBack(row, t.limit, seen->gen, stamp_us, start, taken.count);\n", ""),
    "place_taken_without_compare": (
        "F1", PLACES,
        "    if (IsFree(e, Gen(entry)) &&\n"
        "        row.entries[i].compare_exchange_strong(e, entry, std::memory_order_seq_cst)) {\n",
        "    if (IsFree(e, Gen(entry))) {\n      row.entries[i].store(entry);\n"),
    "a_part_of_the_places_for_all": (
        "F1", PLACE_SLOT, "if (counts && is_lent && taken.count == places)",
        "if (counts && is_lent)"),
    "places_too_few_are_kept": (
        "F1", PLACE_SLOT, "    Leave(row, entry, taken.first, taken.count);\n", ""),
    "place_counts_in_one_of_two_slots": (
        "F2", PLACE_SLOT, "return table.IsAlone(hash, index);", "return true;"),
    "the_lowest_remains_wherever_one_is": (
        "F2", PLACES, "held != ~0u ? held : lowest;", "lowest;"),
    "a_pinned_slot_is_emptied": (
        "F3", TABLE,
        "      if (key::KindOf(k) == Kind::kInFlight && !places::IsLoose(w)) return;  // F3\n", ""),
    "no_mark_before_the_look": (
        "F3", PLACES, "uint64_t mark = Loosening(w);", "uint64_t mark = w;"),
    "the_mark_is_left_there": (
        "F3", PLACE_SLOT, "if (StateOf(w) != State::kPinned &&", "if (IsLoose(w) &&"),
    "no_look_at_the_word_afterwards": (
        "F3", PLACE_SLOT,
        "if (word::IsDead(w) || slot.key.load(std::memory_order_seq_cst) != k) return false;",
        "return k + limit + now_ns != 0;"),
    "the_same_word_pinned_again": (
        "F3", PLACES, "const uint64_t turn = ((w >> 2) + 1) & 0xff;",
        "const uint64_t turn = (w >> 2) & 0xff;"),
    "no_look_at_the_cap_afterwards": (
        "F5", PLACE_SLOT, "if (counts && is_lent &&", "if (counts &&"),
    "the_row_is_looked_at_before_the_cap_is_lowered": (
        "F5", LENT_PLACES,
        "  if (!cell.compare_exchange_strong(before, after, std::memory_order_seq_cst)) return false;\n"
        "  const Stock seen = LookAt(row, gen, cap);\n",
        "  const Stock seen = LookAt(row, gen, cap);\n"
        "  if (!cell.compare_exchange_strong(before, after)) return false;\n"),
    "what_is_held_beyond_the_cap_is_forgotten": (
        "F5", LENT_PLACES, "stock.beyond += i >= cap ? 1 : 0;", "stock.beyond += 0;"),
    "the_cap_of_another_tenancy": (
        "F6", LENT_PLACES, "if (Gen(cap) != gen || now_ns >= UntilNs(cap)) return 0;",
        "if (now_ns >= UntilNs(cap)) return 0;"),
    "a_cap_without_an_end": (
        "F6", LENT_PLACES, "if (Gen(cap) != gen || now_ns >= UntilNs(cap)) return 0;",
        "if (Gen(cap) != gen || now_ns == 0) return 0;"),
    "left_by_whomever": (
        "F4", PLACES,
        "if (e == entry && row.entries[i].compare", "if (e != 0 && row.entries[i].compare"),
}


# No mutant is of what it includes.
def explorer_in(folder):
    return os.path.join(folder, "explorer.o")


def compile_model(includes, argv, output):
    done = subprocess.run(["g++", "-std=c++20", "-O1", "-w", *(f"-I{path}" for path in includes),
                           *argv, "-o", output],
                          capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False)
    assert done.returncode == 0, f"{output}: {done.stderr[-2000:]}"


def build_and_run(folder, name):
    """The model's tests over the mutant `name`, or over the code as it is for None."""
    broken, file, code, bug = MUTANTS[name] if name else ("", TABLE, "#pragma once", "#pragma once")
    name = name or "none"
    root = os.path.join(folder, name)
    shutil.copytree(os.path.join(ROOT, "shm"), os.path.join(root, "shm"))
    path = os.path.join(root, "shm", file)
    with open(path, encoding="utf-8") as source:
        text = source.read()
    assert text.count(code) == 1, f"{name}: shm/{file} has changed; {text.count(code)} places match"
    with open(path, "w", encoding="utf-8") as source:
        source.write(text.replace(code, bug))
    program = os.path.join(root, "model")
    tests = ((SLOT_TEST, WINDOW_TEST, PURSE_TEST, LOG_TEST, PLACE_TEST) if name == "none" else
             (PLACE_TEST if broken.startswith("F") else TEST_OF.get(file, SLOT_TEST),))
    compile_model((root, ROOT),
                  [*(os.path.join(ROOT, source) for source in tests), explorer_in(folder),
                   "-lgtest", "-lgtest_main", "-lboost_context", "-lpthread"], program)
    for states in STATES:
        env = dict(os.environ, MODEL_STATES=str(states), GTEST_OUTPUT="")
        run = subprocess.run([program, "--gtest_fail_fast"], capture_output=True, text=True,
                             env=env, timeout=RUN_TIMEOUT_S, check=False)
        if run.returncode != 0 or name == "none":
            break
    return run


@pytest.fixture(scope="module", name="runs")
def fixture_runs(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("mutants"))
    compile_model((ROOT,), ["-c", os.path.join(ROOT, EXPLORER)], explorer_in(folder))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        names = [None, *MUTANTS]
        return dict(zip(names, pool.map(lambda name: build_and_run(folder, name), names)))


def test_the_code_as_it_is_passes(runs):
    assert runs[None].returncode == 0, runs[None].stdout


@pytest.mark.parametrize("name", MUTANTS)
def test_the_model_finds(runs, name):
    run = runs[name]
    assert run.returncode == 1, f"{name} breaks {MUTANTS[name][0]} and survived:\n{run.stdout}"
    assert "Which is: \"" in run.stdout, f"{name} failed, but not by a check:\n{run.stdout}"
