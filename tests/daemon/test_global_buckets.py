"""The fleet's buckets, read from a real cluster over the admin socket."""

import json

import pytest

from harness.redis_cluster import RedisCluster
from harness.sluice import START_DEADLINE_S, Daemon, ctl

# A first batch needs the map of the cluster, a connection and a flush interval.
COUNTED_DEADLINE_S = 20.0

CONFIG = """
redis:
  addresses: [{addresses}]
  username: sluice
  password: of-the-tests
rules:
  - name: per-user
    key: [user]
    limit: 5 per 30d
    burst: 5
"""


@pytest.fixture(name="cluster", scope="module")
def _cluster():
    with RedisCluster(password="sesame") as cluster:
        yield cluster


def listed(daemon, query=""):
    code, body = daemon.get("/buckets?scope=global" + query)
    assert code == 200, body
    return json.loads(body)


def check(daemon, user, times):
    for _ in range(times):
        ctl("check", f"user={user}", daemon=daemon, check=False)


def test_buckets_of_all_shards_are_listed_with_their_state(cluster):
    with Daemon(CONFIG.format(addresses=", ".join(cluster.addresses()))) as daemon:
        users = [f"u{n}" for n in range(12)] + ["[*]?"]
        for user in users:
            check(daemon, user, 1)
        check(daemon, "u3", 2)
        names = {f"per-user:{user}" for user in users}
        daemon.wait_for(lambda: {b["name"] for b in listed(daemon)["buckets"]} == names
                        and listed(daemon, "&prefix=per-user:u3")["buckets"][0]["tokens"] == 3,
                        COUNTED_DEADLINE_S, "all are counted in Redis")
        answer = listed(daemon)
        assert answer["scope"] == "global" and not answer["truncated"]
        assert answer["unreachable_shards"] == 0
        assert len({b["shard"] for b in answer["buckets"]}) > 3
        one = listed(daemon, "&prefix=per-user:u3")["buckets"]
        assert [b["name"] for b in one] == ["per-user:u3"]
        assert one[0]["remaining"] == 2 and one[0]["rule"] == "per-user"
        # A prefix is a prefix, whatever characters are in it.
        odd = listed(daemon, "&prefix=per-user:%5B%2A%5D")["buckets"]
        assert [b["name"] for b in odd] == ["per-user:[*]?"]
        assert len(listed(daemon, "&limit=4")["buckets"]) == 4
        assert listed(daemon, "&limit=4")["truncated"]


STRICT = """  - name: lent
    key: [user]
    limit: 100/s
    burst: 50
    consistency: strict
"""


def test_strict_buckets_tell_what_is_out_and_what_this_host_holds(cluster):
    with Daemon(CONFIG.format(addresses=", ".join(cluster.addresses())) + STRICT) as daemon:
        def asked():
            check(daemon, "s1", 1)
            found = listed(daemon, "&prefix=lent:s1")["buckets"]
            return found and found[0]["hosts"] == 1 and found[0]["demand_per_s"] > 0

        daemon.wait_for(asked, COUNTED_DEADLINE_S, "it is known in Redis")
        (bucket,) = listed(daemon, "&prefix=lent:s1")["buckets"]
        assert bucket["consistency"] == "strict" and bucket["burst"] == 50
        assert bucket["remaining"] + bucket["out_tokens"] <= 50
        assert "tokens" not in bucket
        text = ctl("buckets", "--global", "lent:s1", daemon=daemon).stdout
        assert " out at 1 hosts" in text, text
        (local,) = json.loads(daemon.get("/buckets?prefix=lent:s1")[1])["buckets"]
        assert local["consistency"] == "strict"
        assert (local["held_for_s"] > 0) == (local["remaining"] > 0)
        assert "strict: " in ctl("buckets", "lent:s1", daemon=daemon).stdout
        daemon.wait_for(lambda: daemon.status()["leases"]["buckets"] == 1
                        and daemon.metrics().value("sluice_lease_calls_total") >= 1,
                        COUNTED_DEADLINE_S, "it is counted")
        assert "leases   " in ctl("status", daemon=daemon).stdout

        # Both kinds are listed, each once; the other rule's once a check was allowed.
        def both():
            check(daemon, "s1", 1)
            return sorted(b["name"] for b in listed(daemon)["buckets"]
                          if b["name"].endswith(":s1")) == ["lent:s1", "per-user:s1"]

        daemon.wait_for(both, COUNTED_DEADLINE_S, "both are known")


def test_without_an_answering_primary_it_says_so():
    with Daemon(CONFIG.format(addresses='"127.0.0.1:1"')) as daemon:
        code, body = daemon.get("/buckets?scope=global")
        assert code == 503
        assert "127.0.0.1:1" in json.loads(body)["error"]
        # The daemon itself is not held up by it.
        daemon.wait_for(lambda: daemon.status()["mode"] == "emergency", START_DEADLINE_S,
                        "emergency")
