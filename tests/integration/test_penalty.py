"""Penalties with real daemons, clients and Redis: a ban is told, lasts, is everywhere, and is lifted."""

import json

import pytest

from harness.redis_cluster import RedisServer
from harness.sluice import Daemon, ctl, ctl_json, wait_until

SECOND_NS = 1_000_000_000
RULES = """
rules:
  - name: login
    key: [user]
    limit: 5 per 10m
    penalty: {after: 10 per 1h, for: 1h}
  - name: short
    key: [ip]
    limit: 5/s
    burst: 5
    penalty: {after: 10 per 1h, for: 3s}
"""
REDIS = """
redis:
  mode: single
  addresses: ["{address}"]
  host_name: {host}
"""


def check(daemon, count=1, **descriptors):
    words = [f"{name}={value}" for name, value in descriptors.items()]
    return json.loads(ctl("check", *words, "--count", str(count), "--json", daemon=daemon,
                          check=False).stdout)


def banned_for(daemon, name, *words):
    buckets = ctl_json("buckets", name, *words, daemon=daemon)["buckets"]
    return next((b.get("banned_for_s", 0) for b in buckets if b["name"] == name), 0)


def wait_banned(daemon, name, *words):
    wait_until(lambda: banned_for(daemon, name, *words) > 0, 20, f"{name} is banned")


def test_a_ban_is_told_everywhere_and_survives_the_worker():
    with Daemon(RULES) as daemon:
        answer = check(daemon, 14, user="a")
        assert answer["checks_allowed"] == 5
        assert not answer["banned"]
        assert banned_for(daemon, "login:a") == 0, "nine denials are one too few"
        check(daemon, user="a")
        wait_banned(daemon, "login:a")
        answer = check(daemon, user="a")
        assert answer["banned"] and not answer["allowed"]
        # The whole time: the limit alone would have it wait for two minutes.
        assert 1800 * SECOND_NS < answer["retry_after_ns"] <= 3601 * SECOND_NS
        assert int(answer["fields"]["Retry-After"]) * SECOND_NS >= answer["retry_after_ns"]
        wait_until(lambda: daemon.metrics().value("sluice_bans_total", rule="login") == 1, 20,
                   "it is counted")
        assert "banned for another" in ctl("buckets", "login:a", daemon=daemon).stdout
        wait_until(lambda: "login:a is banned for 1h: too many denials" in
                   daemon.process.log_tail(), 20, "a line in the log")
        assert "after 10 denials in" in ctl("rules", daemon=daemon).stdout

        daemon.kill_worker()
        daemon.wait_for(lambda: daemon.get("/status")[0] == 200, 20, "another worker")
        answer = check(daemon, user="a")
        assert answer["banned"] and answer["retry_after_ns"] > 1800 * SECOND_NS
        assert check(daemon, user="b")["allowed"]

        said = ctl("unban", "login:a", daemon=daemon).stdout
        assert "on this host now" in said and "each other" not in said
        wait_until(lambda: banned_for(daemon, "login:a") == 0, 20, "it is lifted")
        assert check(daemon, 5, user="a")["checks_allowed"] == 5
        refused = ctl("unban", "nobody:a", daemon=daemon, check=False)
        assert refused.returncode == 2 and "penalty" in refused.stderr
        nameless = ctl("unban", "login", daemon=daemon, check=False)
        assert nameless.returncode == 2 and "0 of the rule's key, which has 1" in nameless.stderr


def test_a_ban_ends_by_itself():
    with Daemon(RULES) as daemon:
        check(daemon, 30, ip="192.0.2.1")
        wait_banned(daemon, "short:192.0.2.1")
        assert not check(daemon, ip="192.0.2.1")["allowed"]
        wait_until(lambda: check(daemon, ip="192.0.2.1")["allowed"], 20, "it is over")
        wait_until(lambda: not check(daemon, ip="192.0.2.1")["banned"], 20, "and not shown any more")


@pytest.fixture(name="server")
def _server():
    with RedisServer() as running:
        yield running


def test_denials_of_two_hosts_add_up_and_both_ban(server):
    def config(host):
        return REDIS.format(address=server.address, host=host) + RULES

    with Daemon(config("one"), name="one") as one, Daemon(config("two"), name="two") as two:
        for daemon in (one, two):
            daemon.wait_for(lambda d=daemon: d.metrics().sum("sluice_redis_connected") >= 1, 30,
                            "connected")
        # Eight are denied here and three there: neither has enough.
        check(one, 13, user="a")
        wait_until(lambda: any(b["name"] == "login:a" for b in
                               ctl_json("buckets", "--global", daemon=one)["buckets"]), 20, "known")
        check(two, user="a")
        wait_until(lambda: not check(two, user="a")["allowed"], 20, "the other host knows")
        check(two, 3, user="a")
        wait_banned(two, "login:a")
        wait_banned(one, "login:a", "--global")
        check(one, user="a")
        wait_banned(one, "login:a")
        for daemon in (one, two):
            answer = check(daemon, user="a")
            assert answer["banned"]
            assert 1800 * SECOND_NS < answer["retry_after_ns"] < 3700 * SECOND_NS
        wait_until(lambda: sum(d.metrics().sum("sluice_bans_total") for d in (one, two)) == 1, 20,
                   "it is counted once")

        # Lifted by one host, for both.
        said = ctl("unban", "login:a", daemon=one).stdout
        assert "on each other with its next report" in said
        wait_until(lambda: banned_for(one, "login:a", "--global") == 0, 20, "Redis knows")
        wait_until(lambda: not check(two, user="a")["banned"], 20, "and so does the other host")
