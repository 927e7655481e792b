"""Kills and replaces the daemon's worker for as long as a torture program kills its clients."""

import os
import signal
import time

# Without a kill for so long, something hangs: the longest stop takes 2 s.
HANG_S = 30.0


def torment_daemon(daemon, clients, kills_done, kills, one_of, rng):
    """Until the last client is killed, as `kills_done()` says: (kills, upgrades).

    The worker is killed or replaced once in `one_of` kills of clients, on the average; it is back
    within seconds, and until then only those who are attached go on.
    """
    worker_kills = upgrades = last = 0
    due = rng.randrange(2 * one_of)
    moved = time.monotonic()
    while True:
        done = kills_done()
        if done >= kills:
            return worker_kills, upgrades
        assert clients.running(), "the clients ended: " + clients.log_tail()
        if done != last:
            last, moved = done, time.monotonic()
        assert time.monotonic() < moved + HANG_S, f"no kill for {HANG_S} s after {done}"
        time.sleep(0.02)
        worker = daemon.worker_pid()
        if done < due or worker == daemon.pid:  # without a worker the keeper is about to start one
            continue
        due = done + rng.randrange(2 * one_of)
        if rng.random() < 0.25:
            os.kill(daemon.pid, signal.SIGUSR2)  # the keeper's upgrade
            upgrades += 1
        else:
            os.kill(worker, signal.SIGKILL)
            worker_kills += 1
