"""Costs by outcome over two hosts and a real Redis: what is counted is the sum of the outcomes."""

import contextlib
import json
import os

import pytest

from harness.load import connected_hosts, counted, redis_words
from harness.processes import run
from harness.redis_cluster import RedisServer
from harness.sluice import build_dir, ctl_json, wait_until

REQUESTS = 3000
TOKENS = {200: 1, 201: 1, 401: 5, 404: 0, 429: 2, 500: 0, 503: 0}
COUNTED_DEADLINE_S = 20

# Neither gives anything back by time while the test runs.
CONFIG = """
redis:
  mode: {mode}
  addresses: [{addresses}]
  username: sluice
  password: of-the-tests
  host_name: {host}
rules:
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
"""


def serve(daemon, route, seed):
    """Requests that end in random ways; what they cost in the end."""
    program = os.path.join(build_dir(), "tests", "integration", "report_outcomes")
    done = run([program, daemon.runtime_dir, REQUESTS, seed, f"route={route}", "tenant=acme"], 60)
    end = json.loads(done.stdout)
    print(route, end)
    assert end["denied"] == 0
    named = {int(status): n for status, n in end["ended"].items()}
    assert end["unreported"] == named[200] + named[201], "no outcome speaks of these"
    return sum(TOKENS[status] * n for status, n in named.items())


@pytest.mark.timeout_s(180)
def test_use_after_all_reports_is_the_sum_of_the_outcomes():
    with RedisServer() as server, contextlib.ExitStack() as stack:
        daemons = stack.enter_context(connected_hosts(
            CONFIG.format(**redis_words(server), host=f"host-{n}") for n in range(2)))
        sums = {}
        for rule in ("bucket", "window"):
            sums[rule] = sum(serve(d, f"/{rule}", seed) for seed, d in enumerate(daemons, 1))
        total = sum(sums.values())
        wait_until(lambda: counted(server) == total, COUNTED_DEADLINE_S,
                   f"Redis has counted {total}, and says {counted(server)}")

        def used(daemon, rule):
            """Of the one bucket, over all hosts, as this one is told."""
            buckets = ctl_json("buckets", rule, "--global", daemon=daemon)["buckets"]
            return buckets[0]["limit"] - buckets[0]["remaining"]

        for rule, tokens in sums.items():
            for daemon in daemons:
                wait_until(lambda d=daemon, r=rule, n=tokens: used(d, r) == n, COUNTED_DEADLINE_S,
                           f"{rule} has used {tokens}")
