"""One suite of the test run: a command that is run to its end, ended when it must, and counted.

A suite leaves nothing behind: it runs in a process group of its own, and the run adopts its orphans
(PR_SET_CHILD_SUBREAPER), so that a process that a test forgot is seen, ended, and a failure.
"""

import ctypes
import os
import re
import signal
import subprocess
import time
import xml.etree.ElementTree as xml

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_libc = ctypes.CDLL(None, use_errno=True)

# A process whose parent is gone needs a moment to get its parent-death signal.
WAITING_JOBS = 3
ORPHAN_GRACE_S = 3.0
# Lines of a failed suite's output that are shown; all of it is in the log.
SHOWN_LINES = 60


class Result:
    """What a suite came to."""

    def __init__(self, name):
        self.name = name
        self.passed = 0
        self.skipped = []
        self.failures = []  # (case, message)
        self.seconds = 0.0
        self.log_path = None

    def fail(self, case, message=""):
        self.failures.append((case, message))


class Suite:
    """A command and how to count it.

    `report` is the JUnit file that it writes; with `may_report` it may write none, and is then one
    case, which its exit code decides. `parallel`: beside others, one for each processor. `waits`:
    it mostly sleeps, so some of these go side by side. `idle`: it goes behind all the others, from
    the first to the last, on what processor time they leave.
    """

    def __init__(self, name, argv, *, report=None, may_report=False, env=None, cwd=None,
                 timeout_s=600, parallel=False, waits=False, idle=False):
        self.name = name
        self.argv = argv
        self.report = report
        self.may_report = may_report
        self.env = env or {}
        self.cwd = cwd
        self.timeout_s = timeout_s
        self.parallel = parallel
        self.waits = waits
        self.idle = idle


def read_report(path, result):
    """Adds the cases of a JUnit or GoogleTest XML file to `result`; returns how many there were."""
    count = 0
    for case in xml.parse(path).getroot().iter("testcase"):
        name = ".".join(filter(None, (case.get("classname"), case.get("name"))))
        if case.get("status") == "notrun":
            continue  # GoogleTest's disabled and filtered cases.
        count += 1
        bad = case.find("failure")
        bad = case.find("error") if bad is None else bad
        skip = case.find("skipped")
        if bad is not None:
            result.fail(name, (bad.get("message") or bad.text or "").strip())
        elif skip is not None or case.get("result") == "skipped":
            why = "" if skip is None else skip.get("message") or ""
            result.skipped.append(" ".join(f"{name}: {why}".split()).rstrip(": "))
        else:
            result.passed += 1
    return count


def how_it_ended(code):
    """An exit code in words."""
    if code >= 0:
        return f"ended with {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _tail(path, lines=SHOWN_LINES):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()[-lines:]
    except OSError:
        return []


def _take_the_rest():
    """Puts the calling process behind all others that want a processor."""
    os.nice(19)
    try:
        # Where the kernel shares time between sessions first, niceness counts within one only.
        with open("/proc/self/autogroup", "w", encoding="ascii") as file:
            file.write("19")
    except OSError:
        pass


def _is_gtest(log_path):
    with open(log_path, "rb") as file:
        return b"[==========] Running " in file.read()


