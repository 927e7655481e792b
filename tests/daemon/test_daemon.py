"""The daemon as a process: start, reload, restart, upgrade, stop, and what it says meanwhile."""

import json
import os
import re
import signal
import socket
import subprocess
import time

import pytest

from harness.processes import KILL_WAIT_S, is_running, run, wait_until
from harness.service_manager import Manager
from harness.sluice import ROOT, START_DEADLINE_S, Daemon, _UnixHttp, binary, ctl

EXIT_IN_USE, EXIT_CONFIG, EXIT_USAGE = 69, 78, 64
# A reload is seen by inotify and waits for the file to settle.
RELOAD_DEADLINE_S = 10.0

# One token that does not come back while a test runs.
RULES = """
rules:
  - name: per-user
    key: [user]
    limit: 3 per 30d
    burst: 3
"""
LARGER = RULES.replace("3 per 30d", "500/s").replace("burst: 3", "burst: 1000")
BAD = RULES.replace("3 per 30d", "lots") + "    brust: 7\n"


def allowed(daemon, user, times=1):
    """How many of `times` checks of one user are allowed."""
    count = 0
    for _ in range(times):
        done = ctl("check", f"user={user}", "--json", daemon=daemon, check=False)
        answer = json.loads(done.stdout)
        assert answer["source"] == "rules", done.stdout
        count += answer["allowed"] in (True, 1)
    return count


def post_reload(daemon):
    connection = _UnixHttp(daemon.admin_socket, START_DEADLINE_S)
    try:
        connection.request("POST", "/reload")
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_check_config_names_each_problem_with_its_place_and_mend(tmp_path):
    path = tmp_path / "sluice.yaml"
    path.write_text(BAD)
    done = run([binary("sluiced"), "--config", path, "--check-config"], START_DEADLINE_S,
               check=False)
    assert done.returncode == EXIT_CONFIG
    assert re.search(rf"{re.escape(str(path))}:5:\d+: rules\[0\]\.limit: ", done.stdout), done.stdout
    assert re.search(rf"{re.escape(str(path))}:7:\d+: .*burst", done.stdout), done.stdout
    assert "2 problems" in done.stdout
    path.write_text(RULES)
    done = run([binary("sluiced"), "--config", path, "--check-config"], START_DEADLINE_S)
    assert "good, 1 rules" in done.stdout


def test_a_daemon_with_a_bad_file_refuses_to_start_and_says_why():
    with Daemon(BAD, wait=False) as daemon:
        assert daemon.process.wait(START_DEADLINE_S) == EXIT_CONFIG
        assert ":7:" in daemon.log() and "rules[0].limit" in daemon.log()


def test_a_missing_file_and_an_unknown_option_are_told_apart(tmp_path):
    missing = run([binary("sluiced"), "--config", tmp_path / "none.yaml", "--no-keeper"],
                  START_DEADLINE_S, check=False)
    assert missing.returncode == EXIT_CONFIG and "none.yaml" in missing.stderr
    unknown = run([binary("sluiced"), "--confg", "x"], START_DEADLINE_S, check=False)
    assert unknown.returncode == EXIT_USAGE


def test_the_references_are_those_of_the_tables():
    for option, page in (("--print-config-reference", "configuration.md"),
                         ("--print-metrics-reference", "metrics.md")):
        with open(os.path.join(ROOT, "docs", page), encoding="utf-8") as file:
            assert run([binary("sluiced"), option], START_DEADLINE_S).stdout == file.read(), page


def test_a_host_alone_limits_without_a_server():
    with Daemon(RULES) as daemon:
        assert allowed(daemon, "ann", 5) == 3
        assert allowed(daemon, "bob", 1) == 1
        status = daemon.status()
        assert status["redis"] is None and status["mode"] == "healthy"
        assert status["policy"]["rules"] == 1 and status["config"]["ok"]
        assert daemon.stop() == 0
        assert not os.path.exists(daemon.attach_socket)
        assert not os.path.exists(daemon.admin_socket)


def test_the_sockets_are_for_owner_and_group():
    with Daemon(RULES) as daemon:
        for path in (daemon.attach_socket, daemon.admin_socket):
            assert os.stat(path).st_mode & 0o777 == 0o660, path


def test_buckets_survive_the_kill_of_the_worker():
    with Daemon(RULES) as daemon:
        assert allowed(daemon, "ann", 2) == 2
        generation = daemon.status()["generation"]
        daemon.kill_worker()
        daemon.wait_for(lambda: daemon.status()["adopted"], START_DEADLINE_S, "adopted")
        assert daemon.status()["generation"] == generation
        assert daemon.status()["incarnation"] == 2
        assert allowed(daemon, "ann", 3) == 1


