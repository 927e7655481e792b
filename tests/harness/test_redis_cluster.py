"""The harness itself, against real servers: what it says of a cluster must be true."""

import os
import shutil
import time

import pytest

from harness import redis_cluster, resp
from harness.processes import Process, Timeout, is_running, wait_until
from harness.redis_cluster import BUS_OFFSET, RedisCluster, RedisServer, free_port

FAILOVER_DEADLINE_S = 30.0


@pytest.fixture(name="cluster")
def fixture_cluster():
    with RedisCluster() as cluster:
        yield cluster


def test_a_new_cluster_is_whole_and_serves_every_slot(cluster):
    assert len(cluster.primaries()) == 3
    assert len(cluster.replicas()) == 3
    assert cluster.unhealthy() == ""
    for key in ("a", "b", "c", "rl:{001}"):
        assert cluster.primary_for(key).call("SET", key, "1") == "OK"


def test_a_replica_takes_over_from_a_killed_primary_and_keeps_its_keys(cluster):
    lost = cluster.primaries()[0]
    key = next(f"rl:{{{n:03d}}}" for n in range(1000)
               if cluster.primary_for(f"rl:{{{n:03d}}}") is lost)
    with lost.connect() as connection:
        # WAIT is about the writes of its own connection.
        connection.call("HSET", key, "acme:v1", "42")
        assert connection.call("WAIT", 1, 5000) == 1
    assert cluster.hgetall_all() == {key: {"acme:v1": "42"}}

    assert cluster.kill_primary(0) is lost
    assert not lost.running()
    primaries = cluster.wait_failover(lost, FAILOVER_DEADLINE_S)
    assert lost not in primaries and len(primaries) == 3
    assert cluster.primary_for(key) is not lost
    assert cluster.hgetall_all() == {key: {"acme:v1": "42"}}

    lost.restart()
    cluster.wait_healthy()
    assert lost in cluster.replicas()


def test_a_paused_primary_does_not_answer_until_it_is_resumed(cluster):
    paused = cluster.pause_primary(1)
    with pytest.raises(OSError):
        with paused.connect(timeout_s=0.3) as connection:
            connection.call("PING")
    paused.resume()
    wait_until(lambda: paused.call("PING") == "PONG", 10.0, "answers after SIGCONT")


def test_close_ends_every_server_and_removes_its_folder():
    cluster = RedisCluster(primaries=3, replicas=0)
    pids = [node.pid for node in cluster.nodes]
    cluster.close()
    cluster.close()
    assert not any(is_running(pid) for pid in pids)
    assert not os.path.exists(cluster.directory)


def test_a_cluster_behind_a_password_refuses_those_without_it():
    with RedisCluster(primaries=3, replicas=0, password="s3cret") as cluster:
        node = cluster.primaries()[0]
        with pytest.raises(resp.RespError, match="NOAUTH"):
            resp.Connection(node.port).call("PING")
        assert node.call("PING") == "PONG"


def test_an_acl_user_may_do_only_what_its_line_says():
    with RedisServer(acl=["user sluice on >pw ~rl:* +hset +hgetall"]) as server:
        with server.connect(user="sluice", password="pw") as connection:
            assert connection.call("HSET", "rl:{0}", "a", "1") == 1
            with pytest.raises(resp.RespError, match="NOPERM"):
                connection.call("HSET", "other", "a", "1")
            with pytest.raises(resp.RespError, match="NOPERM"):
                connection.call("FLUSHALL")


def test_a_server_that_cannot_start_is_an_error_with_its_own_words():
    with pytest.raises(AssertionError, match="not-a-setting"):
        RedisServer(config={"not-a-setting": 1})


def test_a_port_taken_between_choice_and_bind_is_tried_again(monkeypatch):
    with RedisServer() as first:
        ports = [first.port, free_port()]
        monkeypatch.setattr(redis_cluster, "free_port", lambda: ports.pop(0))
        with RedisServer() as second:
            assert second.port != first.port
            assert second.call("PING") == first.call("PING") == "PONG"


def test_ports_leave_room_for_the_cluster_bus():
    port = free_port()
    assert port + BUS_OFFSET < 32768


def test_servers_die_with_a_killed_test_run(tmp_path):
    script = tmp_path / "owner.py"
    script.write_text(
        "import sys, time\n"
        f"sys.path.insert(0, {os.path.dirname(os.path.dirname(os.path.abspath(__file__)))!r})\n"
        "from harness.redis_cluster import RedisServer\n"
        "server = RedisServer()\n"
        "print(server.pid, server.directory, flush=True)\n"
        "time.sleep(600)\n")
    with Process(["/usr/bin/python3", script], tmp_path / "owner.log") as owner:
        words = owner.wait_for(lambda: owner.log().split(), 20.0, "it prints its server's pid")
        server = int(words[0])
        assert is_running(server)
        owner.kill()
        # A zombie is dead too; who collects it is not ours to say.
        wait_until(lambda: not is_running(server), 10.0, "the server died with its owner")
    shutil.rmtree(words[1])


def test_waiting_has_an_end():
    started = time.monotonic()
    with pytest.raises(Timeout, match="a pig that flies"):
        wait_until(lambda: False, 0.05, "a pig that flies")
    assert time.monotonic() >= started + 0.05


def test_a_process_that_ends_early_fails_the_wait_with_its_log(tmp_path):
    with Process(["sh", "-c", "echo last words; exit 3"], tmp_path / "log") as process:
        with pytest.raises(AssertionError, match="(?s)ended with 3.*last words"):
            process.wait_for(lambda: False, 20.0, "never")
