"""Passwords come from files or systemd, change without a restart, and are shown nowhere."""

import os

from harness.processes import run, wait_until
from harness.redis_cluster import RedisServer
from harness.sluice import Daemon, ctl

DEADLINE_S = 20.0
# Nothing else in a log or a status looks like these.
SECRET = "s3cr3t-Wolpertinger"
SECOND = "s3cr3t-Raurakl"
RULES = """
rules:
  - {name: per-user, key: [user], limit: 10/s}
"""


def section(redis, login):
    return (f"daemon:\n  runtime_dir: {{runtime_dir}}\n  log_level: debug\n"
            f"redis:\n  addresses: [{redis.address}]\n  mode: single\n{login}{RULES}")


def is_connected(daemon):
    return any(primary["connected"] for primary in daemon.status()["redis"]["primaries"])


def has_alarm(daemon, part):
    return any(part in alarm["id"] for alarm in daemon.status()["alarms"])


def write(path, text):
    path.write_text(text)
    path.chmod(0o600)
    return path


def family(pid):
    """A process and all below it."""
    found = [pid]
    for at in found:
        for task in os.listdir(f"/proc/{at}/task"):
            with open(f"/proc/{at}/task/{task}/children", encoding="ascii") as file:
                found += [int(child) for child in file.read().split()]
    return found


def assert_told_nowhere(daemon, *secrets):
    shown = {"the log": daemon.log()}
    for target in ("/status", "/metrics", "/rules", "/"):
        shown[target] = daemon.get(target)[1]
    shown["sluicectl status"] = ctl("status", daemon=daemon, check=False).stdout
    for pid in family(daemon.pid):
        for name in ("cmdline", "environ", "comm"):
            with open(f"/proc/{pid}/{name}", "rb") as file:
                shown[f"{name} of {pid}"] = file.read().decode(errors="replace")
    assert len([name for name in shown if name.startswith("cmdline")]) >= 1
    for name, text in shown.items():
        for secret in secrets:
            assert secret not in text, f"{name} tells the password"


def test_a_password_in_a_file_is_used_and_told_nowhere(tmp_path):
    file = write(tmp_path / "password", SECRET + "\n")
    with RedisServer(password=SECRET) as redis, Daemon(
            section(redis, f"  password_file: {file}\n")) as daemon:
        wait_until(lambda: is_connected(daemon), DEADLINE_S, "the daemon is connected")
        ctl("check", "user=1", daemon=daemon)
        assert_told_nowhere(daemon, SECRET)


def test_a_password_in_the_configuration_is_told_nowhere_either(tmp_path):
    del tmp_path
    with RedisServer(password=SECRET) as redis, Daemon(
            section(redis, f"  password: {SECRET}\n")) as daemon:
        wait_until(lambda: is_connected(daemon), DEADLINE_S, "the daemon is connected")
        assert_told_nowhere(daemon, SECRET)


def test_a_wrong_password_is_an_alarm_that_does_not_tell_it(tmp_path):
    file = write(tmp_path / "password", SECRET + "\n")
    with RedisServer(password=SECOND) as redis, Daemon(
            section(redis, f"  password_file: {file}\n")) as daemon:
        wait_until(lambda: has_alarm(daemon, "redis-wrong_password"), DEADLINE_S, "the alarm")
        assert_told_nowhere(daemon, SECRET, SECOND)
        write(file, SECOND + "\n")
        wait_until(lambda: is_connected(daemon), DEADLINE_S, "the right password is taken")
        wait_until(lambda: not has_alarm(daemon, "redis-"), DEADLINE_S, "the alarm is over")
        assert_told_nowhere(daemon, SECRET, SECOND)


def test_a_new_password_needs_no_restart(tmp_path):
    file = write(tmp_path / "password", SECRET + "\n")
    with RedisServer(password=SECRET) as redis, Daemon(
            section(redis, f"  password_file: {file}\n")) as daemon:
        wait_until(lambda: is_connected(daemon), DEADLINE_S, "the daemon is connected")
        worker = daemon.worker_pid()
        write(file, SECOND + "\n")
        redis.call("CONFIG", "SET", "requirepass", SECOND)
        redis.password = SECOND
        redis.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        listed = wait_until(
            lambda: [line for line in redis.call("CLIENT", "LIST").splitlines()
                     if "name=sluice-" in line], DEADLINE_S, "the daemon comes again")
        assert listed
        wait_until(lambda: is_connected(daemon), DEADLINE_S, "the daemon is connected")
        assert daemon.worker_pid() == worker
        assert not has_alarm(daemon, "password"), daemon.status()["alarms"]
        assert "WRONGPASS" not in daemon.log()
        assert_told_nowhere(daemon, SECRET, SECOND)


def test_a_password_file_that_goes_leaves_the_password_in_use(tmp_path):
    file = write(tmp_path / "password", SECRET + "\n")
    with RedisServer(password=SECRET) as redis, Daemon(
            section(redis, f"  password_file: {file}\n")) as daemon:
        wait_until(lambda: is_connected(daemon), DEADLINE_S, "the daemon is connected")
        file.unlink()
        redis.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        wait_until(lambda: has_alarm(daemon, "redis-password_file"), DEADLINE_S, "the alarm")
        wait_until(lambda: is_connected(daemon), DEADLINE_S, "the daemon is connected")
        write(file, SECRET + "\n")
        redis.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        wait_until(lambda: not has_alarm(daemon, "redis-password_file"), DEADLINE_S, "it is over")


def test_a_credential_of_systemd_is_used_and_told_nowhere(tmp_path):
    # As systemd does it for LoadCredential=: a folder of files, named by the environment.
    folder = tmp_path / "credentials"
    folder.mkdir()
    write(folder / "redis", SECRET + "\n")
    environment = {**os.environ, "CREDENTIALS_DIRECTORY": str(folder)}
    with RedisServer(password=SECRET) as redis, Daemon(
            section(redis, "  password_file: credential:redis\n"), env=environment) as daemon:
        wait_until(lambda: is_connected(daemon), DEADLINE_S, "the daemon is connected")
        assert_told_nowhere(daemon, SECRET)


def test_a_credential_without_systemd_says_what_the_service_needs(tmp_path):
    del tmp_path
    with RedisServer() as redis:
        daemon = Daemon(section(redis, "  password_file: credential:redis\n"), wait=False)
        with daemon:
            wait_until(lambda: "LoadCredential=" in daemon.log(), DEADLINE_S, "the reason")


def test_the_unit_with_a_credential_has_no_fault_that_systemd_sees(tmp_path):
    unit = tmp_path / "creds.service"
    unit.write_text("[Service]\nExecStart=/bin/true\n"
                    "LoadCredential=redis:/etc/sluice/redis.pass\n")
    done = run(["systemd-analyze", "verify", unit], DEADLINE_S)
    assert "creds.service" not in done.stderr, done.stderr
