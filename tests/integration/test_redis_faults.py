"""A Redis that refuses: one clear alarm with its mend, emergency, and never a crash."""

import contextlib
import socket
import threading

import pytest

from harness.redis_cluster import RedisServer
from harness.sluice import Daemon, wait_until

RULES = """
rules:
  - {name: per-user, key: [user], limit: 10/s, when_degraded: {mode: open}}
"""


@contextlib.contextmanager
def daemon_for(redis_section):
    with Daemon("redis:\n" + redis_section + RULES) as daemon:
        yield daemon


def alarm_of(daemon, part):
    """Waits for an alarm whose id contains `part`, with emergency; returns it."""
    def find():
        status = daemon.status()
        return next((a for a in status["alarms"] if part in a["id"]), None)

    alarm = wait_until(find, 20, f"an alarm {part}")
    wait_until(lambda: daemon.metrics().sum("sluice_emergency") > 0, 20, "emergency")
    assert alarm["mend"], alarm
    assert daemon.process.running()
    return alarm


def test_a_wrong_password_is_an_alarm_with_its_mend():
    with RedisServer(password="right") as redis, daemon_for(
            f"  addresses: [{redis.address}]\n  mode: single\n  password: wrong\n") as daemon:
        alarm_of(daemon, "redis-")
        assert "wrong" not in daemon.log().replace("wrong password", "").replace(
            "wrong-password", "").replace("is wrong", "").replace("WRONGPASS", ""), \
            "the password is never logged"


def test_a_user_without_rights_is_an_alarm_with_its_mend():
    with RedisServer(acl=["user limited on >pw ~* +ping +hello +client +auth"]) as redis, daemon_for(
            f"  addresses: [{redis.address}]\n  mode: single\n  username: limited\n"
            "  password: pw\n") as daemon:
        alarm_of(daemon, "redis-")


def test_a_single_server_where_a_cluster_was_promised_is_an_alarm():
    with RedisServer() as redis, daemon_for(f"  addresses: [{redis.address}]\n") as daemon:
        assert "single" in alarm_of(daemon, "redis-")["mend"]


def test_a_wrong_address_is_an_alarm():
    with daemon_for("  addresses: ['127.0.0.1:1']\n") as daemon:
        alarm_of(daemon, "redis-")


def test_garbage_on_the_socket_is_an_alarm():
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.2)
    done = threading.Event()

    def serve():
        while not done.is_set():
            try:
                peer, _ = server.accept()
            except TimeoutError:
                continue
            with peer:
                with contextlib.suppress(OSError):
                    peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with daemon_for(f"  addresses: ['127.0.0.1:{server.getsockname()[1]}']\n"
                        "  mode: single\n") as daemon:
            alarm_of(daemon, "redis-")
    finally:
        done.set()
        thread.join()
        server.close()


def test_the_alarm_clears_when_redis_is_mended():
    with RedisServer(password="right") as redis, daemon_for(
            f"  addresses: [{redis.address}]\n  mode: single\n  password: wrong\n") as daemon:
        alarm_of(daemon, "redis-")
        redis.call("CONFIG", "SET", "requirepass", "wrong")
        wait_until(lambda: not daemon.status()["alarms"], 40, "no alarm is left")
        wait_until(lambda: daemon.metrics().sum("sluice_emergency") == 0, 40, "healthy")


@pytest.mark.timeout_s(60)
def test_without_a_redis_section_the_host_is_a_complete_limiter():
    with Daemon(RULES) as daemon:
        assert daemon.metrics().sum("sluice_emergency") == 0
        assert daemon.status()["alarms"] == []
