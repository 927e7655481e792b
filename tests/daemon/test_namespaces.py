"""Daemon and clients in different namespaces of process ids and of time."""

import json
import os
import signal
import subprocess

import pytest

from harness.processes import Process, children_of, run, wait_until
from harness.sluice import START_DEADLINE_S, Daemon, binary, build_dir, ctl

EXIT_IN_USE = 69
OWN_PIDS = ("unshare", "--pid", "--fork", "--kill-child")
OTHER_TIME = ("unshare", "--time", "--monotonic", "3600", "--fork", "--kill-child")

RULES = """
rules:
  - name: per-user
    key: [user]
    limit: 3 per 30d
    burst: 3
"""


def needs(wrapper):
    """Skips where this machine does not let us make the namespace."""
    done = subprocess.run([*wrapper, "true"], capture_output=True, text=True, check=False,
                          timeout=START_DEADLINE_S)
    if done.returncode != 0:
        pytest.skip(f"{' '.join(wrapper)}: {done.stderr.strip()}")


def check(daemon, wrapper=()):
    """The answer of one check by a process of its own, behind `wrapper`."""
    done = run([*wrapper, binary("sluicectl"), "check", "user=ann", "--json"], START_DEADLINE_S,
               check=False, env={"SLUICE_RUNTIME_DIR": daemon.runtime_dir})
    return json.loads(done.stdout) if done.stdout else done.stderr


# lmdb: a process id from another namespace names nobody here, or somebody else.
def test_a_daemon_with_process_ids_of_its_own_serves_clients_outside():
    needs(OWN_PIDS)
    with Daemon(RULES, wrapper=OWN_PIDS) as daemon:
        keeper, = daemon.process.children()
        worker, = children_of(keeper)
        assert daemon.status()["pid"] != worker, "it does not know its id out here"
        assert [check(daemon)["allowed"] for _ in range(2)] == [True, True]
        os.kill(worker, signal.SIGKILL)
        daemon.wait_for(lambda: daemon.status()["adopted"], START_DEADLINE_S, "adopted")
        assert [check(daemon)["allowed"] for _ in range(2)] == [True, False]


# lmdb: two processes of two namespaces had the same id, and one was taken for the other.
def test_two_clients_with_the_same_process_id_are_two(tmp_path):
    needs(OWN_PIDS)
    program = os.path.join(build_dir(), "tests", "integration", "steady_load")

    def attached(daemon):
        return daemon.status()["clients"]["attached"]

    with Daemon(RULES) as daemon:
        argv = [*OWN_PIDS, program, daemon.runtime_dir, 100, 60, "user=ann"]
        with Process(argv, tmp_path / "one") as one:
            with Process(argv, tmp_path / "two"):
                daemon.wait_for(lambda: attached(daemon) == 2, START_DEADLINE_S, "both")
            daemon.wait_for(lambda: attached(daemon) == 1, START_DEADLINE_S, "one is left")
            assert one.running()
        daemon.wait_for(lambda: attached(daemon) == 0, START_DEADLINE_S, "none is left")


# lmdb: the lock's owner, whose id is nobody's in this namespace, was taken for dead.
def test_a_lock_holds_against_a_daemon_with_process_ids_of_its_own():
    needs(OWN_PIDS)
    with Daemon(RULES) as daemon:
        done = run([*OWN_PIDS, binary("sluiced"), "--config", daemon.config_path],
                   START_DEADLINE_S, check=False)
        assert done.returncode == EXIT_IN_USE, done.stderr
        assert f"pid {daemon.worker_pid()}" in done.stderr, "as its owner knows itself"
        assert check(daemon)["allowed"]


# aeron: a clock that is not the other's makes the living look dead, and the dead alive.
def test_a_client_in_another_time_is_refused_with_the_reason_and_the_others_stay():
    needs(OTHER_TIME)
    with Daemon(RULES) as daemon:
        assert check(daemon)["allowed"]
        assert "another time namespace" in str(check(daemon, OTHER_TIME))
        assert json.loads(ctl("check", "user=ann", "--json", daemon=daemon).stdout)["allowed"]
