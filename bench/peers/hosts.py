"""Two hosts and one limit: what scripts/bench --hosts does.

sluice's strict and approximate limits beside a limiter whose hosts count for themselves and tell Redis
in batches, with the same arrivals at the same instants, all against one redis-server. A limit that is
kept admits in no window more than its burst and what came back meanwhile.
"""

import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time

from harness.load import connected_hosts
from harness.redis_cluster import RedisServer

from peers.peers import Missing, Place

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "scripts", "demo.d"))

import measure  # noqa: E402  pylint: disable=wrong-import-position

LIMIT = 500  # a second, and the burst: what a window of 1 s has
START_AFTER_S, END_S = 2.0, 30.0
CALM_S = 4  # after a first check on each host: what begins empty is full by then
SECONDS, QUICK_SECONDS = 12, 3
KEY = "acme"
RULES = ("strict", "approximate")
FLUSH_MS = {"batched_1s": 1000, "batched_100ms": 100}
COLUMNS = ("demand", "limiter", "asked", "allowed", "used_percent", "over_1s_percent",
           "over_10s_percent", "over_tokens")
CONFIG = """
redis:
  mode: single
  addresses: ["{address}"]
  host_name: {host}
rules:
""" + "".join(f"""
  - name: {name}
    key: [tenant]
    limit: {LIMIT}/s
    burst: {LIMIT}
    consistency: {name}
""" for name in RULES)


def poisson(chance, phases):
    instants = [0.0]
    for begin, end, rate in phases:
        at = begin + chance.expovariate(rate)
        while at < end:
            instants.append(CALM_S + at)
            at += chance.expovariate(rate)
    return instants


def demands(seconds):
    """{name: [the arrivals at each of two hosts]}."""
    chance = random.Random(1)
    hops = [[(s, s + 1, 2 * LIMIT) for s in range(seconds) if s % 2 == host] for host in (0, 1)]
    return {
        "0.9 of the limit": [poisson(chance, [(0, seconds, 0.45 * LIMIT)]) for _ in (0, 1)],
        "twice the limit": [poisson(chance, [(0, seconds, LIMIT)]) for _ in (0, 1)],
        "twice, on one host at a time": [poisson(chance, phases) for phases in hops],
    }


def ask(folder, arrivals, argv_of):
    """Runs a client on each host: argv_of(host, START_NS, path of its timetable); their output and
    when they began, by CLOCK_MONOTONIC."""
    start_ns = time.monotonic_ns() + int(START_AFTER_S * 1e9)
    with contextlib.ExitStack() as stack:
        clients = []
        for host, instants in enumerate(arrivals):
            path = os.path.join(folder, f"arrivals-{host}")
            with open(path, "w", encoding="ascii") as file:
                file.writelines(f"{at:.6f}\n" for at in instants)
            client = stack.enter_context(subprocess.Popen(
                argv_of(host, str(start_ns), path), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                text=True))
            stack.callback(client.kill)
            clients.append(client)
        said = []
        for client in clients:
            out, problem = client.communicate(timeout=START_AFTER_S + CALM_S + SECONDS + END_S)
            if client.returncode != 0:
                raise RuntimeError(f"{client.args[0]}: {problem.strip()}")
            said.append(out)
    return said, start_ns


def sluice(place, folder, arrivals):
    """{rule: the instants that it allowed, in ns, and when the clients began}."""
    asker = os.path.join(ROOT, "scripts", "demo.d", "asker.py")
    library = os.path.join(place.build, "client", "libsluice.so.0")
    with RedisServer() as redis, connected_hosts(
            CONFIG.format(address=redis.address, host=f"host-{n}")
            for n in range(len(arrivals))) as daemons:
        said, start_ns = ask(folder, arrivals, lambda host, start, path: [
            sys.executable, "-B", asker, library, daemons[host].runtime_dir, start, path, KEY, *RULES])
    told = [json.loads(out) for out in said]
    return {rule: (sorted(at for one in told for at, _ in one[rule]["allowed"]), start_ns)
            for rule in RULES}


def batched(place, folder, arrivals, flush_ms):
    program = place.cargo("batched", "sluice-peer-batched")
    with RedisServer() as redis:
        said, start_ns = ask(folder, arrivals, lambda _, start, path: [
            program, f"redis://{redis.address}", str(flush_ms), str(LIMIT), start, path])
    return sorted(int(line) for out in said for line in out.split()), start_ns


def judged(demand, name, arrivals, found):
    allowed_ns, start_ns = found
    instants = [at for at in ((ns - start_ns) / 1e9 for ns in allowed_ns) if at >= CALM_S]
    asked = sorted(at for host in arrivals for at in host if at >= CALM_S)

    def over_percent(seconds):
        excess = measure.most_in(instants, seconds) - LIMIT - LIMIT * seconds
        return round(max(0.0, 100 * excess / (LIMIT * seconds)), 2)

    return {"demand": demand, "limiter": name, "asked": len(asked), "allowed": len(instants),
            "used_percent": round(100 * len(instants) / measure.perfect(asked, LIMIT, LIMIT), 1),
            "over_1s_percent": over_percent(1), "over_10s_percent": over_percent(10),
            "over_tokens": round(measure.over(instants, LIMIT, LIMIT), 1)}


def run_hosts(build, quick):
    """Measures all; prints a line each; returns the rows."""
    os.environ["SLUICE_BUILD"] = build
    place, rows = Place(build), []
    seconds = QUICK_SECONDS if quick else SECONDS
    print(f"two hosts, {LIMIT}/s with a burst of {LIMIT}, {seconds} s", flush=True)
    print("  ".join(COLUMNS), flush=True)
    for demand, arrivals in demands(seconds).items():
        with tempfile.TemporaryDirectory(prefix="sluice-hosts-") as folder:
            found = sluice(place, folder, arrivals)
            mine = [judged(demand, f"sluice, {rule}", arrivals, of) for rule, of in found.items()]
            for row in mine:
                print("  ".join(str(row[column]) for column in COLUMNS), flush=True)
            rows += mine
            for name, flush_ms in FLUSH_MS.items():
                try:
                    row = judged(demand, name, arrivals, batched(place, folder, arrivals, flush_ms))
                    print("  ".join(str(row[column]) for column in COLUMNS), flush=True)
                except Missing as reason:
                    row = {"demand": demand, "limiter": name, "skipped": str(reason)}
                    print(f"{demand}  {name}  skipped: {reason}", flush=True)
                rows.append(row)
    return rows
