"""The client processes, and what they report.

Every client is `sluicectl replay --json`: a process of its own that attaches through libsluice and
prints what it counted every quarter of a second. A thread a client reads that.
"""

import collections
import json
import threading
import time

from children import Child, DemoError

REPORT_S = 0.25
# Time is cut into bins; a report is spread over those it covers.
BIN_S = 0.25


class Series:
    """A count per bin since the start of the run."""

    def __init__(self):
        self.bins = collections.defaultdict(float)

    def add(self, begin_s, end_s, count):
        """Spreads `count` evenly over [begin_s, end_s)."""
        begin_s = max(begin_s, 0.0)
        length = max(end_s - begin_s, 1e-6)
        at = begin_s
        while at < end_s:
            index = int(at / BIN_S + 1e-9)
            until = min((index + 1) * BIN_S, end_s)
            if until <= at:
                break
            self.bins[index] += count * (until - at) / length
            at = until

    def between(self, begin_s, end_s):
        """The count of the bins that begin in [begin_s, end_s)."""
        first, last = round(begin_s / BIN_S), round(end_s / BIN_S)
        return sum(self.bins.get(index, 0.0) for index in range(first, last))

    def per_second(self, until_s):
        """[(middle of a second, count)], whole seconds only."""
        return [(second + 0.5, self.between(second, second + 1)) for second in range(int(until_s))]


class Watch:
    """One watched bucket: a rule at one value of its key, over all clients."""

    def __init__(self):
        self.asked = 0
        self.allowed = 0
        self.denied = 0  # by this very rule
        self.tokens = 0
        self.tokens_over_time = Series()


class Totals:
    """What all clients reported. Thread-safe."""

    def __init__(self, start):
        self._lock = threading.Lock()
        self.start = start  # time.monotonic() of the run's second 0
        self.last_end_s = 0.0
        self.counts = {name: Series() for name in ("checks", "allowed", "denied", "emergency")}
        self.check_ns = collections.defaultdict(collections.Counter)  # second -> {ns: samples}
        self.errors = 0
        self.defaults = 0
        self.behind_s = 0.0
        self.watches = collections.defaultdict(Watch)  # (label, value) -> Watch
        self.first_lines = 0

    def add(self, report, arrived):
        end_s = arrived - self.start
        begin_s = end_s - report["interval_s"]
        with self._lock:
            self.last_end_s = max(self.last_end_s, end_s)
            for name, series in self.counts.items():
                series.add(begin_s, end_s, report[name])
            samples = self.check_ns[int(max(end_s - report["interval_s"] / 2, 0))]
            for ns, count in report["check_ns"]["histogram"]:
                samples[ns] += count
            self.errors += report["errors"]
            self.defaults += report["defaults"]
            self.behind_s = max(self.behind_s, report["behind_s"])
            for track in report.get("tracks", []):
                for label, rule in track["rules"].items():
                    watch = self.watches[label, track["name"], track["value"]]
                    watch.asked += rule["asked"]
                    watch.allowed += rule["allowed"]
                    watch.denied += rule["denied"]
                    watch.tokens += rule["tokens"]
                    watch.tokens_over_time.add(begin_s, end_s, rule["tokens"])

    def second(self, second):
        """(checks, allowed, denied, p50 ns, p99 ns) of one whole second."""
        with self._lock:
            sums = [self.counts[name].between(second, second + 1)
                    for name in ("checks", "allowed", "denied")]
            samples = self.check_ns.get(second, {})
            return (*sums, quantile(samples, 0.5), quantile(samples, 0.99))

    def snapshot(self):
        """{(label, descriptor, value): (asked, denied)} so far."""
        with self._lock:
            return {key: (watch.asked, watch.denied) for key, watch in self.watches.items()}


def quantile(samples, q):
    """The q-quantile of {value: count}; 0 without samples."""
    wanted, seen = q * sum(samples.values()), 0
    for value in sorted(samples):
        seen += samples[value]
        if seen >= wanted:
            return value
    return 0


class Client:
    """One replaying process and the thread that reads it."""

    def __init__(self, name, sluicectl, traffic, runtime_dir, watched, log_path, totals):
        argv = [sluicectl, "replay", *traffic, "--json", "--report", f"{int(REPORT_S * 1000)}ms",
                "--runtime-dir", runtime_dir]
        for descriptor, value in watched:
            argv += ["--track", f"{descriptor}={value}"]
        self._totals = totals
        self.summary = None
        self.child = Child(name, argv, log_path, piped=True)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        for line in self.child.popen.stdout:
            arrived = time.monotonic()
            try:
                report = json.loads(line)
            except ValueError:
                continue
            if report.get("type") == "report":
                self._totals.add(report, arrived)
            elif report.get("type") == "summary":
                self.summary = report

    def stop(self):
        """Ends it in order, so that its last report is counted."""
        self.child.stop()
        self._thread.join(10)
        if self.summary is None:
            raise DemoError(f"{self.child.name} ended without a summary:\n{self.child.log_tail()}")
