"""Limits that come with the request, over two hosts: each is kept by itself, and the books close."""

import contextlib

import pytest

from harness.load import REDIS_AND_RULES, Load, admitted, connected_hosts, counted, redis_words
from harness.redis_cluster import RedisServer
from harness.sluice import ctl_json, wait_until

SECOND_NS = 1_000_000_000
LIMITS = (200, 400)

CONFIG = REDIS_AND_RULES + """
  - name: api
    key: [tenant]
    limit: 100/s
    override: {{by: plan, max: 1000}}
"""


@pytest.mark.timeout_s(180)
def test_two_hosts_keep_each_limit_of_one_tenant_by_itself():
    with RedisServer() as server, contextlib.ExitStack() as stack:
        daemons = stack.enter_context(connected_hosts(
            CONFIG.format(**redis_words(server), host=f"host-{n}") for n in range(2)))
        loads = {limit: [stack.enter_context(Load(d, limit * 3 // 4, 14, tenant="t", plan=limit))
                         for d in daemons] for limit in LIMITS}
        own = [stack.enter_context(Load(d, 75, 14, tenant="t")) for d in daemons]
        total = 0
        for limit, pair in [*loads.items(), (100, own)]:
            reports = [line for load in pair for line in load.finish()[0]]
            begin = min(line["t_ns"] for line in reports) + 3 * SECOND_NS
            used = admitted(reports, begin, begin + 8 * SECOND_NS)
            print(f"{limit}/s: {used} of {8 * limit} in 8 s")
            assert abs(used - 8 * limit) <= 0.03 * 8 * limit
            total += admitted(reports)
        wait_until(lambda: counted(server) == total, 15, f"Redis has counted the {total} admitted")
        for daemon in daemons:
            buckets = {bucket["name"]: bucket for bucket in ctl_json(
                "buckets", "api", daemon=daemon)["buckets"]}
            assert {name: bucket["limit"] for name, bucket in buckets.items()} == {
                "api:t": 100, "api=200:t": 200, "api=400:t": 400}
            everywhere = ctl_json("buckets", "api", "--global", daemon=daemon)["buckets"]
            assert {b["name"]: b["limit"] for b in everywhere} == {
                "api:t": 100, "api=200:t": 200, "api=400:t": 400}
            rules = {dict(labels)["rule"]
                     for labels in daemon.metrics().matching("sluice_checks_total")}
            assert rules == {"api"}, "no label is made of a limit"
