"""Steady demand from real client processes, and what they were admitted."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import time

from harness.processes import Process, wait_until
from harness.redis_cluster import RedisCluster
from harness.sluice import START_DEADLINE_S, Daemon, build_dir

TENTH_NS = 100_000_000
# The beginning of a configuration: redis_words() and a host's name complete it, its rules follow.
REDIS_AND_RULES = """
redis:
  mode: {mode}
  addresses: [{addresses}]
  username: sluice
  password: of-the-tests
  host_name: {host}
rules:
"""


def redis_words(redis):
    """How a configuration names a cluster or one server: its `mode` and the text of `addresses`."""
    if isinstance(redis, RedisCluster):
        return {"mode": "cluster", "addresses": ", ".join(redis.addresses())}
    return {"mode": "single", "addresses": redis.address}


@contextlib.contextmanager
def connected_hosts(configs):
    """A daemon for each configuration, all of them once they reconcile with Redis."""
    with contextlib.ExitStack() as stack:
        daemons = [stack.enter_context(Daemon(config, name=f"host-{n}"))
                   for n, config in enumerate(configs)]
        for daemon in daemons:
            daemon.wait_for(lambda d=daemon: d.metrics().sum("sluice_emergency") == 0
                            and d.metrics().sum("sluice_redis_connected") >= 1, 30, "connected")
        yield daemons


def kill_workers_while(clients, daemons, pause_s):
    """Kills a worker of each daemon in turn, `pause_s()` after the last is back, until the process
    `clients` ends; returns how many were killed, once all daemons answer."""
    kills = 0
    while clients.running():
        time.sleep(pause_s())
        daemon = daemons[kills % len(daemons)]
        worker = daemon.worker_pid()
        if worker == daemon.pid or not clients.running():
            continue  # the keeper is about to start one
        os.kill(worker, signal.SIGKILL)
        kills += 1
        wait_until(lambda old=worker, daemon=daemon:
                   daemon.worker_pid() not in (old, daemon.pid) or not clients.running(),
                   START_DEADLINE_S, "another worker")
    for daemon in daemons:  # the last one killed may be on its way
        daemon.wait_for(daemon.metrics, START_DEADLINE_S, "the last worker answers")
    return kills


class Load:
    """One steady_load process against one daemon; its reports go to a file in `directory`."""

    def __init__(self, daemon, rate, seconds, env=None, directory=None, **descriptors):
        self.seconds = seconds
        directory = directory or daemon.directory
        self.path = os.path.join(directory, f"load-{len(os.listdir(directory))}")
        self.process = Process(
            [os.path.join(build_dir(), "tests", "integration", "steady_load"), daemon.runtime_dir,
             rate, seconds, *(f"{name}={value}" for name, value in descriptors.items())],
            self.path, env=env)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.close()

    def lines(self):
        """What it has reported so far."""
        found = []
        with open(self.path, encoding="utf-8") as file:
            for line in file:
                if line.startswith("{") and line.endswith("}\n"):
                    found.append(json.loads(line))
        return found

    def stop(self):
        """Ends it now; the reports with times."""
        self.process.terminate(20)
        return [line for line in self.lines() if "t_ns" in line]

    def finish(self):
        """Waits for its end; the reports with times, and the summary."""
        assert self.process.wait(self.seconds + 40) == 0, self.process.log_tail()
        lines = self.lines()
        assert "p99_ns" in lines[-1], lines[-1:]
        return lines[:-1], lines[-1]


class Waiter:
    """One queue_up process, ready: it waits for turns, or with HOLD_MS for places."""

    numbers = itertools.count()

    def __init__(self, daemon, descriptor, max_wait_ms, count=1, **env):
        self.path = os.path.join(daemon.directory, f"queue-{next(self.numbers)}")
        self.process = Process(
            [os.path.join(build_dir(), "tests", "integration", "queue_up"), daemon.runtime_dir,
             max_wait_ms, count, descriptor], self.path, env=env, stdin=subprocess.PIPE)

    def __enter__(self):
        self.process.wait_for(lambda: '"ready"' in self.process.log(), 30, "ready")
        return self

    def __exit__(self, *_):
        self.process.close()

    def go(self):
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def answers(self):
        with open(self.path, encoding="utf-8") as file:
            lines = [json.loads(line) for line in file if line.startswith("{")]
        return [line for line in lines if "result" in line]

    def finished(self, deadline_s=90):
        assert self.process.wait(deadline_s) == 0, self.process.log()
        return self.answers()


def admitted(reports, begin_ns=0, end_ns=1 << 63):
    """Checks allowed in the reports that end in (begin, end]."""
    return sum(r["allowed"] for r in reports if begin_ns < r["t_ns"] <= end_ns)


def worst_window(reports, window_ns, begin_ns=0):
    """The most that was admitted in any window of this length that starts at a report."""
    times = [r["t_ns"] for r in reports if r["t_ns"] > begin_ns]
    return max((admitted(reports, t - TENTH_NS, t - TENTH_NS + window_ns) for t in times),
               default=0)


def counted(redis, prefix="rl:"):
    """Tokens that a cluster or one server has counted, over all shards."""
    if isinstance(redis, RedisCluster):
        return sum(int(fields.get("s:", 0)) for fields in redis.hgetall_all(prefix).values())
    with redis.connect() as connection:
        return sum(int(connection.call("HGET", key, "s:") or 0)
                   for key in connection.call("KEYS", prefix + "*"))
