"""The unit and its companions, judged by systemd's own tools (none needs a booted systemd)."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from harness.processes import run
from harness.sluice import ROOT, Daemon, build_dir

EXPOSURE_MAX = 1.5
# Any user that is not root and not ours.
OTHER_UID = 54321
CONFINE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "confine.py")
DEADLINE_S = 30.0


@pytest.fixture(name="unit")
def fixture_unit(tmp_path):
    """The built unit, alone in a folder, under its own name."""
    built = os.path.join(build_dir(), "systemd", "sluiced.service")
    return shutil.copy(built, tmp_path / "sluiced.service")


def test_the_unit_rates_well_under_systemd_analyze_security(unit):
    out = run(["systemd-analyze", "security", "--offline=yes", unit], DEADLINE_S,
              env={"LC_ALL": "C.UTF-8"}).stdout
    exposure = re.search(r"Overall exposure level for sluiced\.service: ([0-9.]+)", out)
    assert exposure, out
    assert float(exposure[1]) <= EXPOSURE_MAX, out


def test_the_unit_has_no_fault_that_systemd_analyze_verify_sees(unit):
    # The program stands elsewhere while it is not installed; all else is as shipped.
    text = open(unit, encoding="utf-8").read()
    text, count = re.subn(r"^ExecStart=\S*/sbin/sluiced ", "ExecStart=/bin/true ", text,
                          flags=re.MULTILINE)
    assert count == 1
    with open(unit, "w", encoding="utf-8") as file:
        file.write(text)
    done = run(["systemd-analyze", "verify", unit], DEADLINE_S)
    assert "sluiced.service" not in done.stderr, done.stderr


def test_verify_would_see_a_fault(unit):
    with open(unit, "a", encoding="utf-8") as file:
        file.write("\n[Service]\nNoSuchSetting=1\n")
    done = run(["systemd-analyze", "verify", unit], DEADLINE_S, check=False)
    assert "NoSuchSetting" in done.stderr


def test_the_unit_notifies_is_watched_and_keeps_its_descriptors(unit):
    lines = open(unit, encoding="utf-8").read().splitlines()
    for line in ("Type=notify", "FileDescriptorStoreMax=8", "RuntimeDirectory=sluice",
                 "RuntimeDirectoryPreserve=restart", "ExecReload=/bin/kill -HUP $MAINPID",
                 "User=sluiced", "Group=sluice"):
        assert line in lines
    assert any(line.startswith("WatchdogSec=") for line in lines)


def test_sysusers_makes_the_daemons_user_and_the_clients_group(tmp_path):
    os.mkdir(tmp_path / "etc")
    # As a plain user it can be parsed, not applied: it wants to own the files.
    if os.geteuid() != 0:
        pytest.skip("needs root")
    run(["systemd-sysusers", f"--root={tmp_path}", os.path.join(ROOT, "systemd/sluice.sysusers")],
        DEADLINE_S)
    groups = {line.split(":")[0]: line.split(":")[2]
              for line in (tmp_path / "etc/group").read_text().splitlines()}
    users = {line.split(":")[0]: line.split(":")
             for line in (tmp_path / "etc/passwd").read_text().splitlines()}
    assert set(groups) == {"sluice", "sluiced"}
    assert users["sluiced"][3] == groups["sluiced"]
    assert users["sluiced"][6] == "/usr/sbin/nologin"
    # A client must not be the daemon: its user is in no way a member of the clients' group.
    assert "sluice" not in users


def test_tmpfiles_closes_the_configuration_to_clients(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root")
    shutil.copytree(os.path.join(ROOT, "systemd"), tmp_path / "source")
    os.makedirs(tmp_path / "etc/sluice")
    shutil.copy(os.path.join(ROOT, "systemd/sluice.yaml"), tmp_path / "etc/sluice/sluice.yaml")
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    (tmp_path / "etc/group").write_text("root:x:0:\nsluiced:x:54321:\n")
    run(["systemd-tmpfiles", "--create", f"--root={tmp_path}",
         os.path.join(ROOT, "systemd/sluice.tmpfiles")], DEADLINE_S)
    seen = os.stat(tmp_path / "etc/sluice/sluice.yaml")
    assert (seen.st_mode & 0o777, seen.st_uid, seen.st_gid) == (0o640, 0, 54321)


# Under the unit's restrictions, as far as they can be had without a booted systemd.

PROBE = r"""
import ctypes, errno, mmap, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def syscall(number, *args):
    ctypes.set_errno(0)
    value = libc.syscall(number, *args)
    return errno.errorcode.get(ctypes.get_errno(), "ok") if value < 0 else "ok"
