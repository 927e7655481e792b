"""sluicectl chaos: faults on purpose do what their names say, within bounds, and end."""

import contextlib
import json
import os
import signal

import pytest

from harness.processes import Process
from harness.redis_cluster import RedisServer
from harness.sluice import Daemon, binary, ctl, wait_until
from harness.load import Load, counted

SUITE_TIMEOUT_S = 400
SUITE_WAITS = True
pytestmark = pytest.mark.timeout_s(120)

CONFIG = """
daemon: {{runtime_dir: '{{runtime_dir}}', chaos: {chaos}}}
redis: {{addresses: [{address}], mode: single, flush_interval: 20ms}}
rules:
  - {{name: per-user, key: [user], limit: 100000/s, when_degraded: {{mode: closed}}}}
  - {{name: per-ip, key: [ip], limit: 100000/s, when_degraded: {{mode: closed}}}}
"""


def config_of(redis, chaos):
    return CONFIG.format(address=redis.address, chaos=chaos)


@contextlib.contextmanager
def host(chaos="{allow: true}"):
    """A daemon that Redis has answered, and the Redis."""
    with RedisServer() as redis, Daemon(config_of(redis, chaos)) as daemon:
        ctl("check", "user=first", daemon=daemon, check=False)
        wait_until(lambda: daemon.status()["mode"] == "healthy", 20, "healthy")
        yield daemon, redis


class Chaos:
    """A running sluicectl chaos."""

    def __init__(self, daemon, *args):
        self.path = os.path.join(daemon.directory, f"chaos-{len(os.listdir(daemon.directory))}")
        self.process = Process([binary("sluicectl"), "chaos", *args, "--json", "--runtime-dir",
                                daemon.runtime_dir], self.path)

    def __enter__(self):
        wait_until(lambda: self.lines() or not self.process.running(), 20, "its first line")
        assert self.lines(), self.process.log_tail()
        return self

    def __exit__(self, *_):
        self.process.close()

    def lines(self):
        with open(self.path, encoding="utf-8") as file:
            return [json.loads(line) for line in file if line.startswith("{") and line[-1] == "\n"]


def is_calm(daemon):
    status = daemon.status()
    return (status["chaos"] is None and status["mode"] == "healthy" and
            not any(a["id"] == "chaos" for a in status["alarms"]) and
            daemon.metrics().value("sluice_chaos") == 0)


def test_it_is_off_unless_the_configuration_allows_it():
    with host(chaos="{}") as (daemon, _):
        refused = ctl("chaos", "redis-cut", "--for", "5s", daemon=daemon, check=False)
        assert refused.returncode == 2
        assert "daemon: {chaos: {allow: true}}" in refused.stderr
        assert is_calm(daemon)
    with Daemon("daemon: {runtime_dir: '{runtime_dir}', chaos: {allow: true}}\n"
                "rules: []\n") as alone:
        refused = ctl("chaos", "redis-cut", "--for", "5s", daemon=alone, check=False)
        assert refused.returncode == 2
        assert "no redis: section" in refused.stderr


@pytest.mark.parametrize("args, said", [
    (["redis-cut", "--for", "31s"], "for: write a duration from 1s to 30s"),
    (["redis-cut", "--for", "soon"], "for: write a duration"),
    (["redis-cut", "--for", "5s", "--share", "60%"], "share: write a percentage above 0, up to"),
    (["redis-cut", "--for", "5s", "--share", "0"], "share: write a percentage"),
    (["daemon-pause", "--for", "5s"], "max_share forbids it"),
    (["redis-delay", "--for", "5s", "--share", "10%"], "redis-delay needs a duration"),
    (["redis-delay", "1h", "--for", "5s", "--share", "10%"], "redis-delay: write a duration"),
    (["redis-cut", "5ms", "--for", "5s", "--share", "10%"], "takes no duration"),
    (["redis-burn", "--for", "5s"], "fault: write one of redis-delay, redis-error"),
    (["redis-cut", "--for", "5s", "--share", "9%", "--rules", "per-ip"], "cannot be kept to some"),
    (["emergency", "--for", "5s", "--share", "9%", "--rules", "nobody"], 'no rule "nobody"'),
])
def test_what_is_out_of_bounds_is_refused_with_its_mend(args, said, bounded):
    daemon = bounded
    refused = ctl("chaos", *args, daemon=daemon, check=False)
    assert refused.returncode == 2
    assert said in refused.stderr, refused.stderr
    assert is_calm(daemon)


@pytest.fixture(scope="module")
def bounded():
    with host(chaos="{allow: true, max_for: 30s, max_share: 0.5}") as (daemon, _):
        yield daemon


def test_rules_that_the_configuration_does_not_name_are_spared():
    with host(chaos="{allow: true, rules: [per-ip]}") as (daemon, _):
        for args, said in ((["redis-cut"], "allows some rules only"),
                           (["emergency", "--rules", "per-user"], 'does not have "per-user"')):
            refused = ctl("chaos", *args, "--for", "5s", daemon=daemon, check=False)
            assert refused.returncode == 2
            assert said in refused.stderr
        with Chaos(daemon, "emergency", "--for", "60s", "--rules", "per-ip"):
            assert ctl("check", "user=u", daemon=daemon, check=False).returncode == 0


