"""Seeded bugs in the way to Redis: the simulation finds each.

A mutant is one changed file of the daemon; the sources that it goes into are compiled again and
linked in front of the libraries that hold them as they are. It must fail in one of the seeds, by the
check that it should; one that passes has survived, and then the simulation sees too little.
"""

import concurrent.futures
import json
import os
import shlex
import subprocess

import pytest

from harness.sluice import ROOT, build_dir

SUITE_TIMEOUT_S = 900
COMPILE_TIMEOUT_S = 300
RUN_TIMEOUT_S = 300
SEEDS = 400

RECONCILER = "daemon/reconcile/reconciler.cc"
LEDGER = "daemon/reconcile/ledger.cc"
CALLS = "daemon/redis/client_calls.cc"

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
        "std::move(batch));\n  SendAgain(index, now_ns);",
        "std::move(batch));\n  while (!s.again.empty()) {\n"
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
    "breaker_never_closes": (
        "not settled", "daemon/reconcile/breaker.h",
        "      state_ = State::kClosed;\n      backoff_ns_ = 0;",
        "      state_ = State::kOpen;\n      reopen_ns_ = now_ns + kBackoffMaxNs;", [RECONCILER]),
}


def link_command():
    """The words that link the program, as Ninja would."""
    done = subprocess.run(["ninja", "-C", build_dir(), "-t", "commands",
                           "tests/simulation/simulate"], capture_output=True, text=True, check=True)
    return shlex.split(done.stdout.splitlines()[-1])


def compile_command(source):
    with open(os.path.join(build_dir(), "compile_commands.json"), encoding="utf-8") as file:
        for entry in json.load(file):
            if os.path.realpath(os.path.join(entry["directory"], entry["file"])) == \
                    os.path.join(os.path.realpath(ROOT), source):
                return shlex.split(entry["command"]), entry["file"]
    raise AssertionError(f"nothing compiles {source}")


def run(argv, timeout_s):
    return subprocess.run(argv, cwd=build_dir(), capture_output=True, text=True, timeout=timeout_s,
                          check=False)


def build_and_run(folder, name):
    _, file, code, bug, sources = MUTANTS[name]
    root = os.path.join(folder, name)
    mutant = os.path.join(root, file)
    os.makedirs(os.path.dirname(mutant))
    with open(os.path.join(ROOT, file), encoding="utf-8") as source:
        text = source.read()
    assert text.count(code) == 1, f"{name}: {file} has changed; {text.count(code)} places match"
    with open(mutant, "w", encoding="utf-8") as out:
        out.write(text.replace(code, bug))
    objects = []
    for source in sources:
        argv, as_named = compile_command(source)
        target = os.path.join(root, os.path.basename(source) + ".o")
        argv[argv.index("-o") + 1] = target
        argv[argv.index(as_named)] = mutant if source == file else as_named
        # In front: the changed header is met before the one as it is.
        first = next(i for i, word in enumerate(argv) if word.startswith("-I"))
        argv[first:first] = [f"-I{root}"]
        done = run([word for word in argv if word != "-Werror"], COMPILE_TIMEOUT_S)
        assert done.returncode == 0, f"{name}: {done.stderr[-2000:]}"
        objects.append(target)
    argv = link_command()
    program = os.path.join(root, "simulate")
    argv[argv.index("-o") + 1] = program
    argv[argv.index("-o") + 2:argv.index("-o") + 2] = objects
    done = run(argv, COMPILE_TIMEOUT_S)
    assert done.returncode == 0, f"{name}: {done.stderr[-2000:]}"
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
