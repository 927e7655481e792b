"""The wall clock jumps by two hours each second, forth and back, under daemon and clients."""

import os

import pytest

from harness.redis_cluster import RedisServer
from harness.sluice import Daemon, build_dir, wait_until

from harness.load import Load

JUMPS = {"LD_PRELOAD": os.path.join(build_dir(), "tests", "support", "wall_clock_jumps.so")}

CONFIG = """
redis:
  addresses: [{address}]
  username: sluice
  password: of-the-tests
  mode: single
rules:
  - {{name: hourly, key: [user], limit: 3 per 1h, burst: 3}}
"""


# aeron: heartbeats in wall-clock time read as death when it is set, here as an emergency.
@pytest.mark.timeout_s(90)
def test_neither_heartbeats_nor_buckets_follow_the_wall_clock():
    with RedisServer() as redis, Daemon(CONFIG.format(address=redis.address), env=JUMPS) as daemon:
        wait_until(lambda: daemon.status()["mode"] == "healthy", 30, "healthy")
        with Load(daemon, 500, 6, env=JUMPS, user="ann") as load:
            reports, _ = load.finish()
        # What came before it was attached is allowed by default.
        first = next(n for n, r in enumerate(reports) if r["denied"])
        later = reports[first + 1:]
        assert len(later) > 40
        assert sum(r["emergency"] for r in reports) == 0, "nobody was taken for dead"
        assert sum(r["allowed"] for r in later) == 0, "an hour's token does not come in seconds"
        assert daemon.status()["mode"] == "healthy" and daemon.status()["alarms"] == []
