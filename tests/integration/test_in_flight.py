"""Places of requests in flight, with a real daemon: clients that are killed, and a daemon that is.

`IN_FLIGHT_KILLS` and `IN_FLIGHT_SEED` make a longer or another run.
"""

import contextlib
import json
import os
import random
import signal
import time

import pytest

from harness.load import connected_hosts, kill_workers_while, redis_words
from harness.processes import Process, run, wait_until
from harness.redis_cluster import RedisCluster, RedisServer
from harness.sluice import START_DEADLINE_S, Daemon, binary, build_dir, ctl, ctl_json

KILLS = int(os.environ.get("IN_FLIGHT_KILLS", "400"))
SEED = int(os.environ.get("IN_FLIGHT_SEED", "1"))
# Far below what any machine manages.
KILLS_PER_S = 10
DEADLINE_S = 20.0
LIMIT = 100

RULES = f"""
rules:
  - name: exports
    key: [tenant]
    in_flight: {LIMIT}
"""


def torment(daemon, kills):
    program = os.path.join(build_dir(), "tests", "integration", "in_flight_clients")
    done = run([program, daemon.runtime_dir, LIMIT, kills, SEED, "tenant=acme"],
               DEADLINE_S + 60 + kills / KILLS_PER_S)
    end = json.loads(done.stdout)
    print(done.stdout)
    return end


def held(daemon):
    buckets = ctl_json("buckets", "exports", daemon=daemon)["buckets"]
    return buckets[0]["held"] if buckets else 0


@contextlib.contextmanager
def holder(daemon, tmp_path, name):
    """A process that has entered, and stays."""
    env = {**os.environ, "SLUICE_RUNTIME_DIR": daemon.runtime_dir}
    before = held(daemon)
    with Process([binary("sluicectl"), "check", "tenant=acme", "--hold", "3600"],
                 tmp_path / name, env=env) as process:
        wait_until(lambda: held(daemon) == before + 1, DEADLINE_S, f"{name} is in")
        yield process


