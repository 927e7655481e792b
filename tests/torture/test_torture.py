"""SIGKILL at any instruction: clients and the daemon, over a small crowded table.

`TORTURE_KILLS` and `TORTURE_SEED` make a longer or another run; scripts/torture sets them.
"""

import mmap
import os
import random
import signal
import struct
import time

import pytest

from harness.processes import Process
from harness.sluice import Daemon, build_dir

KILLS = int(os.environ.get("TORTURE_KILLS", "1000"))
SEED = int(os.environ.get("TORTURE_SEED", "1"))
CLIENTS = 4
KEYS = 260
LIMIT, BURST = 200, 40
DAEMON_KILLS = max(3, KILLS // 100)

CONFIG = f"""
daemon:
  runtime_dir: {{runtime_dir}}
  buckets: 256
rules:
  - {{name: torture, key: [key], limit: {LIMIT}/s, burst: {BURST}}}
"""


# iceoryx#325, iceoryx#2193: a process killed with a lock in shared memory stopped all others, robust
# mutex or not.
@pytest.mark.timeout_s(60 + KILLS)
def test_kills_leave_no_key_over_its_bound_no_hang_and_no_lost_slot(tmp_path):
    rng = random.Random(SEED)
    ledger_path = tmp_path / "ledger"
    ledger_path.write_bytes(bytes((KEYS + 2) * 8))
    program = os.path.join(build_dir(), "tests", "torture", "torture_client")
    with Daemon(CONFIG) as daemon:
        started = time.monotonic()
        clients = []

        def spawn():
            return Process([program, daemon.runtime_dir, ledger_path, KEYS, rng.randrange(1 << 60)],
                           tmp_path / "log")

        daemon_kills = 0
        try:
            clients = [spawn() for _ in range(CLIENTS)]
            every = max(1, KILLS // DAEMON_KILLS)
            for kill in range(KILLS):
                time.sleep(rng.random() * 0.02)
                victim = rng.randrange(CLIENTS)
                if kill % 10 == 9:  # stopped in mid-check for longer than the grace, now and then
                    clients[victim].send(signal.SIGSTOP)
                    time.sleep(0.05)
                    clients[victim].send(signal.SIGCONT)
                os.kill(clients[victim].pid, signal.SIGKILL)
                clients[victim].close()
                clients[victim] = spawn()
                worker = daemon.worker_pid()
                if kill % every == every - 1 and worker != daemon.pid:
                    os.kill(worker, signal.SIGKILL)
                    daemon_kills += 1
            ran_s = time.monotonic() - started
            with open(ledger_path, "rb") as file:
                before = struct.unpack(f"{KEYS + 2}Q", file.read())
            time.sleep(1.0)
            with open(ledger_path, "rb") as file:
                after = struct.unpack(f"{KEYS + 2}Q", file.read())
            assert after[KEYS + 1] > before[KEYS + 1], "no check returns any more"
        finally:
            for client in clients:
                client.close()
        ran_s = time.monotonic() - started
        with open(ledger_path, "rb") as file:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
                ledger = struct.unpack(f"{KEYS + 2}Q", memory[:])
        hottest = max(ledger[:KEYS])
        # Rate and burst; one extra burst for each killed duplicate insert, at most one per kill.
        bound = LIMIT * ran_s + BURST + BURST * KILLS
        usual = LIMIT * ran_s + BURST
        print(f"{KILLS} client kills, {daemon_kills} daemon kills, {ran_s:.1f} s, "
              f"{ledger[KEYS + 1]} checks, hottest key {hottest} "
              f"(rate and burst: {usual:.0f}, bound: {bound:.0f}), "
              f"overflow {ledger[KEYS]}")
        assert hottest <= bound
        assert hottest <= usual * 1.05 + BURST, "kills are not to be felt as a higher limit"
        assert hottest >= usual * 0.3, "the hot key was hardly admitted"
        assert daemon_kills >= 3
        assert ledger[KEYS] <= usual * 1.05, "the overflow bucket has a limit too"
        # At rest every slot can be used again: fresh keys find places once the old have expired.
        daemon.wait_for(lambda: daemon.metrics().value("sluice_table_load_ratio") <= 1.0, 10)
        daemon.wait_for(lambda: daemon.metrics().sum("sluice_table_load_ratio") < 0.05, 30,
                        "every slot has expired and none is stuck")
