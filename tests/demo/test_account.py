"""The demo's account: its bound, its choice of limits, its plot; each can fail."""

import os
import sys
import xml.etree.ElementTree

import pytest

from harness.sluice import ROOT, Daemon, ctl, ctl_json

sys.path.insert(0, os.path.join(ROOT, "scripts", "demo.d"))
import bounds  # pylint: disable=wrong-import-position
import clients  # pylint: disable=wrong-import-position
import limits  # pylint: disable=wrong-import-position
import plot  # pylint: disable=wrong-import-position
import watcher  # pylint: disable=wrong-import-position

LIMIT = limits.Limit("r", "user", "", 100, "degrade", 0.5)
OPEN = limits.Limit("r", "user", "", 100, "open")
QUARTER = limits.Limit("r", "user", "", 100, "degrade", 0.25, 3)
CALM = (0.3, [])


def watch(per_second, seconds):
    """A bucket through which `per_second` tokens went for so long."""
    made = clients.Watch()
    made.asked = 10 * per_second * seconds
    made.denied = 1
    made.tokens = made.allowed = per_second * seconds
    made.tokens_over_time.add(0, seconds, made.tokens)
    return made


def test_a_limit_that_holds_is_held_and_one_that_two_hosts_do_not_share_is_not():
    held = bounds.judge(LIMIT, "u", watch(101, 30), [], CALM, 30)
    assert held.holds and held.tested and held.reached
    assert held.permitted == 100 * 30 + 50
    assert held.bound == pytest.approx(3050 + 50 + 100 * 0.4)
    assert not bounds.judge(LIMIT, "u", watch(200, 30), [], CALM, 30).holds
    assert not bounds.judge(LIMIT, "u", watch(106, 30), [], CALM, 30).holds


def test_an_outage_allows_each_host_its_factor_and_no_more():
    outage, ages = [(15.0, 22.0)], (0.3, [0.5])
    calm = bounds.judge(LIMIT, "u", watch(100, 30), [], CALM, 30).bound
    bound = bounds.judge(LIMIT, "u", watch(100, 30), outage, ages, 30).bound
    # Two hosts at half the limit are the limit; detection doubles it for half a second.
    assert bound == pytest.approx(calm + 100 * 0.5 + 2 * 90)
    closed = bounds.judge(QUARTER, "u", watch(80, 30), outage, ages, 30)
    assert closed.bound == pytest.approx(calm - 100 * 7.5 + 2 * (50 + 25 * 4) + 2 * 90)
    assert closed.holds
    assert not bounds.judge(QUARTER, "u", watch(100, 30), outage, ages, 30).holds


def test_a_route_that_fails_open_is_compared_outside_the_outage_only():
    made = watch(100, 30)
    made.tokens_over_time.add(16, 21, 100_000)
    outage, ages = [(15.0, 22.0)], (0.3, [0.5])
    row = bounds.judge(OPEN, "u", made, outage, ages, 30)
    assert row.holds and row.seconds < 23
    made.tokens_over_time.add(2, 10, 2_000)
    assert not bounds.judge(OPEN, "u", made, outage, ages, 30).holds


def test_a_count_is_spread_over_the_bins_that_its_report_covers():
    series = clients.Series()
    series.add(0.1, 1.1, 100)
    assert sum(series.bins.values()) == pytest.approx(100)
    assert series.between(0, 1) == pytest.approx(90)
    assert series.per_second(2) == [(0.5, pytest.approx(90)), (1.5, pytest.approx(10))]


def test_an_emergency_of_any_host_is_an_outage_from_the_look_before_it():
    seen = watcher.Watcher({}, 0)

    def sample(at_s, mode, age_s=0.1):
        return watcher.Sample(at_s, {"sluice_shard_mode": [({"shard": "0"}, 0), ({"shard": "1"}, mode)],
                                     "sluice_unreconciled_age_seconds": [({}, age_s)]})

    seen.samples = {"a": [sample(1, 0), sample(2, 2, 3.0), sample(3, 0)],
                    "b": [sample(1, 0), sample(2.5, 2, 4.0), sample(4, 1), sample(8, 0, 0.2)]}
    assert seen.emergencies(1, 9) == [(1, 4)]
    assert seen.emergencies(0, 9) == []
    assert seen.was_stale(1) and not seen.was_stale(0)
    assert seen.calm_age() == 0.2


def top(**shares):
    return {name: [{"value": f"{name}-{i}", "share": share, "tier": tier}
                   for i, (share, tier) in enumerate(values)] for name, values in shares.items()}


def make_plan():
    found = top(user=[(0.05, "free"), (0.04, "paid")], tenant=[(0.2, "free"), (0.1, "paid")],
                ip=[(0.03, "free")])
    found["route"] = [{"value": route, "share": share, "tier": ""}
                      for route, share in (("/m", 0.3), ("/g", 0.2), ("/x", 0.4), ("/bad*", 0.1))]
    return limits.Plan(found, 10_000, ("/m", "/g"))


def test_the_busiest_key_of_each_tier_asks_for_at_least_twice_its_limit():
    plan = make_plan()
    by_label = plan.by_label()
    assert by_label["per-user"].rate * 2 <= 10_000 * 0.05
    assert by_label["per-user@paid"].rate * 2 <= 10_000 * 0.04
    assert by_label["per-tenant@paid"].rate > by_label["per-tenant"].rate
    assert ("user", "user-1") in plan.watched


def test_the_daemon_takes_the_rules_and_agrees_on_every_shard():
    plan = make_plan()
    config = plan.yaml("{runtime_dir}", "host", ["127.0.0.1:1"])
    assert "/bad" not in config
    config = config[:config.index("redis:")] + config[config.index("rules:"):]
    with Daemon(config) as daemon:
        for i in range(20):
            ctl("check", f"user=u:{i}%", f"tenant=t-{i}", f"ip=192.0.2.{i}", "route=/m", "tier=paid",
                daemon=daemon)
        buckets = ctl_json("buckets", daemon=daemon)["buckets"]
        assert len(buckets) == 80 - 20  # per-tenant is for other routes
        for bucket in buckets:
            value = bucket["name"].split(":", 1)[1].replace("%25", "%")
            assert limits.shard_of(bucket["rule"], value) == bucket["shard"], bucket


def test_the_plot_is_well_formed_and_shades_the_outage():
    row = bounds.judge(LIMIT, "<&>", watch(100, 30), [(15.0, 22.0)], (0.3, [0.5]), 30)
    text = plot.draw([row], [(1.0, 0.1), (2.0, 0.2)], 30, 15.0, "a & b")
    root = xml.etree.ElementTree.fromstring(text)
    words = [element.text for element in root.iter() if element.text]
    assert any("<&>" in word for word in words)
    shades = [e for e in root.iter() if e.tag.endswith("rect") and e.get("fill") == plot.OUTAGE]
    assert len(shades) == 2  # one in the legend
    width = plot.WIDTH - plot.LEFT - plot.RIGHT
    assert float(shades[1].get("x")) == pytest.approx(plot.LEFT + width * 0.5, abs=0.1)
    assert float(shades[1].get("width")) == pytest.approx(width * 7 / 30, abs=0.1)
