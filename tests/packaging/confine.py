"""Runs a command under the restrictions of a systemd unit, where no systemd runs.

    confine.py [--uid N --gid N] [--writable DIR]... UNIT -- COMMAND...

Read from the unit and applied: SystemCallFilter with its error number, RestrictAddressFamilies,
MemoryDenyWriteExecute, NoNewPrivileges, CapabilityBoundingSet; as root also ProtectSystem=strict.
What the machine does not let us apply is named on standard error, one line each, "not applied: ".
"""

import argparse
import ctypes
import errno
import os
import subprocess
import sys

_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_SET_MDWE = 24, 38, 65
_CLONE_NEWNS = 0x20000
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
_SCMP_ALLOW = 0x7FFF0000
_SCMP_CMP_EQ = 4
_libc = ctypes.CDLL(None, use_errno=True)


def say_not_applied(what, why):
    print(f"not applied: {what}: {why}", file=sys.stderr, flush=True)


def settings(path):
    """{key: [values in order]} of the unit's [Service] section; an empty value resets, as there."""
    found, inside = {}, False
    with open(path, encoding="utf-8") as file:
        for line in file:
            line = line.strip()
            if line.startswith("["):
                inside = line == "[Service]"
            elif inside and "=" in line and not line.startswith(("#", ";")):
                key, value = line.split("=", 1)
                found.setdefault(key.strip(), []).append(value.strip())
    return found


def members(name):
    """The system calls of a set such as @system-service, as systemd itself expands it."""
    out = subprocess.run(["systemd-analyze", "syscall-filter", name], check=True, text=True,
                         capture_output=True).stdout
    calls = set()
    for line in out.splitlines()[1:]:
        word = line.strip()
        if word.startswith("@"):
            calls |= members(word)
        elif word and not word.startswith("#"):
            calls.add(word)
    return calls


def allowed_calls(lines):
    """What SystemCallFilter= lines allow; the first line must be an allow list."""
    allowed = set()
    for line in lines:
        remove = line.startswith("~")
        for word in line.lstrip("~").split():
            calls = members(word) if word.startswith("@") else {word}
            allowed = allowed - calls if remove else allowed | calls
    # systemd always allows these, with an allow list.
    return allowed | members("@default")


class _ArgCmp(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64),
                ("b", ctypes.c_uint64)]


def load_filter(allowed, families, refusal):
    """Builds and loads the filter; what is not allowed fails with errno `refusal`."""
    lib = ctypes.CDLL("libseccomp.so.2")
    lib.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(lib.seccomp_init(ctypes.c_uint32(0x00050000 | refusal)))
    socket_call = lib.seccomp_syscall_resolve_name(b"socket")
    for name in sorted(allowed):
        number = lib.seccomp_syscall_resolve_name(name.encode())
        if number < 0 or (number == socket_call and families):
            continue  # Not of this architecture, or restricted below.
        lib.seccomp_rule_add(context, ctypes.c_uint32(_SCMP_ALLOW), number, 0)
    for family in families:
        compare = _ArgCmp(0, _SCMP_CMP_EQ, family, 0)
        lib.seccomp_rule_add_array(context, ctypes.c_uint32(_SCMP_ALLOW), socket_call, 1,
                                   ctypes.byref(compare))
    failed = lib.seccomp_load(context)
    if failed:
        raise OSError(-failed, "seccomp_load: " + os.strerror(-failed))


def _mount(source, target, flags):
    source = source.encode() if source else None
    if _libc.mount(source, target.encode(), None, flags, None):
        raise OSError(ctypes.get_errno(), f"mount {target}: {os.strerror(ctypes.get_errno())}")


def protect_system(writable):
    """Every file system read-only but these folders, /tmp, /dev and /proc."""
    if _libc.unshare(_CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare: " + os.strerror(ctypes.get_errno()))
    _mount(None, "/", _MS_REC | _MS_PRIVATE)
    for folder in writable:
        _mount(folder, folder, _MS_BIND)
    _mount("/", "/", _MS_BIND | _MS_REC)
    os.chdir("/")
    _mount(None, "/", _MS_REMOUNT | _MS_BIND | _MS_RDONLY)


def drop_capabilities():
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        last = int(file.read())
    for capability in range(last + 1):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def apply(unit, args):
    wanted = settings(unit)
    # Before anything is shut: what needs other programs, files and rights.
    allowed = allowed_calls(wanted["SystemCallFilter"])
    refusal = getattr(errno, wanted.get("SystemCallErrorNumber", ["EPERM"])[-1])
    import socket  # pylint: disable=import-outside-toplevel
    families = [int(getattr(socket, name))
                for name in wanted.get("RestrictAddressFamilies", [""])[-1].split()]
    if os.geteuid() == 0:
        if wanted.get("ProtectSystem") == ["strict"]:
            try:
                protect_system(args.writable)
            except OSError as error:
                say_not_applied("ProtectSystem", error)
        if wanted.get("CapabilityBoundingSet") == [""]:
            try:
                drop_capabilities()
            except OSError as error:
                say_not_applied("CapabilityBoundingSet", error)
        if args.uid is not None:
            os.setgroups([])
            os.setgid(args.gid if args.gid is not None else args.uid)
            os.setuid(args.uid)
    else:
        say_not_applied("ProtectSystem, CapabilityBoundingSet, another user", "not root")
    if wanted.get("NoNewPrivileges") == ["yes"]:
        _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if wanted.get("MemoryDenyWriteExecute") == ["yes"] and _libc.prctl(_PR_SET_MDWE, 1, 0, 0, 0):
        say_not_applied("MemoryDenyWriteExecute", os.strerror(ctypes.get_errno()))
    load_filter(allowed, families, refusal)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--uid", type=int)
    parser.add_argument("--gid", type=int)
    parser.add_argument("--writable", action="append", default=[])
    parser.add_argument("unit")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    apply(args.unit, args)
    os.execvp(args.command[0], args.command)


if __name__ == "__main__":
    main()
