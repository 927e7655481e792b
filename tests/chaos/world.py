"""Hosts under load and a Redis, watched: what one row of scripts/chaos is measured by."""

import contextlib
import threading
import time

from harness.load import Load
from harness.redis_cluster import RedisCluster, RedisServer
from harness.sluice import Daemon, wait_until

from chaos.proxy import Proxy

RATE = 2000
LOAD_S = 200
LOOK_S = 0.05
SETTLE_S = 40

CONFIG = """
redis:
  addresses: [{addresses}]
  mode: {mode}
  username: sluice
  password: of-the-tests
  host_name: {host}
rules:
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
    """Two daemons. `redis`: what counts; `proxy`: in front of it, or None."""

    def __init__(self, stack, redis, addresses, mode, proxy=None):
        self.redis, self.proxy = redis, proxy
        self.daemons = [stack.enter_context(Daemon(
            CONFIG.format(addresses=", ".join(addresses), mode=mode, host=f"host-{n}"),
            name=f"host-{n}")) for n in (1, 2)]
        self.loads, self.watches = [], []
        wait_until(self.is_healthy, SETTLE_S, "healthy")

    @contextlib.contextmanager
    def under_load(self):
        """A client for each daemon, and somebody who looks at them."""
        with contextlib.ExitStack() as stack:
            self.loads = [stack.enter_context(Load(daemon, RATE, LOAD_S, user="u"))
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

    def alarms(self):
        return sorted({a["id"] for daemon in self.daemons for a in daemon.status()["alarms"]
                       if a["id"] != "client-same-user"})


@contextlib.contextmanager
def cluster_world():
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(RedisCluster())
        yield World(stack, cluster, cluster.addresses(), "cluster")


@contextlib.contextmanager
def proxy_world():
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(RedisServer())
        proxy = stack.enter_context(Proxy(server.port))
        yield World(stack, server, [proxy.address], "single", proxy)
