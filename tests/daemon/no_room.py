"""Runs a command on a machine that has no room left for shared memory: every fallocate(2) of it
and of its children fails with ENOSPC.

    no_room.py COMMAND...
"""

import ctypes
import errno
import os
import sys

_SCMP_ALLOW, _SCMP_ERRNO = 0x7FFF0000, 0x00050000


def main():
    lib = ctypes.CDLL("libseccomp.so.2")
    lib.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(lib.seccomp_init(ctypes.c_uint32(_SCMP_ALLOW)))
    call = lib.seccomp_syscall_resolve_name(b"fallocate")
    failed = lib.seccomp_rule_add(context, ctypes.c_uint32(_SCMP_ERRNO | errno.ENOSPC), call, 0)
    failed = failed or lib.seccomp_load(context)
    if failed:
        raise OSError(-failed, "seccomp: " + os.strerror(-failed))
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
