"""Child processes that never outlive the demo.

Each child has a session of its own, so that Ctrl-C reaches the demo alone, which then ends its
children in order. The kernel kills the children of a demo that was killed itself. A grandchild
whose parent died becomes the demo's own child (subreaper) and is ended by its pid, too.
"""

import ctypes
import os
import signal
import subprocess
import time

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)

# A daemon's last reconcile is bounded; what takes longer than this hangs.
STOP_S = 10.0


class DemoError(Exception):
    """Something the user should know; its text is all that is shown."""


def adopt_orphans():
    """From now on, orphaned descendants become children of this process."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Child:
    """One process; its standard error (and output, unless piped) goes to a log file."""

    _all = []

    def __init__(self, name, argv, log_path, piped=False):
        self.name = name
        self.log_path = log_path
        parent = os.getpid()

        def prepare():
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            if os.getppid() != parent:
                os._exit(127)

        with open(log_path, "ab") as log:
            self.popen = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stderr=log,
                stdout=subprocess.PIPE if piped else log, start_new_session=True,
                preexec_fn=prepare)
        Child._all.append(self)

    @property
    def pid(self):
        return self.popen.pid

    def running(self):
        return self.popen.poll() is None

    def kill(self):
        """SIGKILL; gone when this returns."""
        if self.running():
            self.popen.kill()
        self.popen.wait(STOP_S)

    def terminate(self):
        """Asks it to end; does not wait."""
        if self.running():
            self.popen.terminate()

    def stop(self):
        """SIGTERM and, when that does not help in time, SIGKILL to it and its session."""
        self.terminate()
        try:
            self.popen.wait(STOP_S)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        if self.running():
            self.popen.wait(STOP_S)

    def log_tail(self, lines=8):
        try:
            with open(self.log_path, encoding="utf-8", errors="replace") as file:
                return "".join(f"    {line}" for line in file.readlines()[-lines:])
        except OSError:
            return ""

    def require_running(self):
        if not self.running():
            raise DemoError(f"{self.name} ended with {self.popen.returncode}:\n{self.log_tail()}")


def _own_children():
    pids = []
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children", encoding="ascii") as file:
                pids += [int(pid) for pid in file.read().split()]
        except OSError:
            pass
    return pids


def end_all():
    """Ends every child, the youngest first, and then whatever they left."""
    for child in reversed(Child._all):
        child.terminate()
    for child in reversed(Child._all):
        child.stop()
    # Bounded: each round reaps all that is there, and nothing is left to start more.
    for _ in range(100):
        pids = _own_children()
        if not pids:
            return
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                pass
        time.sleep(0.01)