def test_rules_need_a_shard_that_no_bucket_is_of():
    with RedisServer() as redis, Daemon(config_of(redis, "{allow: true}").replace(
            "mode: single,", "mode: single, shards: 4096,")) as daemon:
        refused = ctl("chaos", "emergency", "--for", "5s", "--rules", "per-ip", daemon=daemon,
                      check=False)
        assert refused.returncode == 2
        assert "with 4096 redis.shards none is left" in refused.stderr


def test_a_cut_is_an_emergency_that_ends_with_the_command():
    with host() as (daemon, redis):
        with Load(daemon, 500, 6, user="u") as load:
            with Chaos(daemon, "redis-cut", "--for", "100s") as chaos:
                wait_until(lambda: daemon.status()["mode"] == "emergency", 20, "emergency")
                assert daemon.metrics().value("sluice_chaos") == 1
                assert "redis-cut" in daemon.status()["chaos"]["text"]
                assert any(a["id"] == "chaos" for a in daemon.status()["alarms"])
                another = ctl("chaos", "redis-cut", "--for", "5s", daemon=daemon, check=False)
                assert another.returncode == 2 and "one is enough" in another.stderr
                wait_until(lambda: chaos.lines()[-1]["calls"] > 0, 20, "calls are touched")
                chaos.process.send(signal.SIGINT)
                wait_until(lambda: is_calm(daemon), 20, "calm again")
            load.finish()
        metrics = daemon.metrics()
        assert metrics.value("sluice_chaos_calls_total") > 0
        assert "alarm: an operator tests redis-cut on 100 % of calls" in daemon.log()
        assert "alarm cleared: an operator tests redis-cut" in daemon.log()
        wait_until(lambda: counted(redis) == daemon.metrics().value(
            "sluice_harvested_tokens_total"), 20, "all use is counted, once")


@pytest.mark.parametrize("fault", [["redis-delay", "40ms"], ["redis-delay", "2s"], ["redis-error"],
                                   ["clock-lag", "300ms"]])
def test_it_ends_at_its_time_and_no_use_is_lost_or_counted_twice(fault):
    with host() as (daemon, redis):
        share = [] if fault[0] == "clock-lag" else ["--share", "40%"]
        with Load(daemon, 500, 5, user="u", ip="192.0.2.1") as load:
            done = ctl("chaos", *fault, "--for", "3s", *share, daemon=daemon)
            assert done.stdout.endswith("over\n")
            load.finish()
        wait_until(lambda: is_calm(daemon), 20, "calm again")
        if fault[0] != "clock-lag":
            assert daemon.metrics().value("sluice_chaos_calls_total") > 0
        wait_until(lambda: counted(redis) == daemon.metrics().value(
            "sluice_harvested_tokens_total"), 20, "all use is counted, once")


def test_a_pause_is_seen_by_clients_and_restarts_nothing():
    with host() as (daemon, _):
        worker = daemon.worker_pid()
        with Load(daemon, 200, 8, user="u") as load:
            with Chaos(daemon, "daemon-pause", "--for", "4s") as chaos:
                assert chaos.process.wait(40) == 0
            wait_until(lambda: is_calm(daemon), 20, "calm again")
            reports, _ = load.finish()
        assert sum(r["emergency"] for r in reports) > 0, "the heartbeat stood still"
        assert reports[-1]["emergency"] == 0
        assert daemon.worker_pid() == worker


def test_an_emergency_can_be_kept_to_a_rule():
    with host() as (daemon, _):
        def answers():
            return [ctl("check", pair, daemon=daemon, check=False).returncode
                    for pair in ("user=u", "ip=192.0.2.1")]

        assert answers() == [0, 0]
        with Chaos(daemon, "emergency", "--for", "60s", "--rules", "per-ip"):
            wait_until(lambda: answers() == [0, 1], 20, "per-ip is closed, per-user is not")
            assert daemon.status()["mode"] == "healthy", "no shard is touched"
            wait_until(lambda: daemon.metrics().value(
                "sluice_degraded_checks_total", rule="per-ip") > 0, 20, "counted")
        wait_until(lambda: answers() == [0, 0], 20, "both are open again")


def test_a_share_of_the_shards_is_a_share():
    with host() as (daemon, _):
        with Chaos(daemon, "emergency", "--for", "60s", "--share", "25"):
            wait_until(lambda: daemon.status()["mode"] == "emergency", 20, "emergency")
            shards = daemon.status()["shards"]
            assert 8 <= shards["emergency"] <= 24, shards
        wait_until(lambda: is_calm(daemon), 20, "calm again")


def test_a_reload_that_forbids_it_ends_it():
    with host() as (daemon, redis):
        with Chaos(daemon, "redis-cut", "--for", "100s") as chaos:
            wait_until(lambda: daemon.status()["mode"] == "emergency", 20, "emergency")
            daemon.reload(config_of(redis, "{allow: false}"))
            assert chaos.process.wait(20) == 0
            wait_until(lambda: is_calm(daemon), 20, "calm again")


def test_a_daemon_that_stops_meanwhile_tells_redis_all_the_same():
    with host() as (daemon, redis):
        with Chaos(daemon, "redis-cut", "--for", "100s"):
            for _ in range(20):
                ctl("check", "user=u", daemon=daemon, check=False)
            before = counted(redis)
            daemon.stop()
        assert counted(redis) > before
