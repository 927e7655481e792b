"""What a daemon finds at its start: remains of others, a reboot in between, no room."""

import fcntl
import json
import os

import pytest

from harness.processes import wait_until
from harness.refuse_call import refusing
from harness.service_manager import Manager, handing_over
from harness.sluice import START_DEADLINE_S, Daemon, ctl

# linux/fcntl.h; Python 3.11 does not name them.
F_ADD_SEALS, F_SEAL_SHRINK = 1033, 2
# Of ControlHeader; see docs/shared-memory.md.
BOOT_ID_OFFSET = 24

# One token that does not come back while a test runs.
RULES = """
rules:
  - name: per-user
    key: [user]
    limit: 3 per 30d
    burst: 3
"""


def allowed(daemon, times):
    """How many of `times` checks of one user are allowed."""
    count = 0
    for _ in range(times):
        answer = json.loads(ctl("check", "user=ann", "--json", daemon=daemon, check=False).stdout)
        assert answer["source"] == "rules", answer
        count += bool(answer["allowed"])
    return count


def empty_segment():
    fd = os.memfd_create("empty", os.MFD_ALLOW_SEALING)
    fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK)
    return fd


# client_python#1199: a file of zero bytes, left by a writer that died early, broke every start.
def test_segments_of_zero_bytes_are_replaced_by_new_ones(tmp_path):
    fds = {"control-1": empty_segment(), "buckets-1": empty_segment(), "config": empty_segment()}
    try:
        with Manager(tmp_path) as manager, Daemon(RULES, env=manager.env,
                                                  **handing_over(fds)) as daemon:
            assert allowed(daemon, 5) == 3
            assert not daemon.status()["adopted"]
            assert "not taken over" in daemon.log(), "and it says so"
    finally:
        for fd in fds.values():
            os.close(fd)


# client_python#1199: the same, with the files of the runtime folder.
def test_files_of_zero_bytes_in_its_folder_do_not_hinder_it():
    with Daemon(RULES) as daemon:
        assert daemon.stop() == 0
        for name in ("attach.sock", "admin.sock", "sluiced.lock"):
            with open(os.path.join(daemon.runtime_dir, name), "wb"):
                pass
        daemon.start()
        assert allowed(daemon, 5) == 3


# haproxy 09bf11624: times of the clock before the reboot were taken for the present ones.
@pytest.mark.parametrize("boot", ["same", "another"])
def test_segments_are_taken_over_within_one_boot_only(tmp_path, boot):
    with Manager(tmp_path) as manager:
        with Daemon(RULES, env=manager.env) as daemon:
            generation = daemon.status()["generation"]
            assert allowed(daemon, 3) == 3
            wait_until(lambda: manager.read() and len(manager.fds) == 3, START_DEADLINE_S, "stored")
            daemon.kill()
        control = manager.fds[f"control-{generation}"]
        if boot == "another":
            first = os.pread(control, 1, BOOT_ID_OFFSET)[0]
            os.pwrite(control, bytes([first ^ 1]), BOOT_ID_OFFSET)
        with Daemon(RULES, env=manager.env, **handing_over(manager.fds)) as daemon:
            status = daemon.status()
            assert status["adopted"] == (boot == "same")
            assert (status["generation"] == generation) == (boot == "same")
            assert allowed(daemon, 4) == (0 if boot == "same" else 3)
            assert ("before the last boot" in daemon.log()) == (boot == "another")


# lmdb: a process id in a lock had gone to another process, and its lock was believed for ever.
def test_a_lock_file_with_the_id_of_a_living_process_does_not_hinder_it():
    with Daemon(RULES) as daemon:
        assert daemon.stop() == 0
        with open(os.path.join(daemon.runtime_dir, "sluiced.lock"), "w", encoding="ascii") as lock:
            lock.write(f"{os.getpid()}\n")
        daemon.start()
        assert allowed(daemon, 4) == 3


# prometheus#16785: readers of a sparse mapping died of SIGBUS when there was no room for a page.
# There is none here from the beginning: who allocates first is told, and nobody ever maps it.
def test_without_room_for_the_segments_it_refuses_to_start_and_says_why():
    with Daemon(RULES, wait=False, args=["--no-keeper"],
                wrapper=refusing("fallocate", "ENOSPC")) as daemon:
        assert daemon.process.wait(START_DEADLINE_S) == 1
        assert "no memory for the shared segments: lower daemon.buckets" in daemon.log()
        assert "No space left" in daemon.log()
        assert not os.path.exists(daemon.attach_socket)


# prometheus#16785: the same where a limit of file sizes stands in the way, whose signal ends a
# process without a word.
def test_under_a_limit_of_file_sizes_it_refuses_to_start_and_says_why():
    with Daemon(RULES, wait=False, args=["--no-keeper"],
                wrapper=["prlimit", "--fsize=1048576"]) as daemon:
        assert daemon.process.wait(START_DEADLINE_S) == 1
        assert "no memory for the shared segments: lower daemon.buckets" in daemon.log()
        assert "(ulimit -f) (File too large)" in daemon.log()
