"""consistency: overdraft, with real daemons, clients and Redis: the first check is allowed at once,
hosts together admit the limit and hardly more, and without Redis each goes on by its share."""

import contextlib

import pytest

from harness.load import REDIS_AND_RULES, Load, admitted, connected_hosts, redis_words
from harness.redis_cluster import RedisCluster, RedisServer
from harness.sluice import wait_until

SECOND_NS = 1_000_000_000
RATE = 1000
BURST = 400

CONFIG = REDIS_AND_RULES + """
  - name: shared
    key: [user]
    limit: {rate}/s
    burst: {burst}
    consistency: overdraft{wait}
    when_degraded: {{mode: degrade, factor: {factor}}}
"""
REPORT = {"REPORT_MS": "5"}


def hosts(redis, count=2, rate=RATE, burst=BURST, factor=1, wait=None):
    return connected_hosts(
        CONFIG.format(**redis_words(redis), host=f"host-{n}", rate=rate, burst=burst, factor=factor,
                      wait=f"\n    wait: {wait}" if wait else "")
        for n in range(count))


@pytest.fixture
def server():
    with RedisServer() as running:
        yield running


def over_in(loads, window_s, rate=RATE, burst=BURST):
    """The most tokens over burst + rate * window in windows of one length, of what was surely within:
    each report is a span, and what was allowed in it."""
    spans = sorted((end["t_ns"], begin["t_ns"], end["allowed"]) for reports in loads
                   for begin, end in zip(reports, reports[1:]))
    worst = inside = first = 0
    for last, (end, _, allowed) in enumerate(spans):
        inside += allowed
        while spans[first][1] < end - window_s * SECOND_NS:
            inside -= spans[first][2]
            first += 1
        assert first <= last + 1
        worst = max(worst, inside)
    return worst - burst - rate * window_s


def run_loads(stack, daemons, per_s, seconds, wait_ms=0, **descriptors):
    env = {**REPORT, "WAIT_MS": str(wait_ms)} if wait_ms else REPORT
    return [stack.enter_context(Load(d, per_s, seconds, env=env, **descriptors))
            for d in daemons]


def all_run(loads):
    wait_until(lambda: all(load.lines() for load in loads), 30, "all loads run")


@pytest.mark.timeout_s(180)
def test_two_hosts_admit_nearly_all_of_the_limit_and_hardly_more(server):
    with hosts(server) as daemons, contextlib.ExitStack() as stack:
        loads = run_loads(stack, daemons, 2000, 14, user="u")
        reports = [load.finish()[0] for load in loads]
        begin = max(lines[0]["t_ns"] for lines in reports) + 2 * SECOND_NS
        used = sum(admitted(lines, begin, begin + 10 * SECOND_NS) for lines in reports)
        over_1s, over_10s = over_in(reports, 1), over_in(reports, 10)
        print(f"10 s: {used} of {10 * RATE}; over in 1 s: {over_1s}, in 10 s: {over_10s}")
        assert over_1s <= 0.03 * RATE
        assert over_10s <= 0
        assert used >= 0.97 * 10 * RATE


@pytest.mark.timeout_s(120)
def test_a_first_check_is_allowed_at_once_and_after_a_rest_too(server):
    with hosts(server) as daemons, contextlib.ExitStack() as stack:
        for _ in range(2):
            (load,) = run_loads(stack, daemons[:1], 20, 2.5, user="u")
            reports = load.finish()[0]
            assert sum(r["denied"] for r in reports) == 0
            (load,) = run_loads(stack, daemons[1:], 20, 2.5, user="u")
            reports = load.finish()[0]
            assert sum(r["denied"] for r in reports) == 0


@pytest.mark.timeout_s(180)
@pytest.mark.parametrize("wait_ms, over, least", [(25, 1, 285), (0, 10, 250)])
def test_a_low_limit_of_more_hosts_than_it_has_tokens_for_is_used(server, wait_ms, over, least):
    wait = f"{wait_ms}ms" if wait_ms else None
    with hosts(server, count=6, rate=10, burst=10, wait=wait) as daemons, \
            contextlib.ExitStack() as stack:
        loads = run_loads(stack, daemons, 3.4, 40, wait_ms=wait_ms, user="u")
        reports = [load.finish()[0] for load in loads]
        begin = max(lines[0]["t_ns"] for lines in reports) + 8 * SECOND_NS
        used = sum(admitted(lines, begin, begin + 30 * SECOND_NS) for lines in reports)
        late = [[r for r in lines if r["t_ns"] >= begin] for lines in reports]
        over_10s = over_in(late, 10, rate=10, burst=10)
        print(f"30 s: {used} of 300; over in 1 s: {over_in(late, 1, 10, 10)}, in 10 s: {over_10s}")
        assert over_10s <= over
        assert used >= least


