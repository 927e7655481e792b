"""Runs a command to which, and to its children, the kernel refuses a system call.

    refuse_call.py CALL ERROR COMMAND...      as in: refuse_call.py fallocate ENOSPC sluiced ...
"""

import ctypes
import errno
import os
import sys

_SCMP_ALLOW, _SCMP_ERRNO = 0x7FFF0000, 0x00050000


def refusing(call, error):
    """The words to put before a command."""
    return [sys.executable, os.path.abspath(__file__), call, error]


def main():
    name, error = sys.argv[1], getattr(errno, sys.argv[2])
    lib = ctypes.CDLL("libseccomp.so.2")
    lib.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(lib.seccomp_init(ctypes.c_uint32(_SCMP_ALLOW)))
    call = lib.seccomp_syscall_resolve_name(name.encode())
    failed = lib.seccomp_rule_add(context, ctypes.c_uint32(_SCMP_ERRNO | error), call, 0)
    failed = failed or lib.seccomp_load(context)
    if failed:
        raise OSError(-failed, f"seccomp: {name}: " + os.strerror(-failed))
    os.execvp(sys.argv[3], sys.argv[3:])


if __name__ == "__main__":
    main()
