"""consistency: strict, with real daemons, clients and Redis: never above the limit, in any window."""

import contextlib

import pytest

from harness.load import REDIS_AND_RULES, Load, admitted, connected_hosts, redis_words
from harness.redis_cluster import RedisCluster, RedisServer, shipped_acl
from harness.sluice import wait_until

SUITE_WAITS = True
SECOND_NS = 1_000_000_000
RATE = 1000
BURST = 400

CONFIG = REDIS_AND_RULES + """
  - name: strict
    key: [user]
    limit: {rate}/s
    burst: {burst}
    consistency: strict{wait}
    when_degraded: {{mode: {degraded}}}
"""
REPORT = {"REPORT_MS": "5"}


def hosts(redis, count=2, rate=RATE, burst=BURST, degraded="closed", wait=None):
    return connected_hosts(
        CONFIG.format(**redis_words(redis), host=f"host-{n}", rate=rate, burst=burst,
                      degraded=degraded, wait=f"\n    wait: {wait}" if wait else "")
        for n in range(count))


@pytest.fixture
def server():
    with RedisServer() as running:
        yield running


def most_over(loads, rate=RATE, burst=BURST):
    """The most tokens over burst + rate * window in any window, of what was surely within it.

    Each report is a span and what was allowed in it; a window from the beginning of one span to the
    end of another holds all spans that lie within it."""
    spans = []
    for reports in loads:
        begin = reports[0]["t_ns"]
        for report in reports[1:]:
            if report["allowed"]:
                spans.append((report["t_ns"], begin, report["allowed"]))
            begin = report["t_ns"]
    spans.sort()
    worst = -burst
    for first in sorted({begin for _, begin, _ in spans}):
        inside = 0
        for end, begin, allowed in spans:
            if begin >= first:
                inside += allowed
                worst = max(worst, inside - burst - rate * (end - first) / SECOND_NS)
    return worst


def measured(loads, after_s, seconds, **limit):
    """Ends the loads: what they were allowed in the seconds that begin `after_s` from where all of
    them ran, and most_over."""
    reports = [load.finish()[0] for load in loads]
    begin = max(lines[0]["t_ns"] for lines in reports) + after_s * SECOND_NS
    used = sum(admitted(lines, begin, begin + seconds * SECOND_NS) for lines in reports)
    return used, most_over(reports, **limit)


def run_loads(stack, daemons, per_s, seconds, wait_ms=0, **descriptors):
    env = {**REPORT, "WAIT_MS": str(wait_ms)} if wait_ms else REPORT
    return [stack.enter_context(Load(d, per_s, seconds, env=env, **descriptors)) for d in daemons]


@pytest.mark.timeout_s(180)
def test_two_hosts_never_admit_more_than_the_limit_and_nearly_all_of_it(server):
    with hosts(server) as daemons, contextlib.ExitStack() as stack:
        loads = run_loads(stack, daemons, 2000, 12, user="u")
        used, over = measured(loads, 3, 8)
        print(f"8 s: {used} of {8 * RATE}; most over any window: {over:.1f}")
        assert over <= 0
        assert used >= 0.95 * 8 * RATE


def lease_calls(daemons):
    return sum(d.metrics().value("sluice_lease_calls_total") for d in daemons)


@pytest.mark.timeout_s(180)
@pytest.mark.parametrize("wait", [None, "25ms"])
def test_callers_that_wait_use_a_low_limit_of_many_hosts_in_full(server, wait):
    with hosts(server, count=4, rate=10, burst=10, wait=wait) as daemons, \
            contextlib.ExitStack() as stack:
        before = lease_calls(daemons)
        loads = run_loads(stack, daemons, 5, 36, wait_ms=25, user="u")
        used, over = measured(loads, 5, 30, rate=10, burst=10)
        calls = (lease_calls(daemons) - before) / 36 / 4
        print(f"30 s: {used} of 300; most over any window: {over:.1f}; {calls:.2f} calls/s/host")
        assert over <= 0
        assert used >= 285
        assert calls <= 12 or not wait


@pytest.mark.timeout_s(180)
def test_killed_daemons_never_let_a_token_be_spent_twice(server):
    with hosts(server) as daemons, contextlib.ExitStack() as stack:
        loads = run_loads(stack, daemons, 1500, 14, user="u")
        for n in range(6):
            wait_until(lambda n=n: len(loads[0].lines()) > 300 + 300 * n, 30, "the load runs")
            daemons[n % 2].kill_worker()
        used, over = measured(loads, 3, 10)
        print(f"10 s: {used} of {10 * RATE}; most over any window: {over:.1f}")
        assert over <= 0
        assert used >= 0.5 * 10 * RATE, "and they come back"


