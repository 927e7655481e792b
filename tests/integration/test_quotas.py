"""A month's quota on a real cluster that loses all its data, and on hosts that lose theirs too."""

import contextlib

import pytest

from harness.redis_cluster import RedisCluster
from harness.sluice import Daemon, ctl, ctl_json

SUITE_TIMEOUT_S = 300
COUNTED_DEADLINE_S = 20.0
LIMIT = 300

CONFIG = """
daemon: {{runtime_dir: "{{runtime_dir}}", checkpoints: {checkpoints}}}
redis:
  addresses: [{addresses}]
  username: sluice
  password: of-the-tests
rules:
  - name: monthly
    key: [user]
    algorithm: fixed_window
    limit: 300/month
    calendar: {{}}
"""
ALONE = """
daemon: {{runtime_dir: "{{runtime_dir}}", checkpoints: {checkpoints}}}
rules:
  - {{name: monthly, key: [user], algorithm: fixed_window, limit: 300/month, calendar: {{}}}}
"""


@pytest.fixture(name="cluster", scope="module")
def _cluster():
    with RedisCluster() as running:
        yield running


def spend(daemon, user, tokens):
    """Tokens that were admitted, one by one."""
    return sum(ctl("check", f"user={user}", daemon=daemon, check=False).returncode == 0
               for _ in range(tokens))


def counted(cluster):
    """{user: tokens} of the open window in Redis."""
    return {name.split(":")[1]: int(value.split()[8])
            for fields in cluster.hgetall_all().values()
            for name, value in fields.items() if name.startswith("monthly:")}


def lose_everything(cluster):
    for node in cluster.primaries():
        with node.connect() as connection:
            connection.call("FLUSHALL")
    assert not counted(cluster)


def host(config, name, checkpoints, cluster=None):
    addresses = ", ".join(cluster.addresses()) if cluster else ""
    return Daemon(config.format(addresses=addresses, checkpoints=checkpoints), name=name)


def remaining(daemon, user):
    return ctl_json("buckets", f"monthly:{user}", daemon=daemon)["buckets"][0]["remaining"]


@pytest.mark.timeout_s(120)
def test_a_redis_that_lost_its_data_is_told_again_also_of_who_is_idle(cluster, tmp_path):
    with contextlib.ExitStack() as stack:
        hosts = [stack.enter_context(host(CONFIG, f"host-{n}", tmp_path / f"{n}.db", cluster))
                 for n in range(2)]
        for daemon in hosts:
            assert spend(daemon, "ann", 40) == 40
            assert spend(daemon, "idle", 10) == 10
        hosts[0].wait_for(lambda: counted(cluster) == {"ann": 80, "idle": 20}, COUNTED_DEADLINE_S,
                          "all is counted")
        lose_everything(cluster)
        # The loss is seen by whoever reports next; what was told of idle is told again unasked.
        def restored():
            for daemon in hosts:
                spend(daemon, "ann", 1)
            now = counted(cluster)
            return now.get("ann", 0) >= 80 and now.get("idle", 0) >= 20
        hosts[0].wait_for(restored, COUNTED_DEADLINE_S, "both are there again")
        assert counted(cluster)["idle"] <= 40, "what was sent again of the last two seconds"


@pytest.mark.timeout_s(120)
def test_a_new_host_and_a_new_redis_find_the_quota_in_the_file(cluster, tmp_path):
    lose_everything(cluster)
    file = tmp_path / "quotas.db"
    with host(CONFIG, "before", file, cluster) as daemon:
        assert spend(daemon, "bob", 200) == 200
        daemon.wait_for(lambda: counted(cluster).get("bob") == 200, COUNTED_DEADLINE_S, "counted")
        assert daemon.stop() == 0
    lose_everything(cluster)
    with host(CONFIG, "after", file, cluster) as daemon:
        admitted = spend(daemon, "bob", 150)
        assert 95 <= admitted <= 105, "but for what came before the daemon had looked"
        daemon.wait_for(lambda: counted(cluster).get("bob", 0) >= 295, COUNTED_DEADLINE_S,
                        "Redis has it again")


@pytest.mark.timeout_s(60)
def test_a_host_without_redis_keeps_its_quotas_over_a_kill(tmp_path):
    file = tmp_path / "quotas.db"
    with host(ALONE, "before", file) as daemon:
        assert spend(daemon, "eve", 250) == 250
        assert daemon.stop() == 0
    with host(ALONE, "after", file) as daemon:
        assert spend(daemon, "eve", 1) == 1
        daemon.wait_for(lambda: remaining(daemon, "eve") <= 51, COUNTED_DEADLINE_S, "it is found")
        assert spend(daemon, "eve", 100) <= 51


def test_a_file_in_a_folder_that_is_not_there_stops_the_start_with_its_mend(tmp_path):
    config = ALONE.format(checkpoints=tmp_path / "none" / "quotas.db")
    with Daemon(config, wait=False) as daemon:
        assert daemon.process.wait(20) != 0
        assert f"daemon.checkpoints {tmp_path}/none/quotas.db: unable to open database file; " \
               "name a file in a folder that the daemon's user can write to" in daemon.log()
