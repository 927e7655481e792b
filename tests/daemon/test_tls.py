"""The daemon under TLS to a real server: it reconciles, and its tools look there under TLS too."""

import json

import pytest

from harness.certificates import Authority
from harness.processes import wait_until
from harness.redis_cluster import PASSWORD, USER, RedisServer, free_port
from harness.sluice import Daemon, ctl

DEADLINE_S = 20.0


@pytest.fixture(name="authority")
def fixture_authority():
    with Authority() as authority:
        authority.issue("server")
        yield authority


def test_use_is_counted_and_listed_under_tls_alone(authority):
    port = free_port()
    tls = {"tls-port": port, "tls-cert-file": authority.path("server.pem"),
           "tls-key-file": authority.path("server.key"),
           "tls-ca-cert-file": authority.path("ca.pem"), "tls-auth-clients": "no"}
    with RedisServer(config=tls) as redis, Daemon(
            f"redis:\n  addresses: ['127.0.0.1:{port}']\n  mode: single\n  username: {USER}\n"
            f"  password: {PASSWORD}\n  tls: {{ca_file: {authority.path('ca.pem')}}}\n"
            "rules:\n  - {name: per-user, key: [user], limit: 5 per 30d, burst: 5}\n") as daemon:
        wait_until(lambda: daemon.status()["mode"] == "healthy", DEADLINE_S, "healthy")
        ctl("check", "user=ann", daemon=daemon)

        def listed():
            code, body = daemon.get("/buckets?scope=global")
            assert code == 200, body
            return [b["name"] for b in json.loads(body)["buckets"]]

        wait_until(lambda: listed() == ["per-user:ann"], DEADLINE_S, "it is counted in Redis")
        ours = [line for line in redis.call("CLIENT", "LIST").splitlines() if "user=sluice" in line]
        assert ours and all(f"laddr=127.0.0.1:{port}" in line for line in ours), ours
        assert daemon.status()["alarms"] == []
