"""Redis away: routes follow their word within a second, checks stay fast, the use is counted once."""

import contextlib

import pytest

from harness.redis_cluster import RedisCluster
from harness.sluice import Daemon, wait_until

from harness.load import Load, admitted, counted

SECOND_NS = 1_000_000_000

CONFIG = """
redis:
  addresses: [{addresses}]
  username: sluice
  password: of-the-tests
rules:
  - name: metadata
    key: [user]
    match: {{route: /metadata}}
    limit: 20 per 1h
    burst: 20
    when_degraded: {{mode: open, alert: true}}
  - name: generate
    key: [user]
    match: {{route: /generate}}
    limit: 400/s
    burst: 400
    when_degraded: {{mode: degrade, factor: 0.25, for: 3s, then: closed}}
  - name: pay
    key: [user]
    match: {{route: /pay}}
    limit: 1000/s
    burst: 1000
    when_degraded: {{mode: closed}}
  - name: ledger
    key: [user]
    match: {{route: /ledger}}
    limit: 100000 per 1h
    burst: 100000
    when_degraded: {{mode: open, alert: true}}
"""


@pytest.fixture
def cluster():
    with RedisCluster(config={"cluster-require-full-coverage": "no"}) as running:
        yield running


@contextlib.contextmanager
def connected(cluster):
    config = CONFIG.format(addresses=", ".join(cluster.addresses()))
    with Daemon(config) as daemon:
        daemon.wait_for(lambda: daemon.metrics().sum("sluice_redis_connected") >= 3
                        and daemon.metrics().sum("sluice_emergency") == 0, 30, "connected")
        yield daemon


def freeze_all(cluster):
    """Pauses every node, so that nobody fails over: Redis as a whole is silent."""
    for node in cluster.nodes:
        node.pause()


def thaw_all(cluster):
    for node in cluster.nodes:
        node.resume()


# envoyproxy/ratelimit#978: no breaker, so that every request met the dead Redis anew.
@pytest.mark.timeout_s(240)
def test_each_route_follows_its_word_within_a_second_and_recovers(cluster):
    with connected(cluster) as daemon, contextlib.ExitStack() as stack:
        loads = {name: stack.enter_context(Load(daemon, rate, 80, route=f"/{name}", user="u"))
                 for name, rate in (("metadata", 50), ("generate", 800), ("pay", 200))}
        wait_until(lambda: len(loads["pay"].lines()) > 50, 30, "five calm seconds")
        cut = max(r["t_ns"] for r in loads["pay"].lines())
        freeze_all(cluster)
        try:
            wait_until(lambda: len(loads["pay"].lines()) > 120, 30, "seven seconds of outage")
            assert daemon.metrics().sum("sluice_emergency") > 0
            alarms = [a["id"] for a in daemon.status()["alarms"]]
            assert "degraded:metadata" in alarms, alarms
            assert "degraded:ledger" not in alarms, "nobody has asked for it"
            assert len(alarms) == len(set(alarms))
        finally:
            thaw_all(cluster)
        # How long the cluster takes to be one again is its own affair.
        wait_until(lambda: daemon.metrics().sum("sluice_emergency") == 0, 40, "recovered")
        well_ns = loads["pay"].lines()[-1]["t_ns"]
        wait_until(lambda: loads["pay"].lines()[-1]["t_ns"] > well_ns + 4 * SECOND_NS, 20,
                   "four seconds more")
        reports = {name: load.stop() for name, load in loads.items()}
        back_s = (well_ns - cut) / SECOND_NS

        def rate(name, begin_s, end_s):
            return admitted(reports[name], cut + begin_s * SECOND_NS,
                            cut + end_s * SECOND_NS) / (end_s - begin_s)

        print(f"well again after {back_s:.1f} s", {
            name: [round(rate(name, s, s + 1)) for s in range(-4, 22)] for name in reports})
        assert rate("metadata", 1.2, 6) >= 48, "fails open"
        assert rate("pay", 1.2, 6) == 0, "fails closed within a second"
        assert 60 <= rate("generate", 1.5, 3) <= 130, "a quarter of 400/s"
        assert rate("generate", 5, 6) == 0, "closed after its time"
        assert rate("pay", back_s + 1, back_s + 4) >= 190, "and back"
        log = daemon.log()
        assert log.count("alarm: rule metadata is degraded") == 1, "raised once"
        assert log.count("alarm cleared: rule metadata is degraded") == 1, "cleared once"


@pytest.mark.timeout_s(240)
@pytest.mark.parametrize("fault", ["killed", "paused", "all-paused"])
def test_the_use_of_an_outage_stands_in_redis_once(cluster, fault):
    with connected(cluster) as daemon, contextlib.ExitStack() as stack:
        users = [stack.enter_context(Load(daemon, 100, 16, route="/ledger", user=f"u{n}"))
                 for n in range(6)]
        wait_until(lambda: len(users[0].lines()) > 30, 30, "three calm seconds")
        node = None
        if fault == "all-paused":
            freeze_all(cluster)
        else:
            node = cluster.kill_primary() if fault == "killed" else cluster.pause_primary()
        try:
            wait_until(lambda: daemon.metrics().sum("sluice_emergency") > 0, 10, "emergency")
            wait_until(lambda: len(users[0].lines()) > 100, 30, "ten seconds")
        finally:
            if fault == "all-paused":
                thaw_all(cluster)
            elif fault == "paused":
                node.resume()
        ends = [load.finish() for load in users]
        total = sum(admitted(lines) for lines, _ in ends)
        assert total >= 6 * 100 * 15
        wait_until(lambda: daemon.metrics().sum("sluice_emergency") == 0, 60, "recovered")
        if fault == "killed":
            node.restart()
        seen = []

        def settled():
            seen.append(counted(cluster))
            return daemon.metrics().value("sluice_unreconciled_age_seconds") == 0 \
                and seen[-1] == total

        wait_until(settled, 30, f"Redis has counted the {total} admitted")


# envoyproxy/ratelimit#462: with Redis down, each request took 1 to 10 s.
@pytest.mark.timeout_s(120)
def test_no_check_waits_for_redis(cluster):
    with connected(cluster) as daemon:
        with Load(daemon, 2000, 4, route="/ledger", user="calm") as load:
            calm = load.finish()[1]
        freeze_all(cluster)
        try:
            with Load(daemon, 2000, 4, route="/ledger", user="calm") as load:
                reports, outage = load.finish()
        finally:
            thaw_all(cluster)
        print(f"p99 calm {calm['p99_ns']} ns, outage {outage['p99_ns']} ns")
        # Noise apart, a check that waited for anything would take 25 ms, the shortest time-out.
        assert outage["p99_ns"] < 5_000_000
        assert sum(r["checks"] for r in reports) >= 2000 * 3.5
