"""sluice beside its peers, in one run: what scripts/bench --peers does.

A driver makes the decisions: a program that reads a number, makes as many decisions, and answers with
its CPU time in ns and how many were allowed. A server that decides runs on loopback, and its CPU time
is added. All drivers take turns, round by round, so that all meet the same machine.
"""

import contextlib
import dataclasses
import os
import shutil
import statistics
import subprocess
import tempfile

from harness.processes import Process

from peers import servers

HERE = os.path.dirname(os.path.abspath(__file__))
ROUNDS, ROUND_NS = 9, 60e6
QUICK_ROUNDS, QUICK_ROUND_NS = 3, 5e6
KEY = "6f9619ff-8b86-d011-b42d-00cf4fc964ff"
PIPELINED = 64  # requests on their way at once
BUILD_TIMEOUT_S = 900


class Missing(Exception):
    """A peer cannot be had here; the text says what is missing."""


@dataclasses.dataclass(frozen=True)
class Peer:
    """One row. `beside` is the row that it is compared with; `driver` and `server` make what runs."""
    name: str
    what: str
    driver: object  # (Place, port or None): argv
    server: object = None  # (Place, folder): a context manager that gives a servers.Server
    beside: str = "sluice_keyed"


class Place:
    """Where programs are built and found."""

    def __init__(self, build):
        self.build = build
        self.cache = os.path.join(build, "peers")

    def sluice(self, *args):
        return [os.path.join(self.build, "bench", "sluice_peers"), *map(str, args)]

    def tool(self, name):
        # Debian has some servers where only root looks.
        found = shutil.which(name, path=os.environ.get("PATH", "") + os.pathsep + "/usr/sbin")
        if found is None:
            raise Missing(f"{name} is not installed (scripts/install-deps all)")
        return found

    def made(self, tool, argv, folder, out, **env):
        """The path of `out`, made by `argv` in `folder` of the tree. Skips what is up to date by the
        tool's own judgement."""
        path = os.path.join(self.cache, out)
        os.makedirs(self.cache, exist_ok=True)
        done = subprocess.run([self.tool(tool), *argv], cwd=os.path.join(HERE, folder),
                              env=dict(os.environ, **env), capture_output=True, text=True,
                              timeout=BUILD_TIMEOUT_S, check=False)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no word"])[-1]
            raise Missing(f"{tool} cannot build it here: {last}")
        return path

    def go(self, folder, out, package="."):
        return self.made("go", ["build", "-trimpath", "-o", os.path.join(self.cache, out), package],
                         folder, out)

    def cargo(self, folder, out):
        return self.made("cargo", ["build", "--release", "--locked"], folder,
                         os.path.join("cargo", "release", out),
                         CARGO_TARGET_DIR=os.path.join(self.cache, "cargo"))


def governor(kind):
    return lambda place, _: [place.cargo("governor", "sluice-peer-governor"), kind]


def asked(kind, depth, *args):
    return lambda place, port: place.sluice(kind, port, depth, *args)


def ratelimit_client(depth):
    return lambda place, port: [place.go("ratelimit", "ratelimit-client"), str(port), str(depth), KEY]


PEERS = (
    Peer("sluice_handle", "one bucket in hand", lambda place, _: place.sluice("handle")),
    Peer("sluice_keyed", "a bucket found by its key", lambda place, _: place.sluice("keyed")),
    Peer("x_time_rate", "golang.org/x/time/rate, one limiter in hand, in its own process",
         lambda place, _: [place.go("limiter", "limiter")], beside="sluice_handle"),
    Peer("governor", "governor (Rust), one limiter in hand, in its own process", governor("direct"),
         beside="sluice_handle"),
    Peer("governor_coarse", "the same with the kernel's coarse clock", governor("coarse"),
         beside="sluice_handle"),
    Peer("governor_keyed", "governor, limiters by key, in its own process", governor("keyed")),
    Peer("nginx_limit_req", "nginx, a request to a location with limit_req",
         asked("http", 1, "/limited"), servers.nginx),
    Peer("nginx_without", "the same request without limit_req", asked("http", 1, "/free"), servers.nginx),
    Peer("haproxy_stick_table", "HAProxy, a request counted in a stick table",
         asked("http", 1, "/limited"), servers.haproxy),
    Peer("haproxy_without", "the same request without a stick table", asked("http", 1, "/free"),
         servers.haproxy),
    Peer("memcached_incr", "memcached, an incr per request",
         asked("memcached", 1), servers.memcached),
    Peer("memcached_incr_pipelined", f"the same, {PIPELINED} at once",
         asked("memcached", PIPELINED), servers.memcached),
    Peer("redis_incr", "Redis, an INCR per request",
         asked("redis-incr", 1), servers.redis),
    Peer("redis_incr_pipelined", f"the same, {PIPELINED} at once",
         asked("redis-incr", PIPELINED), servers.redis),
    Peer("redis_evalsha", "Redis, a token bucket by EVALSHA per request",
         asked("redis-evalsha", 1), servers.redis),
    Peer("redis_evalsha_pipelined", f"the same, {PIPELINED} at once",
         asked("redis-evalsha", PIPELINED), servers.redis),
    Peer("envoy_ratelimit", "envoyproxy/ratelimit with Redis, a call per request",
         ratelimit_client(1), servers.ratelimit),
    Peer("envoy_ratelimit_concurrent", f"the same, {PIPELINED} calls at once",
         ratelimit_client(PIPELINED), servers.ratelimit),
)
ROWS = [peer.name for peer in PEERS]


