"""Classes of requests with real daemons, clients and Redis: who has what, and what is counted."""

import contextlib
import json

import pytest

from harness.load import REDIS_AND_RULES, Load, admitted, connected_hosts, redis_words
from harness.redis_cluster import RedisServer
from harness.sluice import Daemon, ctl, ctl_json, wait_until

LIMIT = 100
# Nothing comes back while a test runs.
RULES = """
rules:
  - name: bucket
    match: {{algorithm: bucket}}
    key: [tenant]
    limit: {limit} per 300d
    priority: &classes {{classes: {{critical: 1, normal: 0.8, sheddable: 0.5}}}}
  - name: fixed
    match: {{algorithm: fixed}}
    key: [tenant]
    algorithm: fixed_window
    limit: {limit} per 300d
    priority: *classes
  - name: sliding
    match: {{algorithm: sliding}}
    key: [tenant]
    algorithm: sliding_window
    limit: {limit} per 300d
    priority: *classes
  - name: log
    match: {{algorithm: log}}
    key: [tenant]
    algorithm: sliding_log
    limit: {limit} per 300d
    priority: *classes
"""
SECONDS = 12
SETTLE_NS = 6_000_000_000  # a strict bucket begins empty, where Redis may have lost one
LENT = REDIS_AND_RULES + """
  - name: lent
    key: [tenant]
    limit: 200/s
    consistency: {consistency}
    priority: {{classes: {{critical: 1, sheddable: 0.5}}}}
"""


def check(daemon, count=1, **descriptors):
    words = [f"{name}={value}" for name, value in descriptors.items()]
    return json.loads(ctl("check", *words, "--count", str(count), "--json", daemon=daemon,
                          check=False).stdout)


def allowed(daemon, count, of_class, **descriptors):
    return check(daemon, count, **descriptors, tenant="acme",
                 **{"class": of_class})["checks_allowed"]


@pytest.mark.timeout_s(120)
def test_each_class_has_its_part_and_its_denials_are_counted():
    with Daemon(RULES.format(limit=LIMIT)) as daemon:
        for rule in ("bucket", "fixed", "sliding", "log"):
            assert allowed(daemon, 70, "sheddable", algorithm=rule) == 50, rule
            assert allowed(daemon, 40, "normal", algorithm=rule) == 30, rule
            assert allowed(daemon, 5, "unheard-of", algorithm=rule) == 0, rule
            assert allowed(daemon, 21, "critical", algorithm=rule) == 20, rule
        for rule in ("bucket", "fixed", "sliding", "log"):
            for of_class, denied in (("sheddable", 25), ("normal", 10), ("critical", 1)):
                wait_until(lambda r=rule, c=of_class, n=denied: daemon.metrics().value(
                    "sluice_class_denied_total", rule=r, **{"class": c}) == n, 20,
                           f"{rule} {of_class}: {denied} denied")
            assert daemon.metrics().value("sluice_checks_total", rule=rule, result="denied") == 36
        rules = {rule["label"]: rule for rule in ctl_json("rules", daemon=daemon)["rules"]}
        assert rules["log"]["priority"]["denied"] == {"critical": 1, "normal": 10, "sheddable": 25}
        assert "sheddable=0.5 (25 denied)" in ctl("rules", daemon=daemon).stdout


@pytest.mark.timeout_s(120)
@pytest.mark.parametrize("consistency", ["strict", "overdraft"])
def test_what_is_lent_is_kept_for_what_matters(consistency):
    """Three times the limit over two hosts, of which a fifth is critical."""
    with RedisServer() as server, contextlib.ExitStack() as stack:
        daemons = stack.enter_context(connected_hosts(
            LENT.format(**redis_words(server), host=f"host-{n}", consistency=consistency)
            for n in range(2)))
        loads = {(n, of_class): stack.enter_context(Load(
            daemon, rate, SECONDS, tenant="acme", **{"class": of_class}))
            for n, daemon in enumerate(daemons)
            for of_class, rate in (("critical", 60), ("sheddable", 240))}
        asked = {"critical": 0, "sheddable": 0}
        allowed_of = dict(asked)
        for (_, of_class), load in loads.items():
            reports, _ = load.finish()
            settled_ns = reports[0]["t_ns"] + SETTLE_NS
            asked[of_class] += sum(r["checks"] for r in reports if r["t_ns"] > settled_ns)
            allowed_of[of_class] += admitted(reports, settled_ns)
        print(consistency, asked, allowed_of)
        assert allowed_of["critical"] >= 0.95 * asked["critical"]
        assert allowed_of["sheddable"] <= 0.6 * asked["sheddable"]
        seconds = SECONDS - SETTLE_NS / 1e9
        assert sum(allowed_of.values()) >= 0.8 * 200 * seconds
        wait_until(lambda: daemons[0].metrics().value(
            "sluice_class_denied_total", rule="lent", **{"class": "sheddable"}) > 0, 20,
                   "denials are counted")
