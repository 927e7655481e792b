"""The daemon under TLS to a real server: it reconciles, and its tools look there under TLS too."""

import json

import pytest

from harness.processes import run, wait_until
from harness.redis_cluster import PASSWORD, USER, RedisServer, free_port
from harness.sluice import Daemon, ctl

DEADLINE_S = 20.0


@pytest.fixture(name="certificates")
def fixture_certificates(tmp_path):
    """A folder with an authority (ca.pem) and a server's certificate for 127.0.0.1 (server.pem)."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    at = {name: str(tmp_path / name) for name in
          ("ca.pem", "ca.key", "server.pem", "server.key", "server.csr", "names")}
    (tmp_path / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    run(["openssl", "req", "-x509", *key, "-keyout", at["ca.key"], "-out", at["ca.pem"],
         "-days", "2", "-subj", "/CN=sluice test authority"], DEADLINE_S)
    run(["openssl", "req", "-new", *key, "-keyout", at["server.key"], "-out", at["server.csr"],
         "-subj", "/CN=server"], DEADLINE_S)
    run(["openssl", "x509", "-req", "-in", at["server.csr"], "-CA", at["ca.pem"], "-CAkey",
         at["ca.key"], "-CAcreateserial", "-days", "2", "-extfile", at["names"], "-out",
         at["server.pem"]], DEADLINE_S)
    return at


def test_use_is_counted_and_listed_under_tls_alone(certificates):
    port = free_port()
    tls = {"tls-port": port, "tls-cert-file": certificates["server.pem"],
           "tls-key-file": certificates["server.key"],
           "tls-ca-cert-file": certificates["ca.pem"], "tls-auth-clients": "no"}
    with RedisServer(config=tls) as redis, Daemon(
            f"redis:\n  addresses: ['127.0.0.1:{port}']\n  mode: single\n  username: {USER}\n"
            f"  password: {PASSWORD}\n  tls: {{ca_file: {certificates['ca.pem']}}}\n"
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