class _Running:
    def __init__(self, suite, log_path):
        self.suite = suite
        self.log_path = log_path
        self.started = time.monotonic()
        self.timed_out = False
        if suite.report and os.path.exists(suite.report):
            os.remove(suite.report)
        parent = os.getpid()

        def prepare():
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(127)
            if suite.idle:
                _take_the_rest()

        with open(log_path, "wb") as log:
            self.popen = subprocess.Popen(
                suite.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                cwd=suite.cwd, env={**os.environ, **suite.env}, start_new_session=True,
                preexec_fn=prepare)

    def kill_group(self):
        try:
            os.killpg(self.popen.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass

    def finish(self):
        """Waits for what was ended, and returns the Result."""
        suite, code = self.suite, self.popen.wait()
        result = Result(suite.name)
        result.seconds = time.monotonic() - self.started
        result.log_path = self.log_path
        cases = 0
        reported = suite.report is not None and os.path.exists(suite.report)
        one_case = not reported and (suite.report is None or suite.may_report)
        if reported:
            try:
                cases = read_report(suite.report, result)
            except (xml.ParseError, OSError) as error:
                result.fail("report", f"unreadable: {error}")
        if self.timed_out:
            result.fail("timeout", f"took longer than {suite.timeout_s} s")
        elif code == 77 and one_case:  # Meson's word for "skipped".
            result.skipped.append(suite.name)
        elif code != 0 and not result.failures:
            result.fail("exit", f"the program {how_it_ended(code)}")
        elif code == 0 and one_case and suite.may_report and _is_gtest(self.log_path):
            result.fail("report", "the program ended in the middle of its cases")
        elif code == 0 and one_case:
            result.passed += 1
        elif code == 0 and cases == 0:
            result.fail("empty", "no case ran")
        return result


class Runner:
    """Runs suites and prints a line for each; use it from the main thread only."""

    def __init__(self, log_dir, jobs):
        self._log_dir = log_dir
        self._jobs = jobs
        self._running = []
        self.results = []
        os.makedirs(log_dir, exist_ok=True)
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def run(self, suites, deadline):
        """Runs them all, those that go beside others first; those not begun by `deadline` fail."""
        idle = [suite for suite in suites if suite.idle]
        suites = [suite for suite in suites if not suite.idle]
        parallel = [suite for suite in suites if suite.parallel]
        waits = [suite for suite in suites if suite.waits and not suite.parallel]
        alone = [suite for suite in suites if not suite.parallel and not suite.waits]
        for suite in idle:
            self._begin(suite, deadline)
        for batch, jobs in ((parallel, self._jobs), (waits, WAITING_JOBS), (alone, 1)):
            waiting = list(batch)
            while waiting or self._busy():
                while waiting and len(self._busy()) < jobs:
                    self._begin(waiting.pop(0), deadline)
                self._look(deadline)
                time.sleep(0.02)
            self._end_orphans()
        while self._running:
            self._look(deadline)
            time.sleep(0.02)

    def _busy(self):
        return [running for running in self._running if not running.suite.idle]

    def _begin(self, suite, deadline):
        if time.monotonic() >= deadline:
            result = Result(suite.name)
            result.fail("not run", "the test run's time was up")
            self._report(result)
            return
        log = os.path.join(self._log_dir, re.sub(r"[^A-Za-z0-9_.-]+", "-", suite.name) + ".log")
        self._running.append(_Running(suite, log))

    def _look(self, deadline):
        now = time.monotonic()
        for running in list(self._running):
            limit = min(running.started + running.suite.timeout_s, deadline)
            if running.popen.poll() is None:
                if now < limit:
                    continue
                running.timed_out = True
            running.kill_group()
            result = running.finish()
            self._running.remove(running)
            if not self._busy() and not running.suite.idle:
                for orphan in self._end_orphans():
                    result.fail("left behind", f"a process that outlived its test: {orphan}")
            self._report(result)

    def _report(self, result):
        self.results.append(result)
        word = "FAIL" if result.failures else "ok  "
        total = result.passed + len(result.failures)
        print(f"{word} {result.passed:4}/{total:<4} {result.seconds:7.1f} s  {result.name}",
              flush=True)
        if result.failures:
            for case, message in result.failures:
                print(f"     failed: {case}: {message.splitlines()[0] if message else ''}")
            if result.log_path:
                print(f"     --- end of {result.log_path}")
                print("".join(f"     | {line}\n" for line in _tail(result.log_path)), end="")
            print("     ---", flush=True)

    def close(self):
        """Ends everything that was begun here; may be called any number of times."""
        for running in self._running:
            running.kill_group()
            running.popen.wait()
        self._running = []
        self._end_orphans(grace_s=0.0)

    def _end_orphans(self, grace_s=ORPHAN_GRACE_S):
        """Ends adopted processes; returns a line for each that did not end by itself."""
        mine = {running.popen.pid for running in self._running}
        left, end = [], time.monotonic() + grace_s
        # Each round may bring the children of those it ended; a tree is not deeper than this.
        for _ in range(1000):
            orphans = [pid for pid in _children() if pid not in mine]
            orphans = [pid for pid in orphans if not _reap(pid)]
            if not orphans:
                break
            if time.monotonic() >= end:
                for pid in orphans:
                    left.append(f"{pid} {_command(pid)}")
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        return sorted(set(left))


def _children():
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
        return [int(pid) for pid in file.read().split()]


def _reap(pid):
    """True when the child is gone."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def _command(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "?"
