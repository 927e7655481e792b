"""Regions: real clusters of one primary each, and latency between them by the fault proxy."""

import contextlib

from chaos.proxy import Fault, Proxy

from .load import Load
from .redis_cluster import PASSWORD, USER, RedisServer
from .sluice import Daemon, wait_until

NAMES = ("ap", "eu", "us")
# Each cluster is near at NEAR, and the same port of FAR leads there through its proxy.
NEAR, FAR = "127.0.0.1", "127.0.0.2"
CONNECT_DEADLINE_S = 30.0
WAY_S = 0.04  # there, and as much back


class Region:
    """One cluster, and the way to it from other regions, `proxy`."""

    def __init__(self, stack, name, way_s):
        self.name = name
        # It names its port and no host, so that a daemon stays on the way by which it asked.
        self.server = stack.enter_context(RedisServer(cluster=True, config={
            "cluster-preferred-endpoint-type": "unknown-endpoint"}))
        self.server.call("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        wait_until(lambda: "cluster_state:ok" in self.server.call("CLUSTER", "INFO"),
                   CONNECT_DEADLINE_S, f"the cluster of {name} is whole")
        self.proxy = stack.enter_context(
            Proxy(self.server.port, at=(FAR, self.server.port)))
        self.calm = Fault(delay_s=way_s, jitter_s=way_s / 10)
        self.proxy.fault = self.calm

    def cut_off(self):
        """For other regions: what they send is lost, until heal()."""
        self.proxy.fault = Fault(drop=True)

    def heal(self):
        self.proxy.fault = self.calm

    def address(self, of_region):
        return f"{NEAR if of_region == self.name else FAR}:{self.server.port}"


class Regions:
    """`names` of regions, all up; `daemon()` starts a host in one of them."""

    def __init__(self, stack, names=NAMES, way_s=WAY_S):
        self._stack = stack
        self.regions = {name: Region(stack, name, way_s) for name in names}

    def __getitem__(self, name):
        return self.regions[name]

    def config(self, region, rules, more=""):
        lines = ["redis:", f"  region: {region}", f"  username: {USER}",
                 f"  password: {PASSWORD}", "  shards: 8", f"  host_name: host-{region}"]
        lines += [f"  {line}" for line in more.splitlines()]
        lines.append("  regions:")
        lines += [f"    {name}: {{addresses: [\"{one.address(region)}\"], "
                  "request_timeout: 500ms}" for name, one in self.regions.items()]
        return "\n".join(lines) + "\n" + rules

    def daemon(self, region, rules, more=""):
        daemon = self._stack.enter_context(
            Daemon(self.config(region, rules, more), name=f"host-{region}"))
        daemon.wait_for(lambda: daemon.metrics().sum("sluice_emergency") == 0
                        and daemon.metrics().sum("sluice_redis_connected") >= len(self.regions),
                        CONNECT_DEADLINE_S, "connected to all regions")
        return daemon

    def load(self, daemon, per_s, seconds, **descriptors):
        return self._stack.enter_context(
            Load(daemon, per_s, seconds, env={"REPORT_MS": "5"}, **descriptors))


@contextlib.contextmanager
def regions(names=NAMES, way_s=WAY_S):
    with contextlib.ExitStack() as stack:
        yield Regions(stack, names, way_s)