@pytest.mark.timeout_s(180)
def test_while_redis_stands_still_what_is_lent_is_spent_and_then_the_rule_is_closed(server):
    with hosts(server) as daemons, contextlib.ExitStack() as stack:
        loads = run_loads(stack, daemons, 1500, 16, user="u")
        wait_until(lambda: len(loads[0].lines()) > 800, 30, "four calm seconds")
        server.pause()
        paused = max(load.lines()[-1]["t_ns"] for load in loads)
        try:
            wait_until(lambda: loads[0].lines()[-1]["t_ns"] > paused + 4 * SECOND_NS, 30, "4 s")
        finally:
            server.resume()
        resumed = max(load.lines()[-1]["t_ns"] for load in loads)
        reports = [load.finish()[0] for load in loads]
        during = sum(admitted(lines, paused, paused + 4 * SECOND_NS) for lines in reports)
        closed = sum(admitted(lines, paused + 2 * SECOND_NS, resumed) for lines in reports)
        after = sum(admitted(lines, resumed + 4 * SECOND_NS) for lines in reports)
        over = most_over(reports)
        print(f"during: {during}, closed: {closed}, after: {after}; most over: {over:.1f}")
        assert over <= 0
        assert during <= BURST
        assert closed == 0
        assert after >= 0.9 * RATE * 2


@pytest.mark.timeout_s(180)
def test_a_redis_that_comes_back_empty_lends_nothing_before_all_leases_have_ended(server):
    with hosts(server) as daemons, contextlib.ExitStack() as stack:
        loads = run_loads(stack, daemons, 1500, 16, user="u")
        for n in range(2):
            wait_until(lambda n=n: len(loads[0].lines()) > 600 + 900 * n, 30, "the load runs")
            server.kill()
            server.restart()
        reports = [load.finish()[0] for load in loads]
        over = most_over(reports)
        last = max(lines[-1]["t_ns"] for lines in reports)
        after = sum(admitted(lines, last - 2 * SECOND_NS) for lines in reports)
        print(f"the last 2 s: {after}; most over any window: {over:.1f}")
        assert over <= 0
        assert after >= 0.9 * 2 * RATE


@pytest.mark.timeout_s(240)
def test_a_failover_in_a_cluster_lends_nothing_twice():
    with RedisCluster() as cluster, hosts(cluster) as daemons, contextlib.ExitStack() as stack:
        # Some users, so that each primary has one.
        loads = {user: run_loads(stack, daemons, 300, 26, user=user) for user in "abcdef"}
        wait_until(lambda: len(loads["a"][0].lines()) > 800, 60, "the load runs")
        lost = cluster.kill_primary()
        cluster.wait_failover(lost)
        worst = {}
        for user, pair in loads.items():
            reports = [load.finish()[0] for load in pair]
            worst[user] = most_over(reports)
        print({user: round(over, 1) for user, over in worst.items()})
        assert max(worst.values()) <= 0


@pytest.mark.timeout_s(120)
def test_a_request_that_one_rule_rejects_spends_nothing_in_a_strict_one(server):
    with hosts(server, count=1) as daemons, contextlib.ExitStack() as stack:
        daemons[0].reload(CONFIG.format(mode="single", host="host-0", addresses=server.address,
                                        rate=RATE, burst=BURST, degraded="closed", wait="")
                          + "  - {name: tiny, key: [user], match: {tiny: 'yes'}, limit: 10/s}\n")
        both = run_loads(stack, daemons, 1000, 6, user="u", tiny="yes")
        only = run_loads(stack, daemons, 2000, 6, user="u")
        rejected = both[0].finish()[0]
        reports = only[0].finish()[0]
        begin = reports[0]["t_ns"] + 3 * SECOND_NS
        used = admitted(reports, begin, begin + 2 * SECOND_NS)
        print(f"2 s: {used} beside {admitted(rejected)}")
        assert admitted(rejected) <= 10 * 7
        assert used >= 0.93 * 2 * RATE


@pytest.mark.timeout_s(120)
def test_without_the_right_to_info_strict_rules_say_so_and_all_else_goes_on():
    with RedisServer(acl=[shipped_acl().replace(" +info", "")]) as server, \
            hosts(server, count=1) as (daemon,), contextlib.ExitStack() as stack:
        daemon.wait_for(lambda: "nameless" in [a["id"] for a in daemon.status()["alarms"]], 20,
                        "an alarm")
        (load,) = run_loads(stack, [daemon], 100, 2, user="u")
        assert admitted(load.finish()[0]) == 0
        server.call("ACL", "SETUSER", "sluice", "+info")
        daemon.wait_for(lambda: not daemon.status()["alarms"], 20, "it is mended")
        (load,) = run_loads(stack, [daemon], 100, 6, user="u")
        reports = load.finish()[0]
        assert admitted(reports, reports[-1]["t_ns"] - 2 * SECOND_NS) >= 190
