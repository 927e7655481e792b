"""The wall clock jumps by two hours each second, forth and back, under daemon and clients."""

import os
import time

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


CALENDAR = """
redis:
  addresses: [{address}]
  username: sluice
  password: of-the-tests
  mode: single
rules:
  - name: daily
    key: [user]
    algorithm: fixed_window
    limit: 30/day
    calendar: {{anchor_time: "{anchor}"}}
"""


@pytest.mark.timeout_s(120)
def test_a_day_by_the_calendar_stays_the_same_for_two_hosts_of_which_one_clock_jumps():
    # Half a day from now, so that an hour forth and back stays within a day.
    anchor = time.strftime("%H:00", time.gmtime(time.time() + 12 * 3600))
    with RedisServer() as redis:
        config = CALENDAR.format(address=redis.address, anchor=anchor)
        with Daemon(config, env=JUMPS) as jumping, Daemon(config) as steady:
            for daemon in (jumping, steady):
                daemon.wait_for(lambda d=daemon: d.status()["mode"] == "healthy", 30, "healthy")
            with Load(jumping, 200, 8, env=JUMPS, user="ann") as one, \
                    Load(steady, 200, 8, user="ann") as two:
                for load in (one, two):
                    reports, _ = load.finish()
                    first = next(n for n, r in enumerate(reports) if r["denied"])
                    assert len(reports[first:]) > 40
                    assert sum(r["allowed"] for r in reports[first + 10:]) == 0, "nothing comes anew"
            fields = [redis.call("HGET", key, "daily:ann") for key in redis.call("KEYS", "rl:*")]
            stop, used, _ = (int(word) for word in next(filter(None, fields)).split()[-3:])
            assert 30 <= used <= 60, "at most what each admitted before it heard of the other"
            assert stop % 86_400_000_000 == int(anchor[:2]) * 3_600_000_000, "the instant itself"