def cpu_ns(pids):
    """What all threads of these processes have used."""
    total = 0
    for pid in pids:
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                with open(f"/proc/{pid}/task/{task}/schedstat", encoding="ascii") as file:
                    total += int(file.read().split()[0])
    return total


class Running:
    """A peer's driver, and its server where it has one."""

    def __init__(self, peer, place, folder, stack):
        self.peer = peer
        server = stack.enter_context(peer.server(place, folder)) if peer.server else None
        self._pids = server.pids if server else ()
        argv = peer.driver(place, server.port if server else None)
        self._driver = stack.enter_context(
            Process(argv, os.path.join(folder, peer.name + ".log"), name=peer.name,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        self.units = 1
        self.ns = []

    def decide(self, units):
        """CPU ns per decision."""
        before = cpu_ns(self._pids)
        self._driver.stdin.write(b"%d\n" % units)
        self._driver.stdin.flush()
        words = self._driver.stdout.readline().split()
        if len(words) != 2:
            raise RuntimeError(f"{self.peer.name} ended: {self._driver.log_tail()}")
        if int(words[1]) != units:
            raise RuntimeError(f"{self.peer.name} refused {units - int(words[1])} of {units}")
        return (int(words[0]) + cpu_ns(self._pids) - before) / units

    def calibrate(self, round_ns):
        """Chooses how many decisions take about `round_ns`; at least one pipeline's worth."""
        self.decide(PIPELINED)
        units = 512
        for _ in range(20):
            cost = self.decide(units)
            if cost * units >= round_ns / 4:
                break
            units *= 4
        self.units = max(int(round_ns / max(cost, 1)), PIPELINED)


def measure(names, place, quick):
    """The rows, and {name: why it is missing}. sluice's own rows are always measured."""
    wanted = [peer for peer in PEERS if peer.name in names or peer.name.startswith("sluice_")]
    rounds, round_ns = (QUICK_ROUNDS, QUICK_ROUND_NS) if quick else (ROUNDS, ROUND_NS)
    missing = {}
    with tempfile.TemporaryDirectory(prefix="sluice-peers-") as folder, \
            contextlib.ExitStack() as stack:
        running = []
        for peer in wanted:
            try:
                running.append(Running(peer, place, folder, stack))
            except (Missing, OSError) as why:
                missing[peer.name] = str(why)
        for one in running:
            one.calibrate(round_ns)
        for _ in range(rounds):
            for one in running:
                one.ns.append(one.decide(one.units))
    return [row_of(one, {other.peer.name: other.ns for other in running})
            for one in running], missing


def row_of(one, all_ns):
    ratios = [own / beside for own, beside in zip(one.ns, all_ns[one.peer.beside])]
    return {"name": one.peer.name, "what": one.peer.what,
            "cpu_ns": round(statistics.median(one.ns), 2),
            "spread": [round(min(one.ns), 2), round(max(one.ns), 2)],
            "beside": one.peer.beside, "beside_ratio": round(statistics.median(ratios), 2),
            "beside_spread": [round(min(ratios), 2), round(max(ratios), 2)],
            "repetitions": len(one.ns)}


def text_of(row):
    low, high = row["spread"]
    return (f"{row['name']:<28} {row['cpu_ns']:>12,.1f} {f'{low:,.1f}..{high:,.1f}':>24} "
            f"{row['beside_ratio']:>10,.2f} x {row['beside']}")


def run_peers(names, build, quick):
    """Prints the table; returns the rows and those that are missing, as rows that say why."""
    rows, missing = measure(names or ROWS, Place(build), quick)
    print(f"{'row':<28} {'CPU ns each':>12} {'spread':>24} {'ratio':>10}")
    for row in rows:
        print(text_of(row))
    for name, why in missing.items():
        print(f"{name:<28} skipped: {why}")
    return rows + [{"name": name, "skipped": why} for name, why in missing.items()]
