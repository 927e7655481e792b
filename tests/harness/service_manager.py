"""Stands where systemd would: takes a daemon's notices and descriptors, and hands them over to the
next one."""

import os
import socket
import sys

# Becomes the daemon, since LISTEN_PID must be its own. Arguments: NAME=FD... -- COMMAND...
_HAND_OVER = """
import os, sys
at = sys.argv.index("--")
named = [word.rsplit("=", 1) for word in sys.argv[1:at]]
high = [os.dup2(int(fd), 100 + i) for i, (_, fd) in enumerate(named)]
for i, fd in enumerate(high):
    os.dup2(fd, 3 + i)
    os.close(fd)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(named)),
                  LISTEN_FDNAMES=":".join(name for name, _ in named))
os.execv(sys.argv[at + 1], sys.argv[at + 1:])
"""


def handing_over(fds):
    """What a Daemon takes to begin with the descriptors {name: fd}."""
    named = [f"{name}={fd}" for name, fd in fds.items()]
    return {"wrapper": [sys.executable, "-c", _HAND_OVER, *named, "--"],
            "pass_fds": tuple(fds.values())}


class Manager:
    """A notify socket in a folder. `env` makes a daemon speak to it and do without its keeper."""

    def __init__(self, folder):
        self.path = os.path.join(folder, "notify.sock")
        self.env = {"NOTIFY_SOCKET": self.path}
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.settimeout(0.1)
        self.texts, self.fds = [], {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for fd in self.fds.values():
            os.close(fd)
        self.socket.close()

    def read(self):
        """All fields that came so far; the descriptors among them are in `fds`, by name."""
        while True:
            try:
                text, fds, _, _ = socket.recv_fds(self.socket, 4096, 8)
            except (TimeoutError, BlockingIOError):
                return self.texts
            fields = text.decode().splitlines()
            self.texts += fields
            for fd in fds:
                name = next(f for f in fields if f.startswith("FDNAME=")).removeprefix("FDNAME=")
                self.fds[name] = fd
