"""Costs by outcome over two hosts and a real Redis: what is counted is the sum of the outcomes."""

import contextlib
import json
import os

import pytest

from harness.load import REDIS_AND_RULES, connected_hosts, counted, redis_words
from harness.processes import run
from harness.redis_cluster import RedisServer
from harness.sluice import build_dir, ctl_json, wait_until

TOKENS = {200: 1, 201: 1, 401: 5, 404: 0, 429: 2, 500: 0, 503: 0}
# A million dollars in millionths: what no word of 32 bits holds, and no number of 53 bits rounds.
PRICES = {**TOKENS, 401: 999_999_937, 404: (1 << 32) + 1, 429: 12_345_678}
# Of each rule: how many requests of each host, what they cost, the limit.
RULES = {"bucket": (3000, TOKENS, 100_000), "window": (3000, TOKENS, 100_000),
         "money": (300, PRICES, 10 ** 12)}
COUNTED_DEADLINE_S = 20

# Neither gives anything back by time while the test runs.
CONFIG = REDIS_AND_RULES + """
  - name: bucket
    key: [tenant]
    match: {{route: /bucket}}
    limit: 100000 per 300d
    outcomes: {{401: 5, 404: 0, 4xx: 2, 5xx: refund}}
  - name: window
    key: [tenant]
    match: {{route: /window}}
    algorithm: fixed_window
    limit: 100000 per 300d
    outcomes: {{401: 5, 404: 0, 4xx: 2, 5xx: refund}}
  - name: money
    key: [tenant]
    match: {{route: /money}}
    algorithm: fixed_window
    limit: 1000000000000 per 300d
    outcomes: {{401: 999999937, 404: 4294967297, 4xx: 12345678, 5xx: refund}}
"""


def serve(daemon, rule, seed):
    """Requests of a rule that end in random ways; what they cost in the end."""
    requests, prices, _ = RULES[rule]
    program = os.path.join(build_dir(), "tests", "integration", "report_outcomes")
    done = run([program, daemon.runtime_dir, requests, seed, f"route=/{rule}", "tenant=acme"], 60)
    end = json.loads(done.stdout)
    print(rule, end)
    assert end["denied"] == 0
    named = {int(status): n for status, n in end["ended"].items()}
    assert end["unreported"] == named[200] + named[201], "no outcome speaks of these"
    return sum(prices[status] * n for status, n in named.items())


@pytest.mark.timeout_s(180)
def test_use_after_all_reports_is_the_sum_of_the_outcomes():
    with RedisServer() as server, contextlib.ExitStack() as stack:
        daemons = stack.enter_context(connected_hosts(
            CONFIG.format(**redis_words(server), host=f"host-{n}") for n in range(2)))
        sums = {}
        for rule in RULES:
            sums[rule] = sum(serve(d, rule, seed) for seed, d in enumerate(daemons, 1))
        total = sum(sums.values())
        wait_until(lambda: counted(server) == total, COUNTED_DEADLINE_S,
                   f"Redis has counted {total}, and says {counted(server)}")

        def used(daemon, rule):
            """Of the one bucket, over all hosts, as this one is told."""
            bucket = ctl_json("buckets", rule, "--global", daemon=daemon)["buckets"][0]
            assert bucket["limit"] == RULES[rule][2]
            return bucket["limit"] - bucket["remaining"]

        for rule, tokens in sums.items():
            for daemon in daemons:
                wait_until(lambda d=daemon, r=rule, n=tokens: used(d, r) == n, COUNTED_DEADLINE_S,
                           f"{rule} has used {tokens}")
