"""One child process that cannot outlive its test.

Every process that a test starts goes through `Process`: it gets its own session (so that its own
children can be ended with it), a log file, and a parent-death signal (so that it dies with a test
run that was killed). It is ended by its own pid, never by a name.
"""

import ctypes
import os
import signal
import subprocess
import time

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)

# Between two looks at a condition. Short against every deadline here, long against a look's cost.
POLL_INTERVAL_S = 0.02
# What a killed process may take to be gone: it only has to be scheduled once.
KILL_WAIT_S = 10.0


class Timeout(AssertionError):
    """A condition did not come true by its deadline."""


def wait_until(predicate, deadline_s, what="condition", interval_s=POLL_INTERVAL_S):
    """Calls `predicate` until it returns something true, and returns that.

    Raises Timeout after `deadline_s` seconds. An exception of the predicate is a failed look, and
    is named in the Timeout when it was the last one.
    """
    end = time.monotonic() + deadline_s
    while True:
        problem = ""
        try:
            value = predicate()
            if value:
                return value
        except (OSError, ValueError, LookupError) as error:
            problem = f" (last look: {type(error).__name__}: {error})"
        if time.monotonic() >= end:
            raise Timeout(f"not within {deadline_s} s: {what}{problem}")
        time.sleep(interval_s)


def is_running(pid):
    """Whether there is such a process. One that ended and that nobody waited for is not running:
    under a test run (which adopts orphans) and in a container those may stay for long."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children_of(pid):
    """The pids of a process's direct children now."""
    pids = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
            pids += [int(child) for child in file.read().split()]
    return pids


def _die_with(parent_pid):
    """Returns what the child runs between fork and exec."""

    def prepare():
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent_pid:  # The parent died before the signal was asked for.
            os._exit(127)

    return prepare


def die_with_parent():
    """For a program that a wrapper started which made it forget its parent-death signal."""
    _die_with(os.getppid())()


class Process:
    """A started process with its output in a file.

    Start it from a thread that outlives it (the main thread, as pytest does): the kernel sends the
    parent-death signal when the starting *thread* ends. `user` and `group` (names or numbers) need
    root. Usable as a context manager; `close` may be called any number of times.
    """

    def __init__(self, argv, log_path, *, name=None, env=None, cwd=None, user=None, group=None,
                 extra_groups=None, stdin=subprocess.DEVNULL, stdout=None, pass_fds=()):
        self.argv = [str(part) for part in argv]
        self.name = name or os.path.basename(self.argv[0])
        self.log_path = str(log_path)
        full_env = dict(os.environ)
        full_env.update(env or {})
        with open(self.log_path, "ab") as log:
            self._popen = subprocess.Popen(
                self.argv, stdin=stdin, stdout=log if stdout is None else stdout, stderr=log,
                cwd=cwd, env=full_env, user=user, group=group, extra_groups=extra_groups,
                pass_fds=pass_fds, start_new_session=True, preexec_fn=_die_with(os.getpid()))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @property
    def pid(self):
        return self._popen.pid

    @property
    def stdin(self):
        return self._popen.stdin

    @property
    def stdout(self):
        return self._popen.stdout

    @property
    def returncode(self):
        """None while it runs; negative: ended by that signal."""
        return self._popen.poll()

    def running(self):
        return self._popen.poll() is None

    def children(self):
        """The pids of its direct children now."""
        return children_of(self.pid)

    def wait_for(self, predicate, deadline_s, what="condition"):
        """As wait_until, but fails at once, with the log's end, when the process ends first."""

        def look():
            # Asked before the predicate: a process that ends after its last useful word is fine.
            ended = not self.running()
            try:
                value = predicate()
            except (OSError, ValueError, LookupError):
                if not ended:
                    raise
                value = None
            if ended and not value:
                raise AssertionError(
                    f"{self.name} ended with {self.returncode} before: {what}\n{self.log_tail()}")
            return value

        try:
            return wait_until(look, deadline_s, what)
        except Timeout as error:
            raise Timeout(f"{self.name}: {error}\n{self.log_tail()}") from error

    def wait(self, deadline_s):
        """Waits for the end and returns the exit code; raises Timeout."""
        try:
            return self._popen.wait(deadline_s)
        except subprocess.TimeoutExpired as error:
            raise Timeout(f"{self.name} did not end within {deadline_s} s\n"
                          f"{self.log_tail()}") from error

    def send(self, signum):
        """Sends a signal to this process; one that has ended is left alone."""
        if self.running():
            self._popen.send_signal(signum)

    def pause(self):
        self.send(signal.SIGSTOP)

    def resume(self):
        self.send(signal.SIGCONT)

    def terminate(self, deadline_s=KILL_WAIT_S):
        """SIGTERM, and the exit code; raises Timeout when it does not end."""
        self.send(signal.SIGTERM)
        return self.wait(deadline_s)

    def kill(self):
        """SIGKILL to this process alone; its children live on."""
        self.send(signal.SIGKILL)
        return self.wait(KILL_WAIT_S)

    def close(self):
        """Ends it and all that is left of its session's process group."""
        # The group exists until its last member is gone, and the pid is not reused before that.
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        if self.running():
            self._popen.kill()
        self._popen.wait(KILL_WAIT_S)
        for stream in (self._popen.stdin, self._popen.stdout):
            if stream and not stream.closed:
                stream.close()

    def log(self):
        """All that it wrote so far."""
        with open(self.log_path, encoding="utf-8", errors="replace") as file:
            return file.read()

    def log_tail(self, lines=30):
        text = "\n".join(self.log().splitlines()[-lines:])
        return f"--- end of {self.log_path}:\n{text}"


def run(argv, deadline_s, *, check=True, env=None, cwd=None, stdin_text=None):
    """Runs a command to its end and returns the CompletedProcess (text).

    With `check`, a non-zero exit code is an AssertionError that shows the output.
    """
    full_env = dict(os.environ)
    full_env.update(env or {})
    argv = [str(part) for part in argv]
    done = subprocess.run(argv, timeout=deadline_s, env=full_env, cwd=cwd, text=True,
                          errors="replace", input=stdin_text if stdin_text is not None else "",
                          capture_output=True, check=False,
                          preexec_fn=_die_with(os.getpid()))
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(argv)} ended with {done.returncode}\n"
                             f"{done.stdout}{done.stderr}")
    return done