@pytest.mark.timeout_s(120 + KILLS // KILLS_PER_S)
def test_killed_at_any_instruction_clients_are_never_over_and_all_comes_back():
    with Daemon(RULES) as daemon:
        end = torment(daemon, KILLS)
        assert end["violations"] == 0
        assert end["most_held"] <= LIMIT
        assert end["held_after"] == 0
        assert end["entered"] > KILLS


def test_a_daemon_that_starts_again_knows_who_is_in(tmp_path):
    with Daemon(RULES) as daemon, holder(daemon, tmp_path, "stays") as stays, \
            holder(daemon, tmp_path, "goes") as goes:
        bucket = ctl_json("buckets", "exports", daemon=daemon)["buckets"][0]
        assert (bucket["algorithm"], bucket["remaining"]) == ("in_flight", LIMIT - 2)
        assert {h["pid"] for h in bucket["holders"]} == {stays.pid, goes.pid}
        text = ctl("buckets", "exports", daemon=daemon).stdout
        assert "100 in flight" in text and f"1 by pid {stays.pid}" in text
        # Both at once, so that the worker cannot see it.
        os.kill(daemon.worker_pid(), signal.SIGKILL)
        os.kill(goes.pid, signal.SIGKILL)
        daemon.wait_for(lambda: daemon.status()["adopted"], START_DEADLINE_S, "adopted")
        wait_until(lambda: held(daemon) == 1, DEADLINE_S, "what the dead one held is back")
        bucket = ctl_json("buckets", "exports", daemon=daemon)["buckets"][0]
        assert [h["pid"] for h in bucket["holders"]] == [stays.pid]
        os.kill(daemon.pid, signal.SIGUSR2)  # an upgrade
        daemon.wait_for(lambda: daemon.status()["incarnation"] >= 3, START_DEADLINE_S, "upgraded")
        assert held(daemon) == 1
        with holder(daemon, tmp_path, "comes"):
            assert held(daemon) == 2
        wait_until(lambda: held(daemon) == 1, DEADLINE_S, "who was ended has left")


@pytest.mark.timeout_s(300)
def test_clients_and_daemons_that_are_killed_leave_no_place_behind(tmp_path):
    rng = random.Random(SEED)
    program = os.path.join(build_dir(), "tests", "integration", "in_flight_clients")
    with Daemon(RULES) as daemon:
        with Process([program, daemon.runtime_dir, LIMIT, KILLS, SEED, "tenant=acme"],
                     tmp_path / "log") as clients:
            worker_kills = kill_workers_while(clients, [daemon], lambda: rng.random() * 0.5)
        end = json.loads((tmp_path / "log").read_text().splitlines()[-1])
        print(worker_kills, "workers killed", end)
        assert worker_kills > 0
        assert end["violations"] == 0 and end["most_held"] <= LIMIT
        assert end["held_after"] == 0 and end["entered"] > KILLS


FLEET_LIMIT = 40
FLEET = """
redis:
  mode: {mode}
  addresses: [{addresses}]
  host_name: {host}
rules:
  - name: exports
    key: [tenant]
    in_flight: {limit}
"""


def fleet_of(redis, limit=FLEET_LIMIT, count=2):
    return connected_hosts(FLEET.format(**redis_words(redis), host=f"host-{n}", limit=limit)
                           for n in range(count))


def may_enter(daemon):
    told = ctl("check", "tenant=acme", "--json", daemon=daemon, check=False)
    return json.loads(told.stdout)["allowed"]


@contextlib.contextmanager
def held_on(daemon, tmp_path, name, count):
    """So many processes that have entered on a host, and stay."""
    env = {**os.environ, "SLUICE_RUNTIME_DIR": daemon.runtime_dir}
    with contextlib.ExitStack() as stack:
        for n in range(count):
            target = held(daemon) + 1
            end = time.monotonic() + DEADLINE_S
            while held(daemon) != target:
                # What is lent and not used goes where it is missed: then the next one tries.
                assert time.monotonic() < end, f"{name} is not let in"
                process = Process([binary("sluicectl"), "check", "tenant=acme", "--hold", "3600"],
                                  tmp_path / f"{name}-{n}", env=env)
                stack.push(process)
                wait_until(lambda target=target, process=process:
                           held(daemon) == target or not process.running(), DEADLINE_S, "tried")
        yield stack


@pytest.mark.timeout_s(180)
def test_two_hosts_share_one_limit_and_what_one_leaves_the_other_may_have(tmp_path):
    with RedisServer() as redis, fleet_of(redis, limit=3) as (one, other):
        with held_on(one, tmp_path, "one", 2) as first:
            with held_on(other, tmp_path, "other", 1):
                time.sleep(1)  # long enough for whatever might come
                assert not may_enter(one) and not may_enter(other)
                os.kill(one.worker_pid(), signal.SIGKILL)
                one.wait_for(lambda: one.status()["adopted"], START_DEADLINE_S, "adopted")
                assert not may_enter(one) and not may_enter(other)
                first.close()
                wait_until(lambda: may_enter(other), DEADLINE_S, "what was left came here")
            wait_until(lambda: held(one) + held(other) == 0, DEADLINE_S, "all have left")
            with held_on(other, tmp_path, "all", 3):
                assert held(other) == 3 and held(one) == 0
                assert not may_enter(one)


@pytest.mark.timeout_s(240 + KILLS // KILLS_PER_S)
def test_over_all_hosts_no_more_than_the_limit_are_in_whoever_is_killed(tmp_path):
    program = os.path.join(build_dir(), "tests", "integration", "in_flight_clients")
    with RedisCluster() as redis, fleet_of(redis) as hosts:
        for host in hosts:
            wait_until(lambda host=host: may_enter(host), DEADLINE_S, "lent")
        dirs = ",".join(host.runtime_dir for host in hosts)
        with Process([program, dirs, FLEET_LIMIT, KILLS, SEED, "tenant=acme"],
                     tmp_path / "log") as clients:
            rng = random.Random(SEED)
            worker_kills = kill_workers_while(clients, hosts, lambda: 0.2 + rng.random())
        end = json.loads((tmp_path / "log").read_text().splitlines()[-1])
        print(worker_kills, "workers killed", end)
        assert end["violations"] == 0
        assert 0 < end["most_held"] <= FLEET_LIMIT
        assert end["entered"] > KILLS
        wait_until(lambda: sum(held(host) for host in hosts) == 0, DEADLINE_S, "all is back")
