"""Several regions with a cluster each, real daemons, and latency between them."""

import pytest

from harness.load import admitted
from harness.regions import regions
from harness.sluice import ctl, ctl_json, wait_until

from integration.test_strict import SECOND_NS, measured, most_over

SUITE_WAITS = True
RATE = 500
BURST = 200

STRICT = """
rules:
  - name: strict
    key: [tenant]
    limit: {rate}/s
    burst: {burst}
    consistency: {{mode: strict, home: {home}, epoch: {epoch}}}
    when_degraded: {{mode: {degraded}}}
"""
MAP = "{tenant: {acme: eu, bolt: us}, default: ap}"
LIMIT = {"rate": RATE, "burst": BURST}


def strict(home=MAP, epoch=0, degraded="closed", rate=RATE):
    return STRICT.format(rate=rate, burst=BURST, home=home, epoch=epoch, degraded=degraded)


def homes_of(world, tenant):
    """The regions whose cluster holds the tenant's bucket; one that is full is soon forgotten."""
    return [name for name, region in world.regions.items()
            if any(region.server.call("HEXISTS", key, f"strict:{tenant}")
                   for key in region.server.call("KEYS", "rl:8:strict:*"))]


@pytest.mark.timeout_s(180)
def test_a_strict_limit_holds_over_three_regions():
    with regions() as world:
        daemons = [world.daemon(name, strict()) for name in ("ap", "eu", "us")]
        loads = [world.load(d, RATE, 14, tenant="acme") for d in daemons]
        wait_until(lambda: len(loads[0].lines()) > 600, 60, "the load runs")
        assert homes_of(world, "acme") == ["eu"]
        used, over = measured(loads, 5, 8, **LIMIT)
        print(f"8 s: {used} of {8 * RATE}; most over any window: {over:.1f}")
        assert over <= 0
        assert used >= 0.9 * 8 * RATE


@pytest.mark.timeout_s(180)
def test_by_rendezvous_each_bucket_has_one_home_and_all_regions_have_some():
    users = [f"u{n}" for n in range(12)]
    with regions() as world:
        daemons = [world.daemon(name, strict("rendezvous", rate=1)) for name in ("ap", "eu", "us")]
        for daemon in daemons:
            for load in [world.load(daemon, 5, 3, tenant=user) for user in users]:
                load.finish()
        homes = {user: homes_of(world, user) for user in users}
        print(homes)
        # Asked in any region, all are found, each where it stands.
        listed = ctl_json("buckets", "--global", daemon=daemons[2])["buckets"]
        assert {b["name"]: b["region"] for b in listed} == \
            {f"strict:{user}": names[0] for user, names in homes.items()}
        assert f"{homes['u0'][0]}/" in ctl("buckets", "--global", daemon=daemons[0]).stdout
        assert all(len(names) == 1 for names in homes.values())
        assert {names[0] for names in homes.values()} == {"ap", "eu", "us"}


@pytest.mark.timeout_s(180)
def test_where_the_home_cannot_be_reached_the_rule_does_as_it_says():
    with regions() as world:
        daemon = world.daemon("us", strict(degraded="open"))
        far, near = (world.load(daemon, 2 * RATE, 22, tenant=t) for t in ("acme", "bolt"))
        wait_until(lambda: len(far.lines()) > 1000, 60, "the load runs")
        world["eu"].cut_off()
        # Far from the beginning of the emergency: all that is asked for.
        wait_until(lambda: sum(line.get("emergency", 0) for line in far.lines()) > 2000, 30,
                   "its home is taken for dead")
        during = far.lines()[-1]["t_ns"]
        wait_until(lambda: far.lines()[-1]["t_ns"] > during + 3 * SECOND_NS, 30, "3 s")
        world["eu"].heal()
        daemon.wait_for(lambda: daemon.metrics().sum("sluice_emergency") == 0, 30, "it is back")
        healed = far.lines()[-1]["t_ns"]
        wait_until(lambda: far.lines()[-1]["t_ns"] > healed + 2 * SECOND_NS, 30, "2 s")
        reports, near_reports = far.stop(), near.stop()
        second = admitted(reports, during + SECOND_NS, during + 2 * SECOND_NS)
        print(f"far: {second} in a second, "
              f"then {admitted(reports, healed + SECOND_NS, healed + 2 * SECOND_NS)}; "
              f"near: over {most_over([near_reports], **LIMIT):.1f}")
        assert second >= 1.9 * RATE, "open"
        assert admitted(reports, healed + SECOND_NS, healed + 2 * SECOND_NS) <= RATE + BURST
        # The other home has seen nothing of it.
        assert most_over([near_reports], **LIMIT) <= 0
        assert sum(line["emergency"] for line in near_reports) == 0
        assert admitted(near_reports, during, during + 2 * SECOND_NS) >= 0.9 * 2 * RATE