def attempt(action):
    try:
        action()
        return "ok"
    except OSError as error:
        return errno.errorcode[error.errno]
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print("memfd", attempt(lambda: os.memfd_create("probe")))
print("unix", attempt(lambda: socket.socket(socket.AF_UNIX)))
print("inet", attempt(lambda: socket.socket(socket.AF_INET)))
print("inet6", attempt(lambda: socket.socket(socket.AF_INET6)))
print("netlink", attempt(lambda: socket.socket(socket.AF_NETLINK)))
print("setuid", attempt(lambda: os.setuid(0)))
print("chroot", attempt(lambda: os.chroot("/")))
print("io_uring_setup", syscall(425, 8, ctypes.byref((ctypes.c_uint32 * 30)())))
print("rwx", attempt(lambda: mmap.mmap(-1, 4096, prot=7)))
print("write_etc", attempt(lambda: open("/etc/passwd", "a")))
print("caps", int(status["CapBnd"], 16))
print("nnp", int(status["NoNewPrivs"]))
print("boot_id", attempt(lambda: open("/proc/sys/kernel/random/boot_id").read()))
"""


def probe(argv, **kwargs):
    done = subprocess.run(argv + [sys.executable, "-c", PROBE], text=True, capture_output=True,
                          timeout=DEADLINE_S, check=False, **kwargs)
    assert done.returncode == 0, done.stderr
    return dict(line.split() for line in done.stdout.splitlines()), done.stderr


def test_under_the_units_restrictions_everything_that_the_daemon_needs_works(unit, tmp_path):
    outside, _ = probe([])
    inside, notes = probe([sys.executable, CONFINE, str(unit), "--"])
    for needed in ("memfd", "unix", "inet", "boot_id", "inet6", "io_uring_setup"):
        assert inside[needed] == outside[needed], (needed, notes)
    for shut in ("netlink", "setuid", "chroot"):
        assert inside[shut] == "EPERM", (shut, notes)
    assert inside["nnp"] == "1"
    if "MemoryDenyWriteExecute" not in notes:
        assert inside["rwx"] == "EACCES"
    if os.geteuid() == 0 and "CapabilityBoundingSet" not in notes:
        assert inside["caps"] == "0"
    if os.geteuid() == 0 and "ProtectSystem" not in notes:
        assert inside["write_etc"] == "EROFS"


def test_the_daemon_serves_and_stops_cleanly_under_the_units_restrictions(unit):
    wrapper = [sys.executable, CONFINE]
    if os.geteuid() == 0:
        wrapper += ["--uid", str(OTHER_UID), "--writable", "/tmp"]
    rules = "rules:\n  - {name: per-user, key: [user], limit: 10/s, burst: 20}\n"
    with Daemon(rules, wrapper=[*wrapper, str(unit), "--"], owner=OTHER_UID) as daemon:
        status = open(f"/proc/{daemon.worker_pid()}/status", encoding="utf-8").read()
        assert re.search(r"^Seccomp:\s+2$", status, re.MULTILINE)
        assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
        assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
        assert daemon.metrics()
        assert daemon.stop() == 0, daemon.log()
