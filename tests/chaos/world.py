"""Hosts under load and a Redis, watched: what one row of scripts/chaos is measured by."""

import contextlib
import os
import shutil
import tempfile
import threading
import time

from harness.load import Load
from harness.redis_cluster import PASSWORD
from harness.sluice import Daemon, wait_until

RATE = 2000
# A load ends with its row; this is for one whose row was killed.
LOAD_S = 600
LOOK_S = 0.05
SETTLE_S = 40

CONFIG = """
redis:
  addresses: [{addresses}]
  mode: {mode}
  username: sluice
  password_file: {password_file}
  host_name: {host}
{more}rules:
  - {{name: per-user, key: [user], limit: 1000000/s, burst: 1000000, when_degraded: {{mode: open}}}}
"""


class Watch:
    """Looks at a daemon all the time: (when, mode, alarms); None while it does not answer."""

    def __init__(self, daemon):
        self.daemon = daemon
        self.seen = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._stop.wait(LOOK_S):
            try:
                status = self.daemon.status()
            except (OSError, ValueError, AssertionError):
                continue
            self.seen.append((time.monotonic(), status["mode"],
                              frozenset(a["id"] for a in status["alarms"])))

    def close(self):
        self._stop.set()
        self._thread.join()

    def first(self, mode, after):
        return next((t for t, m, _ in list(self.seen) if t >= after and m == mode), None)


class World:
    """Two daemons. `redis`: what counts; `proxy`: in front of it, or None.

    `more`: lines of the `redis:` section. `hosts`: what `Daemon` gets for each.
    """

    def __init__(self, stack, redis, addresses, mode, *, proxy=None, more="", hosts=({}, {})):
        self.redis, self.proxy = redis, proxy
        self.directory = tempfile.mkdtemp(prefix="sluice-chaos-")
        stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
        self.password_file = os.path.join(self.directory, "password")
        self.write_password(PASSWORD)
        self.daemons = [stack.enter_context(Daemon(
            CONFIG.format(addresses=", ".join(addresses), mode=mode, host=f"host-{n}", more=more,
                          password_file=self.password_file),
            name=f"host-{n}", **host)) for n, host in enumerate(hosts, 1)]
        self.loads, self.watches = [], []
        # Of checks that are in no load's report: how many were allowed, and how many a second.
        self.admitted_besides = self.rate_besides = 0
        wait_until(self.is_healthy, SETTLE_S, "healthy")

    def write_password(self, password):
        """Replaces the file whole."""
        fresh = self.password_file + ".new"
        with open(fresh, "w", encoding="ascii", opener=lambda p, f: os.open(p, f, 0o600)) as file:
            file.write(password + "\n")
        os.replace(fresh, self.password_file)

    @contextlib.contextmanager
    def under_load(self):
        """A client for each daemon, and somebody who looks at them."""
        with contextlib.ExitStack() as stack:
            self.loads = [stack.enter_context(Load(daemon, RATE, LOAD_S, user="u",
                                                   directory=self.directory))
                          for daemon in self.daemons]
            self.watches = [Watch(daemon) for daemon in self.daemons]
            stack.callback(lambda: [watch.close() for watch in self.watches])
            for load in self.loads:
                wait_until(load.lines, SETTLE_S, "checks are made")
            yield

    def is_healthy(self):
        """All shards of all daemons, and Redis knows all but the last moments' use."""
        try:
            found = [daemon.status() for daemon in self.daemons]
        except (OSError, ValueError, AssertionError):
            return False
        return all(s["mode"] == "healthy" and s["redis"]["unreconciled_age_s"] < 1 for s in found)

    def has_alarm(self, part, mend=""):
        """On each daemon: one whose id has this part, and whose mend that one."""
        return all(any(part in a["id"] and mend in a["mend"] for a in daemon.status()["alarms"])
                   for daemon in self.daemons)

    def alarms(self):
        return sorted({a["id"] for daemon in self.daemons for a in daemon.status()["alarms"]
                       if a["id"] != "client-same-user"})
