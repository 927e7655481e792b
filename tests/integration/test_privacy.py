"""Private keys with real processes: no address in Redis, log, pages or metrics, and a change of the
secrets, host by host, that forgets nothing."""

import contextlib
import json
import os

import pytest

from harness.redis_cluster import RedisCluster
from harness.sluice import Daemon, ctl

SUITE_TIMEOUT_S = 300
COUNTED_DEADLINE_S = 20.0
OLD = "old 000102030405060708090a0b0c0d0e0f\n"
NEW = "new 101112131415161718191a1b1c1d1e1f\n"

CONFIG = """
daemon: {{runtime_dir: "{{runtime_dir}}", log_level: debug}}
redis:
  addresses: [{addresses}]
  username: sluice
  password: of-the-tests
  host_name: {host}
privacy: {{keys_file: {keys}}}
rules:
  - name: per-ip
    key: [{{ip: {{private: true}}}}]
    match: {{route: /ip}}
    limit: 20 per 30d
    near: 0.1
  - name: window
    key: [{{ip: {{private: true}}}}]
    match: {{route: /window}}
    algorithm: fixed_window
    limit: 20 per 30d
  - name: lent
    key: [tenant, {{ip: {{private: true}}}}]
    match: {{route: /lent}}
    limit: 100 per 100s
    consistency: strict
"""
ROUTES = {"/ip": "per-ip", "/window": "window", "/lent": "lent"}
ADDRESSES = ["203.0.113.77", "198.51.100.201", "2001:db8:cafe:77::1"]
# As they may be written out anywhere.
TRACES = ["203.0.113", "198.51.100", "2001:db8", "cafe:77", "%3Acafe"]


@pytest.fixture(name="cluster", scope="module")
def _cluster():
    with RedisCluster() as running:
        yield running


@contextlib.contextmanager
def two_hosts(cluster, folder):
    with contextlib.ExitStack() as stack:
        hosts = []
        for n in range(2):
            keys = folder / f"keys-{n}"
            keys.write_text(OLD)
            config = CONFIG.format(addresses=", ".join(cluster.addresses()), host=f"host-{n}",
                                   keys=keys)
            hosts.append((stack.enter_context(Daemon(config, name=f"host-{n}")), keys))
        for daemon, _ in hosts:
            daemon.wait_for(lambda d=daemon: d.metrics().sum("sluice_redis_connected") >= 3, 30,
                            "connected to every primary")
        yield hosts


def check(daemon, route, ip):
    return ctl("check", f"route={route}", "tenant=acme", f"ip={ip}", daemon=daemon, check=False)


def fields(cluster):
    """Names of buckets in Redis, by rule."""
    names = {}
    for entries in cluster.hgetall_all().values():
        for name in entries:
            rule = name.split(":")[0]
            if rule in ROUTES.values():
                names.setdefault(rule, set()).add(name)
    return names


def texts_of(daemon, cluster):
    """All that leaves the daemon."""
    yield "Redis", json.dumps(cluster.hgetall_all())
    yield "the log", daemon.log()
    for page in ("/metrics", "/status", "/buckets", "/buckets?scope=global", "/rules", "/config"):
        code, body = daemon.get(page)
        if code == 200:
            yield page, body


@pytest.mark.timeout_s(240)
def test_no_address_leaves_the_host_and_new_secrets_forget_nothing(cluster, tmp_path):
    with two_hosts(cluster, tmp_path) as hosts:
        (first, first_keys), (second, second_keys) = hosts
        for route in ROUTES:
            for ip in ADDRESSES:
                for _ in range(3):
                    check(first, route, ip)
                    check(second, route, ip)

        def all_counted():
            return all(len(fields(cluster).get(rule, ())) == len(ADDRESSES)
                       for rule in ROUTES.values())
        first.wait_for(all_counted, COUNTED_DEADLINE_S, "all buckets are in Redis, each once")
        for daemon, _ in hosts:
            assert "near its limit: per-ip:#old." in daemon.log()
            seen = dict(texts_of(daemon, cluster))
            assert {"Redis", "the log", "/metrics", "/buckets"} <= set(seen)
            for where, text in seen.items():
                for trace in TRACES:
                    assert trace not in text, f"{trace} in {where}"
        assert all(":#old." in name for names in fields(cluster).values() for name in names)

        # Who knows an address finds its bucket, and sees it as everybody else does.
        out = ctl("buckets", f"per-ip:{ADDRESSES[0]}", "--json", daemon=first).stdout
        found = json.loads(out)["buckets"]
        assert len(found) == 1 and found[0]["name"].startswith("per-ip:#old."), out
        assert found[0]["remaining"] <= 17

        # Both learn of the new secret, and then turn to it one after the other.
        def counts():
            return {b["name"].split(".")[1]: b["tokens"]
                    for b in json.loads(first.get("/buckets?scope=global&prefix=per-ip")[1])[
                        "buckets"]}
        first.wait_for(lambda: sorted(counts().values()) == [6, 6, 6], COUNTED_DEADLINE_S,
                       "all use is counted")
        for text in (OLD + NEW, NEW + OLD):
            for daemon, keys in ((first, first_keys), (second, second_keys)):
                keys.write_text(text)
                reloads = daemon.status()["config"]["reloads"]
                daemon.reload()
                daemon.wait_for(lambda d=daemon, n=reloads: d.status()["config"]["reloads"] > n,
                                10, "the file is read")
                for route in ROUTES:
                    check(daemon, route, ADDRESSES[0])
        first.wait_for(lambda: sorted(counts().values()) == [6, 6, 10], COUNTED_DEADLINE_S,
                       "what came before the change and after it is in one bucket")

        def turned():
            check(first, "/lent", ADDRESSES[0])  # a lease that is spent from is reported in time
            return [rule for rule, names in fields(cluster).items()
                    if sum(":#new." in name for name in names) == 1]
        first.wait_for(lambda: len(turned()) == len(ROUTES), COUNTED_DEADLINE_S,
                       "the buckets in use have their new names")
        assert all(len(names) == len(ADDRESSES) for names in fields(cluster).values())
        # Six of each host before, two after: of 20 a few are left, and not 20.
        allowed = sum(check(first, "/window", ADDRESSES[0]).returncode == 0 for _ in range(20))
        assert allowed <= 10


def test_a_file_of_secrets_that_cannot_be_used_changes_nothing(cluster, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(OLD)
    config = CONFIG.format(addresses=", ".join(cluster.addresses()), host="host-0", keys=keys)
    with Daemon(config) as daemon:
        keys.write_text("old 0001\n")
        daemon.reload()
        daemon.wait_for(lambda: f"privacy.keys_file {keys} line 1: the secret is not good"
                        in daemon.log(), 10, "the log names the place")
        assert "0001" not in daemon.log()
        os.unlink(keys)
        daemon.reload()
        daemon.wait_for(lambda: f"privacy.keys_file {keys} cannot be opened" in daemon.log(), 10,
                        "the log names the file")
        assert check(daemon, "/ip", ADDRESSES[0]).returncode == 0
