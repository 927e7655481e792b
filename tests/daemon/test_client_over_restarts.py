"""A client process that lives through what happens to its daemon, over the C ABI."""

import ctypes
import os
import signal

import pytest

from harness.processes import KILL_WAIT_S, is_running, wait_until
from harness.sluice import START_DEADLINE_S, Daemon, build_dir

RULES = """
rules:
  - name: per-user
    key: [user]
    limit: 5 per 30d
    burst: 5
"""
RESERVATION_BYTES = 4096  # more than it has


class Options(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_uint32), ("default_allowed", ctypes.c_int32),
                ("runtime_dir", ctypes.c_char_p), ("label", ctypes.c_char_p)]


class Info(ctypes.Structure):
    _fields_ = [("attached", ctypes.c_int32), ("daemon_alive", ctypes.c_int32),
                ("same_user", ctypes.c_int32), ("shards_emergency", ctypes.c_uint32),
                ("generation", ctypes.c_uint64), ("policy_seq", ctypes.c_uint64),
                ("attach_count", ctypes.c_uint64), ("message", ctypes.c_char * 160)]


class Descriptor(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("name_len", ctypes.c_size_t),
                ("value", ctypes.c_char_p), ("value_len", ctypes.c_size_t)]


class Client:
    """One attached process: this one."""

    def __init__(self, runtime_dir, default_allowed=1):
        self._lib = ctypes.CDLL(os.path.join(build_dir(), "client", "libsluice.so.0"))
        self._client = ctypes.c_void_p()
        options = Options(ctypes.sizeof(Options), default_allowed, runtime_dir.encode(), b"pytest")
        assert self._lib.sluice_open(ctypes.byref(options), ctypes.byref(self._client)) == 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._lib.sluice_close(self._client)

    def check(self, user):
        value = user.encode()
        one = Descriptor(b"user", 4, value, len(value))
        return self._lib.sluice_check(self._client, ctypes.byref(one), ctypes.c_size_t(1), 1, None)

    def reserve(self, user, estimate):
        """What was reserved, as bytes; an hour to settle it."""
        value = user.encode()
        one = Descriptor(b"user", 4, value, len(value))
        reservation = ctypes.create_string_buffer(RESERVATION_BYTES)
        assert self._lib.sluice_reserve(self._client, ctypes.byref(one), ctypes.c_size_t(1), estimate,
                                        ctypes.c_uint64(3_600_000_000_000), reservation) == 1
        return reservation

    def settle_reservation(self, reservation, actual):
        return self._lib.sluice_settle(self._client, reservation, actual)

    def info(self):
        info = Info()
        self._lib.sluice_get_info(self._client, ctypes.byref(info))
        return info

    def settle(self, predicate, what, user="other"):
        """Goes on checking, as a client does, until `predicate` of its info is true."""

        def look():
            self.check(user)
            return predicate(self.info())

        wait_until(look, START_DEADLINE_S, what)


@pytest.mark.parametrize("default", [0, 1])
def test_without_a_daemon_it_answers_by_its_default_and_attaches_by_itself(default):
    with Daemon(RULES) as daemon, Client(daemon.runtime_dir + "/none", default) as lost:
        assert [lost.check("ann") for _ in range(7)] == [default] * 7
        assert b"no sluiced" in lost.info().message and not lost.info().attached
    with Daemon(RULES, wait=False) as daemon, Client(daemon.runtime_dir, default) as early:
        assert early.check("ann") in (0, 1)
        early.settle(lambda info: info.attached, "attached")
        assert [early.check("ann") for _ in range(7)].count(1) in (4, 5)


def test_a_bucket_goes_on_over_the_kill_of_the_worker():
    with Daemon(RULES) as daemon, Client(daemon.runtime_dir) as client:
        client.settle(lambda info: info.attached, "attached")
        generation = client.info().generation
        assert [client.check("ann") for _ in range(3)] == [1, 1, 1]
        os.kill(daemon.worker_pid(), signal.SIGKILL)
        assert client.check("ann") == 1  # nobody is there, and the rules hold
        client.settle(lambda info: info.attach_count == 2, "attached again")
        assert client.info().generation == generation
        assert [client.check("ann") for _ in range(3)] == [1, 0, 0]
        daemon.wait_for(lambda: daemon.status()["clients"]["attached"] == 1, START_DEADLINE_S,
                        "the new worker counts the client")


def test_a_reservation_outlasts_the_kill_of_the_worker_and_who_made_it():
    with Daemon(RULES) as daemon, Client(daemon.runtime_dir) as client:
        with Client(daemon.runtime_dir) as maker:
            maker.settle(lambda info: info.attached, "attached")
            reservation = maker.reserve("ann", 5)
        client.settle(lambda info: info.attached, "attached")
        assert client.check("ann") == 0
        daemon.kill_worker()
        client.settle(lambda info: info.attach_count == 2, "attached again")
        assert client.settle_reservation(reservation, 2) == 1
        assert client.settle_reservation(reservation, 0) == 0
        assert [client.check("ann") for _ in range(4)] == [1, 1, 1, 0]


def test_rules_hold_while_nobody_is_there_and_a_new_generation_is_followed():
    with Daemon(RULES) as daemon, Client(daemon.runtime_dir) as client:
        client.settle(lambda info: info.attached, "attached")
        generation = client.info().generation
        worker = daemon.worker_pid()
        assert [client.check("ann") for _ in range(6)] == [1, 1, 1, 1, 1, 0]
        daemon.kill()
        wait_until(lambda: not is_running(worker), KILL_WAIT_S + 5, "no worker")
        assert client.check("ann") == 0
        client.settle(lambda info: not info.daemon_alive, "seen as gone")
        assert client.check("ann") == 0 and client.info().attached
        daemon.start()
        client.settle(lambda info: info.generation != generation, "the new generation")
        assert [client.check("ann") for _ in range(6)] == [1, 1, 1, 1, 1, 0]


def test_five_kills_in_a_row_lose_no_bucket():
    with Daemon(RULES) as daemon, Client(daemon.runtime_dir) as client:
        client.settle(lambda info: info.attached, "attached")
        assert [client.check("ann") for _ in range(5)] == [1] * 5
        for kills in range(1, 6):
            daemon.kill_worker()
            daemon.wait_for(lambda n=kills: daemon.status()["incarnation"] == n + 1,
                            START_DEADLINE_S, "adopted")
            assert client.check("ann") == 0


def test_a_forked_child_goes_on_in_the_same_buckets_with_a_connection_of_its_own():
    with Daemon(RULES) as daemon, Client(daemon.runtime_dir) as client:
        client.settle(lambda info: info.attached, "attached")
        assert client.check("ann") == 1
        told, tell = os.pipe()
        hold, let_go = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(let_go)
                first = client.check("ann")
                client.settle(lambda info: info.attach_count == 1, "the child's own")
                os.write(tell, b"y" if first == 1 else b"n")
                os.read(hold, 1)
            finally:
                os._exit(0)
        os.close(hold)
        os.close(tell)
        try:
            assert os.read(told, 1) == b"y"
            assert [client.check("ann") for _ in range(4)] == [1, 1, 1, 0]
            daemon.wait_for(lambda: daemon.status()["clients"]["attached"] == 2, START_DEADLINE_S,
                            "two clients")
        finally:
            os.close(let_go)
            os.waitpid(child, 0)
            os.close(told)
        daemon.wait_for(lambda: daemon.status()["clients"]["attached"] == 1, START_DEADLINE_S, "one")
