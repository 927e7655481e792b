"""Places of requests in flight, with a real daemon: clients that are killed, and a daemon that is.

`IN_FLIGHT_KILLS` and `IN_FLIGHT_SEED` make a longer or another run.
"""

import contextlib
import itertools
import json
import os
import random
import signal
import time

import pytest

from harness.load import Waiter, connected_hosts, kill_workers_while, redis_words
from harness.processes import KILL_WAIT_S, Process, run, wait_until
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
                shown = ctl_json("buckets", "--global", daemon=one)
                assert [(b["lent_places"], b["hosts"], b["remaining"], b["denying"])
                        for b in shown["buckets"]] == [(3, 2, 0, True)]
                assert "3 at 2 hosts" in ctl("buckets", "--global", daemon=other).stdout
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


E_CANCELLED = -9
WAITERS = 8
WAITED_LIMIT = 4
ROUNDS = 8
HOLD_MS = 20


def denials(daemon):
    return daemon.metrics().sum("sluice_checks_total", rule="exports", result="denied")


def most_at_once(answers):
    """How many held a place at one instant, from when they were told to before they left."""
    steps = sorted([(a["woken_ns"], 1) for a in answers] + [(a["left_ns"], -1) for a in answers])
    return max(itertools.accumulate(step for _, step in steps))


def all_get_in(hosts, lost=0):
    """Processes that wait for fewer places all get in; `lost` more are killed while they wait."""
    with contextlib.ExitStack() as stack:
        waiters = [stack.enter_context(Waiter(
            hosts[n % len(hosts)], "tenant=acme", 1000 * 90, ROUNDS, HOLD_MS=str(HOLD_MS), GO="1"))
                   for n in range(WAITERS)]
        doomed = [stack.enter_context(Waiter(
            hosts[n % len(hosts)], "tenant=acme", 1000 * 90, 10_000, HOLD_MS="0"))
                  for n in range(lost)]
        for _ in range(ROUNDS):
            for waiter in waiters:
                waiter.go()
        rng = random.Random(SEED)
        for waiter in doomed:
            time.sleep(rng.random() * 0.1)
            waiter.process.kill()
        answers = [answer for waiter in waiters for answer in waiter.finished(100)]
    assert [a["result"] for a in answers] == [1] * (WAITERS * ROUNDS)
    waits = sorted((a["woken_ns"] - a["asked_ns"]) / 1e6 for a in answers)
    most = most_at_once(answers)
    print(f"{len(waits)} waits, {waits[len(waits) // 2]:.1f} ms in the median, {waits[-1]:.1f} ms at "
          f"most; {most} in at once")
    assert most <= WAITED_LIMIT
    wait_until(lambda: sum(held(host) for host in hosts) == 0, DEADLINE_S, "all is back")


@pytest.mark.timeout_s(180)
def test_all_who_wait_get_in_and_who_is_killed_while_waiting_loses_nothing():
    with Daemon(RULES.replace(str(LIMIT), str(WAITED_LIMIT))) as daemon:
        all_get_in([daemon])
        all_get_in([daemon], lost=8)


@pytest.mark.timeout_s(240)
def test_over_two_hosts_the_first_waits_to_be_lent_a_place_and_all_who_wait_get_in():
    with RedisCluster() as redis, fleet_of(redis, limit=WAITED_LIMIT) as hosts:
        for host in hosts:  # nothing is lent for some seconds after Redis was new
            wait_until(lambda host=host: may_enter(host), DEADLINE_S, "lent")
        for n, host in enumerate(hosts * 3):
            told = denials(host)
            with Waiter(host, f"tenant=idle-{n}", int(1000 * DEADLINE_S), HOLD_MS="0") as waiter:
                answer = waiter.finished()[0]
            print(f"the first of an idle key waited "
                  f"{(answer['woken_ns'] - answer['asked_ns']) / 1e6:.1f} ms")
            assert answer["result"] == 1
            wait_until(lambda host=host, told=told: denials(host) > told, DEADLINE_S,
                       "it was not there before")
        all_get_in(hosts, lost=4)


@pytest.mark.timeout_s(120)
def test_a_wait_for_a_place_ends_by_a_signal_or_too_late_and_sluicectl_waits_too(tmp_path):
    with Daemon(RULES.replace(str(LIMIT), "1")) as daemon:
        with holder(daemon, tmp_path, "stays"):
            for signum in (signal.SIGTERM, signal.SIGINT):
                told = denials(daemon)
                with Waiter(daemon, "tenant=acme", 3_600_000, HOLD_MS="0") as waiter:
                    wait_until(lambda told=told: denials(daemon) > told, DEADLINE_S, "it waits")
                    waiter.process.send(signum)
                    assert waiter.finished(KILL_WAIT_S)[0]["result"] == E_CANCELLED
            with Waiter(daemon, "tenant=acme", 50, HOLD_MS="0") as waiter:
                assert waiter.finished()[0]["result"] == 0
            late = ctl("check", "tenant=acme", "--hold", "60", "--acquire", "50ms", daemon=daemon,
                       check=False)
            assert late.returncode == 1 and late.stdout.startswith("denied"), late.stdout
            assert held(daemon) == 1
            told = denials(daemon)
            env = {**os.environ, "SLUICE_RUNTIME_DIR": daemon.runtime_dir}
            waits = Process([binary("sluicectl"), "check", "tenant=acme", "--hold", "3600",
                             "--acquire", "1h"], tmp_path / "waits", env=env)
            wait_until(lambda: denials(daemon) > told, DEADLINE_S, "sluicectl waits")
        with waits:
            wait_until(lambda: held(daemon) == 1 and "allowed" in waits.log(), DEADLINE_S, "it is in")
            waits.send(signal.SIGINT)  # ends the hold at once
            assert waits.wait(KILL_WAIT_S) != 0
        wait_until(lambda: held(daemon) == 0, DEADLINE_S, "its place is back")
