"""SIGKILL at any instruction: clients and the daemon, over a small crowded table.

`TORTURE_KILLS` and `TORTURE_SEED` make a longer or another run; scripts/torture sets them.
"""

import os
import random
import struct
import time

import pytest

from harness.processes import Process, wait_until
from harness.sluice import Daemon, build_dir
from torture.torment import HANG_S, torment_daemon

KILLS = int(os.environ.get("TORTURE_KILLS", "10000"))
SEED = int(os.environ.get("TORTURE_SEED", "1"))
KEYS = 260
LIMIT, BURST = 200, 40
DAEMON_ONE_OF = 500
# After the last kill the rules go on for long enough to be told from their candidates.
CHECKS_AFTER = 1_000_000
# Far below what any machine manages.
KILLS_PER_S = 20

CONFIG = f"""
daemon:
  runtime_dir: {{runtime_dir}}
  buckets: 256
rules:
  - {{name: torture, key: [key], limit: {LIMIT}/s, burst: {BURST}, candidate: {{limit: 1/s}}}}
"""


class Ledger:
    """What torture_clients writes down; see there."""

    def __init__(self, path):
        self._path = path
        path.write_bytes(bytes((KEYS + 5) * 8))

    def read(self):
        with open(self._path, "rb") as file:
            words = struct.unpack(f"{KEYS + 5}Q", file.read((KEYS + 5) * 8))
        names = ("overflow", "checks", "kills", "kills_in_attach", "stops")
        return {"admitted": words[:KEYS], **dict(zip(names, words[KEYS:]))}


# iceoryx#325, iceoryx#2193: robust mutexes did not save those who died or stood still in them.
@pytest.mark.timeout_s(120 + KILLS // KILLS_PER_S)
def test_kills_leave_no_key_over_its_bound_no_hang_and_no_lost_slot(tmp_path):
    rng = random.Random(SEED)
    ledger = Ledger(tmp_path / "ledger")
    program = os.path.join(build_dir(), "tests", "torture", "torture_clients")
    with Daemon(CONFIG) as daemon:
        started = time.monotonic()
        with Process([program, daemon.runtime_dir, tmp_path / "ledger", KEYS, SEED, KILLS],
                     tmp_path / "log") as clients:
            wait_until(lambda: ledger.read()["kills"] > 0, HANG_S, "the first kill")
            daemon_kills, upgrades = torment_daemon(
                daemon, clients, lambda: ledger.read()["kills"], KILLS, DAEMON_ONE_OF, rng)
            daemon.wait_for(daemon.metrics, HANG_S, "the last worker")
            before = ledger.read()
            wait_until(lambda: ledger.read()["checks"] > before["checks"] + CHECKS_AFTER, HANG_S,
                       "checks go on after the last kill")
        ran_s = time.monotonic() - started
        end = ledger.read()
        hottest = max(end["admitted"])
        # Rate and burst; one extra burst for each killed duplicate insert, at most one per kill.
        usual = LIMIT * ran_s + BURST
        bound = usual + BURST * KILLS
        print(f"{end['kills']} client kills, {end['kills_in_attach']} of them while attaching, "
              f"{end['stops']} stops, {daemon_kills} daemon kills, {upgrades} upgrades, "
              f"{ran_s:.1f} s, {end['checks']} checks, hottest key {hottest} "
              f"(rate and burst: {usual:.0f}, bound: {bound:.0f}), overflow {end['overflow']}")
        assert hottest <= bound
        assert hottest <= usual * 1.05 + BURST, "kills are not to be felt as a higher limit"
        assert hottest >= usual * 0.3, "the hot key was hardly admitted"
        assert end["overflow"] <= usual * 1.05, "the overflow bucket has a limit too"
        assert daemon_kills + upgrades >= KILLS // (4 * DAEMON_ONE_OF)
        assert KILLS < 1000 or end["kills_in_attach"] > 0, "no client was killed while attaching"
        metrics = daemon.metrics()
        live, tried = ({result: metrics.value("sluice_checks_total", rule=rule, result=result)
                       for result in ("allowed", "denied")}
                      for rule in ("torture", "torture?candidate"))
        # Not by the denials: where the table is full, a candidate without a slot counts none.
        assert tried["allowed"] < live["allowed"], "the candidate's limit is far lower"
        assert tried["denied"] > 0 and live["denied"] > 0
        # At rest every slot can be used again: fresh keys find places once the old have expired.
        daemon.wait_for(lambda: daemon.metrics().value("sluice_table_load_ratio") <= 1.0, 10)
        daemon.wait_for(lambda: daemon.metrics().sum("sluice_table_load_ratio") < 0.05, 30,
                        "every slot has expired and none is stuck")
