"""Reservations with a real daemon: clients that are killed at any instruction, and the books.

`RESERVE_OPERATIONS`, `RESERVE_KILLS` and `RESERVE_SEED` make a longer or another run.
"""

import json
import os
import random

import pytest

from harness.load import kill_workers_while
from harness.processes import Process, run
from harness.sluice import START_DEADLINE_S, Daemon, build_dir, ctl_json

OPERATIONS = int(os.environ.get("RESERVE_OPERATIONS", "50000"))
KILLS = int(os.environ.get("RESERVE_KILLS", "200"))
SEED = int(os.environ.get("RESERVE_SEED", "1"))
# Far below what any machine manages.
OPERATIONS_PER_S = 1000
KEYS = 64
LIMIT = 4_000_000
ROUNDS = 200

# A window that does not end while the test runs: nothing comes back by time.
RULES = f"""
rules:
  - name: tokens
    key: [user]
    algorithm: fixed_window
    limit: {LIMIT} per 100d
"""


def program(name):
    return os.path.join(build_dir(), "tests", "integration", name)


def judge(end, daemon):
    print(end)
    assert end["wrong"] == 0
    assert end["operations"] >= OPERATIONS and end["kills"] >= KILLS
    assert end["denied"] == 0
    for kind in ("settled", "cancelled", "late", "abandoned", "killed_within"):
        assert end[kind] > 0, kind
    # Exactly what was told, but for what the killed were about to do.
    assert end["charged_least"] <= end["charged"] <= end["charged_most"]
    assert end["charged_most"] - end["charged_least"] <= 60 * end["killed_within"]
    buckets = ctl_json("buckets", "tokens", "--limit", "100", daemon=daemon)["buckets"]
    assert len(buckets) == KEYS
    assert sum(LIMIT - b["remaining"] for b in buckets) == end["charged"] + KEYS


@pytest.mark.timeout_s(120 + OPERATIONS // OPERATIONS_PER_S)
def test_what_is_charged_is_what_was_settled_and_abandoned_over_clients_that_are_killed():
    with Daemon(RULES) as daemon:
        done = run([program("reserve_clients"), daemon.runtime_dir, OPERATIONS, KILLS, SEED],
                   90 + OPERATIONS / OPERATIONS_PER_S)
        judge(json.loads(done.stdout), daemon)


@pytest.mark.timeout_s(120 + OPERATIONS // OPERATIONS_PER_S)
def test_the_same_while_daemons_are_killed(tmp_path):
    rng = random.Random(SEED)
    with Daemon(RULES) as daemon:
        with Process([program("reserve_clients"), daemon.runtime_dir, OPERATIONS, KILLS, SEED],
                     tmp_path / "log") as clients:
            worker_kills = kill_workers_while(clients, [daemon], lambda: rng.random() * 0.5)
        end = json.loads((tmp_path / "log").read_text().splitlines()[-1])
        print(worker_kills, "workers killed")
        assert worker_kills > 0
        daemon.wait_for(lambda: daemon.status()["adopted"], START_DEADLINE_S, "adopted")
        judge(end, daemon)


@pytest.mark.timeout_s(120)
def test_five_at_once_never_reserve_more_than_there_is():
    with Daemon("rules:\n  - {name: tokens, key: [user], limit: 100 per 300d}\n") as daemon:
        end = json.loads(run([program("reserve_at_once"), daemon.runtime_dir, ROUNDS], 90).stdout)
        print(end)
        assert end["rounds"] == ROUNDS
        assert end["most"] <= 100
        # Of a new bucket one had something, or more after that one's had come back.
        assert sum(end["first"]) >= ROUNDS and end["reserved"] >= ROUNDS
