"""Candidates with real daemons, clients and Redis: what is shown, what is reconciled, promotion."""

import json
import os

import pytest

from harness.redis_cluster import RedisServer
from harness.sluice import Daemon, ctl, ctl_json, wait_until

RULES = """
rules:
  - name: per-user
    key: [user]
    limit: {live}     # kept
    burst: 30
{candidate}
    tiers:
      paid: {{limit: 100 per 100h, candidate: {{limit: 12 per 100h}}}}
"""
REDIS = """
redis:
  mode: single
  addresses: ["{address}"]
  host_name: {host}
"""
CANDIDATE = "    candidate: {limit: 10 per 100h, burst: 10}"
LIVE = "30 per 100h"
# User, and how many requests: some stay below both limits, some pass one, some both.
STREAM = [("a", 5), ("b", 20), ("c", 40), ("a", 7), ("b", 3), ("d", 10)]


def send(daemon, **more):
    """The recorded stream; how many each user was allowed."""
    allowed = {}
    for user, count in STREAM:
        words = [f"user={user}", *(f"{k}={v}" for k, v in more.items())]
        answer = json.loads(ctl("check", *words, "--count", str(count), "--json", daemon=daemon,
                                check=False).stdout)
        allowed[user] = allowed.get(user, 0) + answer["checks_allowed"]
    return allowed


def rule_of(daemon, label="per-user"):
    rules = ctl_json("rules", daemon=daemon)["rules"]
    assert [r["label"] for r in rules] == ["per-user@paid", "per-user"]
    return next(r for r in rules if r["label"] == label)


def test_a_host_counts_what_a_replay_with_the_candidate_in_force_denies():
    with Daemon(RULES.format(live=LIVE, candidate=CANDIDATE), name="tried") as tried, \
            Daemon(RULES.format(live=LIVE, candidate=""), name="plain") as plain, \
            Daemon(RULES.format(live="10 per 100h", candidate="").replace("burst: 30", "burst: 10"),
                   name="replay") as replay:
        allowed = send(tried)
        assert allowed == send(plain)
        assert allowed == {"a": 12, "b": 23, "c": 30, "d": 10}
        replayed = send(replay)
        requests = sum(count for _, count in STREAM)
        denied = requests - sum(allowed.values())
        would_deny = requests - sum(replayed.values())
        tried.wait_for(lambda: rule_of(tried)["denied"] == denied and
                       rule_of(tried)["candidate"]["would_deny"] == would_deny, 10, "the counts")
        candidate = rule_of(tried)["candidate"]
        assert candidate["would_allow"] == sum(replayed.values())
        assert rule_of(plain)["candidate"] is None
        text = ctl("rules", daemon=tried).stdout
        assert f"candidate 10 per 4.2 d burst 10 would deny {would_deny}, not {denied}" in text
        samples = tried.metrics()
        assert samples.value("sluice_checks_total", rule="per-user?candidate",
                             result="denied") == would_deny


def test_a_candidate_is_promoted_and_comes_back():
    with Daemon(RULES.format(live=LIVE, candidate=CANDIDATE)) as daemon:
        path = ctl_json("status", daemon=daemon)["config"]["path"]
        with open(path, encoding="utf-8") as file:
            before = file.read()
        mode = os.stat(path).st_mode

        def promote(*words, check=True):
            return ctl("promote", *words, daemon=daemon, check=check)

        said = promote("per-user", "--dry-run").stdout
        assert "would have limit 10 per 4d4h, burst 10" in said, said
        with open(path, encoding="utf-8") as file:
            assert file.read() == before
        assert "the way back: sluicectl promote per-user" in promote("per-user").stdout
        live = rule_of(daemon)
        assert (live["limit"], live["burst"]) == (10, 10)
        assert (live["candidate"]["limit"], live["candidate"]["burst"]) == (30, 30)
        assert rule_of(daemon, "per-user@paid")["limit"] == 100
        with open(path, encoding="utf-8") as file:
            after = file.read()
        assert "limit: 10 per 100h     # kept\n    burst: 10\n" in after
        assert os.stat(path).st_mode == mode
        assert send(daemon)["c"] == 10
        promote("per-user@paid")
        assert rule_of(daemon, "per-user@paid")["limit"] == 12
        promote("per-user@paid")
        promote("per-user")
        assert rule_of(daemon)["limit"] == 30
        with open(path, encoding="utf-8") as file:
            assert file.read() == before
        for label, word in (("nobody", "there is no limit"), ("per-user@free", "there is no limit")):
            refused = promote(label, check=False)
            assert refused.returncode == 2 and word in refused.stderr
        # What is not in force is not edited.
        with open(path, "a", encoding="utf-8") as file:
            file.write("rules: twice\n")
        refused = promote("per-user", check=False)
        assert refused.returncode == 2 and "is not what is in force" in refused.stderr


@pytest.fixture(name="server")
def _server():
    with RedisServer() as running:
        yield running


def test_two_hosts_share_a_candidate_as_they_share_a_limit(server):
    def config(host):
        return REDIS.format(address=server.address, host=host) + \
            RULES.format(live=LIVE, candidate=CANDIDATE)

    with Daemon(config("one"), name="one") as one, Daemon(config("two"), name="two") as two:
        for daemon in (one, two):
            daemon.wait_for(lambda d=daemon: d.metrics().sum("sluice_redis_connected") >= 1, 30,
                            "connected")
        send(one)

        def known(daemon, name):
            buckets = ctl_json("buckets", name, daemon=daemon)["buckets"]
            return buckets and buckets[0]["remaining"]

        wait_until(lambda: any(
            b["name"] == "per-user?candidate:c" and b["tokens"] == 10 for b in
            ctl_json("buckets", "--global", "per-user?candidate", daemon=two)["buckets"]), 20, "Redis counts the candidate's use")
        # The other host hears of it with its first request's reply, and would deny from then on.
        ctl("check", "user=c", daemon=two, check=False)
        wait_until(lambda: known(two, "per-user?candidate:c") == 0, 20, "the other host knows")
        before = rule_of(two)["candidate"]["would_deny"]
        ctl("check", "user=c", "--count", "4", daemon=two, check=False)
        wait_until(lambda: rule_of(two)["candidate"]["would_deny"] == before + 4, 20,
                   "it would deny")