def test_buckets_survive_an_upgrade_by_sigusr2():
    with Daemon(RULES) as daemon:
        assert allowed(daemon, "ann", 3) == 3
        old = daemon.worker_pid()
        daemon.process.send(signal.SIGUSR2)
        daemon.wait_for(lambda: daemon.status()["adopted"] and daemon.worker_pid() != old,
                        START_DEADLINE_S, "another worker")
        assert allowed(daemon, "ann", 1) == 0
        assert daemon.stop() == 0


def test_the_end_of_the_keeper_ends_the_worker():
    with Daemon(RULES) as daemon:
        worker = daemon.worker_pid()
        assert worker != daemon.pid
        daemon.kill()
        wait_until(lambda: not is_running(worker), KILL_WAIT_S + 5, "no worker")
        daemon.start()  # the lock and the sockets of the dead one are no hindrance
        assert daemon.status()["adopted"] is False


def test_a_changed_file_is_taken_over_by_itself():
    with Daemon(RULES) as daemon:
        assert allowed(daemon, "ann", 4) == 3
        daemon.write_config(LARGER)
        daemon.wait_for(lambda: daemon.status()["policy"]["seq"] == 2, RELOAD_DEADLINE_S, "seq 2")
        assert daemon.rules()["rules"][0]["burst"] == 1000
        # The first check heals the word of the smaller limit; then the larger one refills.
        allowed(daemon, "ann")
        assert allowed(daemon, "ann", 4) == 4


@pytest.mark.parametrize("after_s", [0, 0.01, 0.02, 0.03, 0.04, 0.06, 0.1])
def test_a_file_that_changes_during_the_start_is_taken_over(after_s):
    with Daemon(RULES, wait=False) as daemon:
        time.sleep(after_s)
        daemon.write_config(LARGER)
        daemon.wait_for(lambda: daemon.status() is not None, START_DEADLINE_S, "answers")
        daemon.wait_for(lambda: daemon.rules()["rules"][0]["burst"] == 1000, RELOAD_DEADLINE_S,
                        "the larger burst")


def test_a_bad_file_leaves_the_running_limits_and_says_so():
    with Daemon(RULES) as daemon:
        daemon.reload(BAD)
        daemon.wait_for(lambda: not daemon.status()["config"]["ok"], RELOAD_DEADLINE_S, "not ok")
        status = daemon.status()
        assert status["policy"]["seq"] == 1
        assert any(":7:" in line for line in status["config"]["problems"])
        assert [alarm["id"] for alarm in status["alarms"]].count("config-bad") == 1
        assert daemon.metrics().value("sluice_config_ok") == 0
        assert "rules[0].limit" in daemon.log()
        assert allowed(daemon, "ann", 5) == 3
        code, answer = post_reload(daemon)
        assert code == 422 and not answer["ok"] and len(answer["problems"]) == 2
        daemon.write_config(LARGER)
        daemon.wait_for(lambda: daemon.status()["config"]["ok"], RELOAD_DEADLINE_S, "ok again")
        code, answer = post_reload(daemon)
        assert code == 200 and answer["ok"]
        assert "config-bad" not in [alarm["id"] for alarm in daemon.status()["alarms"]]


def test_a_worker_restarted_amid_a_bad_edit_keeps_the_last_good_limits():
    with Daemon(RULES) as daemon:
        assert allowed(daemon, "ann", 2) == 2
        daemon.write_config(BAD)
        daemon.wait_for(lambda: not daemon.status()["config"]["ok"], RELOAD_DEADLINE_S, "not ok")
        daemon.kill_worker()
        daemon.wait_for(lambda: daemon.status()["adopted"], START_DEADLINE_S, "adopted")
        assert not daemon.status()["config"]["ok"]
        assert allowed(daemon, "ann", 3) == 1


def test_a_change_that_needs_a_restart_says_so():
    with Daemon(RULES) as daemon:
        daemon.write_config(f"daemon:\n  runtime_dir: {daemon.runtime_dir}\n  buckets: 4096\n"
                            + RULES)
        daemon.wait_for(lambda: daemon.status()["config"]["warnings"], RELOAD_DEADLINE_S, "warned")
        assert "daemon.buckets" in daemon.status()["config"]["warnings"][0]


def test_more_changes_than_policy_buffers_are_taken_over_in_the_end():
    with Daemon(RULES) as daemon:
        pending, burst = "", 3
        while not pending and burst < 500:
            burst += 1
            daemon.write_config(RULES.replace("burst: 3", f"burst: {burst}"))
            assert post_reload(daemon)[0] == 200
            pending = daemon.status()["config"]["pending"]
        assert "at most 0.4 s" in pending
        daemon.wait_for(lambda: daemon.status()["config"]["pending"] == "", 20.0, "in force")
        assert daemon.rules()["rules"][0]["burst"] == burst


def test_a_second_daemon_in_the_same_folder_is_refused_by_the_first_ones_pid():
    with Daemon(RULES) as daemon:
        done = run([binary("sluiced"), "--config", daemon.config_path], START_DEADLINE_S,
                   check=False)
        assert done.returncode == EXIT_IN_USE
        assert f"pid {daemon.worker_pid()}" in done.stderr, done.stderr
        assert allowed(daemon, "ann") == 1  # the first one is untouched