@pytest.mark.timeout_s(240)
def test_a_home_moves_while_hosts_learn_of_it_at_different_times():
    moved = MAP.replace("acme: eu", "acme: us")
    with regions() as world:
        daemons = [world.daemon(name, strict()) for name in ("ap", "eu", "us")]
        loads = [world.load(d, RATE, 40, tenant="acme") for d in daemons]
        wait_until(lambda: len(loads[0].lines()) > 1200, 60, "the load runs")
        for daemon in daemons:
            daemon.reload(world.config(daemon.process.name.removeprefix("host-"),
                                       strict(moved, epoch=1)))
            begun = loads[0].lines()[-1]["t_ns"]
            wait_until(lambda t=begun: loads[0].lines()[-1]["t_ns"] > t + 3 * SECOND_NS, 30, "3 s")
        begun = loads[0].lines()[-1]["t_ns"]
        wait_until(lambda: loads[0].lines()[-1]["t_ns"] > begun + 4 * SECOND_NS, 30, "4 s")
        assert "us" in homes_of(world, "acme")  # what its former home knew is soon forgotten
        reports = [load.stop() for load in loads]
        over = most_over(reports, **LIMIT)
        used = sum(admitted(r, begun, begun + 3 * SECOND_NS) for r in reports)
        print(f"most over any window: {over:.1f}; the last 3 s: {used} of {3 * RATE}")
        assert over <= 0
        assert used >= 0.9 * 3 * RATE


@pytest.mark.timeout_s(180)
def test_a_map_that_changes_without_a_new_epoch_lends_nothing_and_says_so():
    with regions(("eu", "us")) as world:
        rules = strict("{tenant: {acme: eu}, default: us}")
        other = strict("{tenant: {acme: us}, default: eu}")
        first, second = world.daemon("eu", rules), world.daemon("us", rules)
        loads = [world.load(d, RATE, 12, tenant="acme") for d in (first, second)]
        wait_until(lambda: len(loads[0].lines()) > 800, 60, "the load runs")
        second.reload(world.config("us", other))
        second.wait_for(lambda: "home:strict" in [a["id"] for a in second.status()["alarms"]], 20,
                        "an alarm")
        alarmed = loads[1].lines()[-1]["t_ns"]
        reports = [load.finish()[0] for load in loads]
        assert most_over(reports, **LIMIT) <= 0
        assert admitted(reports[1], alarmed + 2 * SECOND_NS) == 0
        assert admitted(reports[0], alarmed + 2 * SECOND_NS) > RATE
        second.reload(world.config("us", rules))
        second.wait_for(lambda: not second.status()["alarms"], 20, "it is mended")


LOCAL = """
rules:
  - name: local
    key: [user]
    limit: {rate}/s
"""


@pytest.mark.parametrize("beat_ms", [500, 1000])
@pytest.mark.timeout_s(180)
def test_regions_that_count_by_themselves_hear_of_each_other(beat_ms):
    with regions() as world:
        daemons = [world.daemon(name, LOCAL.format(rate=RATE), f"exchange: {beat_ms}ms")
                   for name in ("ap", "eu", "us")]
        # A flash crowd everywhere, then on and off in one region, then a far one alone.
        loads = [world.load(d, 2 * RATE, 16, user="u") for d in daemons]
        wait_until(lambda: len(loads[0].lines()) > 1800, 60, "it runs")
        loads[0].process.terminate(20)
        reports = [load.finish()[0] if load is not loads[0] else
                   [line for line in load.lines() if "t_ns" in line] for load in loads]
        begin = max(lines[0]["t_ns"] for lines in reports)
        steady = sum(admitted(r, begin + 3 * SECOND_NS, begin + 7 * SECOND_NS) for r in reports)
        last = min(lines[-1]["t_ns"] for lines in reports[1:])
        after = sum(admitted(r, last - 3 * SECOND_NS, last) for r in reports)
        over = most_over(reports, rate=RATE, burst=RATE)
        bound = 3 * RATE * beat_ms / 1000
        print(f"beat {beat_ms} ms: most over any window {over:.0f} of {bound:.0f}; 4 s: {steady} of "
              f"{4 * RATE}; two regions, 3 s: {after} of {3 * RATE}")
        assert over <= bound
        # A region hears a beat later that another asks for less, and for longer on a busy machine.
        most = 1.1 + 0.1 * beat_ms / 1000
        assert 0.85 * 4 * RATE <= steady <= most * 4 * RATE
        assert 0.85 * 3 * RATE <= after <= most * 3 * RATE