@pytest.mark.timeout_s(180)
def test_while_redis_stands_still_a_quarter_of_the_time_hosts_go_on_by_their_shares(server):
    with hosts(server) as daemons, contextlib.ExitStack() as stack:
        loads = run_loads(stack, daemons, 1500, 22, user="u")
        all_run(loads)
        wait_until(lambda: len(loads[0].lines()) > 600, 30, "three calm seconds")
        server.pause()
        paused = max(load.lines()[-1]["t_ns"] for load in loads)
        try:
            wait_until(lambda: loads[0].lines()[-1]["t_ns"] > paused + 5 * SECOND_NS, 30, "5 s")
        finally:
            server.resume()
        resumed = max(load.lines()[-1]["t_ns"] for load in loads)
        reports = [load.finish()[0] for load in loads]
        begin = max(lines[0]["t_ns"] for lines in reports) + SECOND_NS
        end = min(lines[-1]["t_ns"] for lines in reports)
        used = sum(admitted(lines, begin, end) for lines in reports)
        due = (end - begin) / SECOND_NS * RATE
        during = sum(admitted(lines, paused, resumed) for lines in reports)
        whole_s = int((end - resumed) / SECOND_NS)
        after = [sum(admitted(lines, resumed + n * SECOND_NS, resumed + (n + 1) * SECOND_NS)
                     for lines in reports) for n in range(min(6, whole_s))]
        over_10s = over_in(reports, 10)
        # Until a host's daemon has tried Redis again, it goes on by its share, beside the others.
        late_s = [max((r["t_ns"] for r in lines if r["emergency"] > 0), default=resumed)
                  / SECOND_NS - resumed / SECOND_NS for lines in reports]
        print(f"used {used} of {due:.0f}; {(resumed - paused) / SECOND_NS:.1f} s without Redis: "
              f"{during}; then each second: {after}; over in 10 s: {over_10s}; back after "
              f"{late_s[0]:.1f} and {late_s[1]:.1f} s")
        assert over_10s <= 0, "what a host spends until it is back is set aside for it"
        assert used >= 0.95 * due
        assert after and min(after) >= 0.5 * RATE, "no debt stops all"
        assert max(late_s) <= 4.5, "tried again within 2.5 s, and then calm for two"


@pytest.mark.timeout_s(240)
def test_killed_daemons_cost_little(server):
    with hosts(server) as daemons, contextlib.ExitStack() as stack:
        loads = run_loads(stack, daemons, 1500, 14, user="u")
        all_run(loads)
        for n in range(6):
            wait_until(lambda n=n: len(loads[0].lines()) > 300 + 300 * n, 30, "the load runs")
            daemons[n % 2].kill_worker()
        reports = [load.finish()[0] for load in loads]
        begin = max(lines[0]["t_ns"] for lines in reports) + 3 * SECOND_NS
        used = sum(admitted(lines, begin, begin + 10 * SECOND_NS) for lines in reports)
        over_10s = over_in(reports, 10)
        print(f"10 s: {used} of {10 * RATE}; over in 10 s: {over_10s}")
        assert over_10s <= 0.05 * 10 * RATE
        assert used >= 0.9 * 10 * RATE


@pytest.mark.timeout_s(300)
@pytest.mark.parametrize("factor", [1, 0.5])
def test_ten_hosts_keep_to_limit_and_factor_while_their_primary_stands_still(factor):
    rate, burst, count, seconds = 500, 200, 10, 22
    config = {"cluster-require-full-coverage": "no"}
    with RedisCluster(3, 0, config=config) as cluster, \
            hosts(cluster, count, rate, burst, factor) as daemons, contextlib.ExitStack() as stack:
        # Some users, so that each primary has one.
        users = "abcdef"
        loads = {user: run_loads(stack, daemons, 2 * rate / count / len(users) * 6, seconds,
                                 user=user) for user in users[:4]}
        for pair in loads.values():
            all_run(pair)
        first = loads["a"][0]
        wait_until(lambda: len(first.lines()) > 800, 60, "four calm seconds")
        cluster.pause_primary()
        paused = first.lines()[-1]["t_ns"]
        reports = {user: [load.finish()[0] for load in of] for user, of in loads.items()}
        begin, length = paused + 2 * SECOND_NS, 10
        sums, emergency = {}, {}
        for user, of in reports.items():
            sums[user] = sum(admitted(lines, begin, begin + length * SECOND_NS) for lines in of)
            emergency[user] = sum(r["emergency"] for lines in of for r in lines
                                  if begin < r["t_ns"] <= begin + length * SECOND_NS)
        print(f"10 s with a primary away: {sums}, by shares: {emergency}")
        cut = [user for user in sums if emergency[user] > 0]
        assert cut and len(cut) < len(sums)
        for user, total in sums.items():
            part = factor if user in cut else 1
            assert total <= length * rate * part + burst
            assert total >= 0.8 * length * rate * part