def test_an_unknown_group_is_refused_with_the_mend(tmp_path):
    with Daemon(f"daemon:\n  runtime_dir: {tmp_path}/run\n  group: no-such-group\n" + RULES,
                wait=False) as daemon:
        assert daemon.process.wait(START_DEADLINE_S) == EXIT_CONFIG
        assert "no-such-group" in daemon.log() and "groupadd" in daemon.log()


def hello(magic=b"SLCHELLO", size=64):
    return (magic + b"\x07" * size)[:size]


def test_garbage_on_the_sockets_harms_nobody():
    with Daemon(RULES) as daemon:
        for message in (b"x", hello(), hello(b"GARBAGE!"), os.urandom(64), os.urandom(4000)):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
                client.settimeout(START_DEADLINE_S)
                client.connect(daemon.attach_socket)
                client.send(message)
                try:
                    while client.recv(4096):
                        pass
                except ConnectionError:
                    pass
        for message in (b"\0" * 100, b"GET " + b"/" * 100_000, os.urandom(1000) + b"\r\n\r\n"):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(START_DEADLINE_S)
                client.connect(daemon.admin_socket)
                try:
                    client.sendall(message)
                    client.shutdown(socket.SHUT_WR)
                    while client.recv(4096):
                        pass
                except OSError:
                    pass
        assert daemon.status()["clients"]["refused_total"] == 5
        assert allowed(daemon, "ann") == 1


@pytest.mark.parametrize("target,code", [("/nothing", 404), ("/buckets?limit=x", 400),
                                         ("/buckets?limit=0", 400), ("/buckets?scope=all", 400),
                                         ("/buckets?scope=global", 409)])
def test_a_request_that_cannot_be_served_says_why(target, code):
    with Daemon(RULES) as daemon:
        got, body = daemon.get(target)
        assert got == code and json.loads(body)["error"]


def test_local_buckets_are_listed_by_name():
    with Daemon(RULES) as daemon:
        assert allowed(daemon, "ann", 2) == 2
        assert allowed(daemon, "b:c%", 1) == 1
        _, body = daemon.get("/buckets?prefix=per-user:")
        buckets = {bucket["name"]: bucket for bucket in json.loads(body)["buckets"]}
        assert set(buckets) == {"per-user:ann", "per-user:b:c%25"}
        assert buckets["per-user:ann"]["remaining"] == 1
        _, body = daemon.get("/buckets?prefix=per-user:a&limit=1")
        assert [b["name"] for b in json.loads(body)["buckets"]] == ["per-user:ann"]


def test_counts_per_rule_are_shown():
    with Daemon(RULES) as daemon:
        assert allowed(daemon, "ann", 5) == 3
        daemon.wait_for(lambda: daemon.metrics().sum("sluice_checks_total", rule="per-user",
                                                     result="allowed") == 3,
                        RELOAD_DEADLINE_S, "three allowed")


def test_clients_are_counted_while_they_live():
    with Daemon(RULES) as daemon:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(daemon.attach_socket)
            daemon.wait_for(lambda: daemon.status()["clients"]["attached"] == 0, 5, "not yet")
        assert daemon.metrics().value("sluice_clients_attached") == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_a_client_of_another_user_attaches_by_group_only(tmp_path):
    group, user = 64001, 65534
    with Daemon(RULES) as daemon:
        os.chown(daemon.attach_socket, -1, group)

        def attach(groups):
            script = ("import socket,sys\ns=socket.socket(socket.AF_UNIX,socket.SOCK_SEQPACKET)\n"
                      "s.connect(sys.argv[1])\n")
            return subprocess.run(["python3", "-c", script, daemon.attach_socket], user=user,
                                  group=user, extra_groups=groups, timeout=START_DEADLINE_S,
                                  capture_output=True, text=True, check=False)

        assert attach([group]).returncode == 0
        denied = attach([])
        assert denied.returncode != 0 and "PermissionError" in denied.stderr


def test_under_a_service_manager_it_is_one_process_that_reports_and_stores(tmp_path):
    with Manager(tmp_path) as manager:
        with Daemon(RULES, env={**manager.env, "WATCHDOG_USEC": "600000"}) as daemon:
            wait_until(lambda: "READY=1" in manager.read(), START_DEADLINE_S, "READY")
            assert daemon.process.children() == []
            wait_until(lambda: manager.read().count("WATCHDOG=1") >= 2, START_DEADLINE_S, "alive")
            kinds = sorted(name.split("-")[0] for name in manager.fds)
            assert kinds == ["buckets", "config", "control"]
            for fd in manager.fds.values():
                assert os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:sluice-")
            daemon.reload(LARGER)
            wait_until(lambda: "RELOADING=1" in manager.read(), START_DEADLINE_S, "RELOADING")
            assert daemon.stop() == 0
            assert "STOPPING=1" in manager.read()
