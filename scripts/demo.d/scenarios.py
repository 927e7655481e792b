"""Scenarios beside the failover: one kind of limit against another, under the same arrivals."""

import json
import os
import random
import sys
import tempfile
import time

import admin
import measure
import report
from children import Child, DemoError
from cluster import Cluster
from comparison import ASKED, draw
from watcher import HEALTHY

START_AFTER_S = 1.5  # so that all clients are there at second 0
END_S = 30.0         # beyond the last arrival, for a client's report
KEY = "acme"


def arrivals(seed, phases):
    """Poisson arrivals: `phases` are (from_s, to_s, per second)."""
    chance = random.Random(seed)
    instants = []
    for begin, end, rate in phases:
        at = begin
        while rate > 0:
            at += chance.expovariate(rate)
            if at >= end:
                break
            instants.append(at)
    return instants


def evenly(phases):
    """The same at equal distances."""
    return [begin + i / rate for begin, end, rate in phases
            for i in range(round((end - begin) * rate))]


class Scenario:
    """Rules that are asked for the same key at the same instants, by clients on `hosts` hosts."""

    hosts = 1
    seconds = 0.0
    rules = ()     # (label, lines of YAML)
    title = ""

    def __init__(self, arguments, folder):
        self.arguments = arguments
        self.folder = folder
        self.sluiced = os.path.join(arguments.build, "daemon", "sluiced")
        self.library = os.path.join(arguments.build, "client", "libsluice.so.0")
        self.cluster = None
        self.daemons = []
        self.told_by = []  # (host, {label: as by _ask()}) of each client, at the end

    def timetables(self):
        """[(host, [instants of one of its clients])]."""
        raise NotImplementedError

    def events(self):
        """[(second, what is said then, a call)] of what happens meanwhile, in order."""
        return []

    def judge(self, told):
        """Prints the table; returns (problems, panels of the plot)."""
        raise NotImplementedError

    def start(self):
        """Redis where there are several hosts, and a daemon on each, which serves."""
        if self.hosts > 1:
            self.start_redis()
        report.say(f"starting {self.hosts} daemon{'s' if self.hosts > 1 else ''}")
        for host in range(self.hosts):
            self.daemons.append(self._start(host))
        self._wait_ready(self.hosts > 1)

    @staticmethod
    def conclude(problems):
        """The exit code."""
        for problem in problems:
            report.note(f"demo: {problem}")
        if not problems:
            print("every limit held", flush=True)
        return 1 if problems else 0

    def run(self):
        self.start()
        report.say(f"{self.title}; {self.seconds:.0f} s")
        for _, lines in self.rules:
            print("\n".join(f"    {line}" for line in lines), flush=True)
        told = self._ask()
        problems, panels = self.judge(told)
        self._write_plot(panels)
        return self.conclude(problems)

    def start_redis(self):
        report.say("starting a Redis Cluster: 3 primaries, 3 replicas")
        self.cluster = Cluster(self.folder)

    def redis_lines(self, host):
        """What stands under `redis:` in the file of one host."""
        if self.cluster is None:
            return []
        addresses = ", ".join(f'"{address}"' for address in self.cluster.addresses())
        return [f"addresses: [{addresses}]", f"host_name: host-{host + 1}"]

    def write_config(self, host, rules):
        """Returns the path. The daemon takes over by itself what is written anew."""
        runtime_dir = os.path.join(self.folder, f"host-{host + 1}")
        lines = ["daemon:", f'  runtime_dir: "{runtime_dir}"']
        redis = self.redis_lines(host)
        if redis:
            lines += ["redis:", *(f"  {line}" for line in redis)]
        lines.append("rules:")
        for label, rule in rules:
            lines += [f"  - name: {label}", *(f"    {line}" for line in rule)]
        path = f"{runtime_dir}.yaml"
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
        os.replace(f"{path}.new", path)
        return path

    def _start(self, host):
        runtime_dir = os.path.join(self.folder, f"host-{host + 1}")
        os.mkdir(runtime_dir, 0o755)
        child = Child(f"sluiced (host-{host + 1})",
                      [self.sluiced, "--config", self.write_config(host, self.rules)],
                      f"{runtime_dir}.log")
        return runtime_dir, child

    def _wait_ready(self, has_redis, seconds=40.0):
        end_s = time.monotonic() + seconds
        for runtime_dir, child in self.daemons:
            while True:
                child.require_running()
                try:
                    modes = admin.metrics(os.path.join(runtime_dir, "admin.sock")).get(
                        "sluice_shard_mode", [])
                    if not has_redis or (modes and all(value == HEALTHY for _, value in modes)):
                        break
                except OSError:
                    pass
                if time.monotonic() > end_s:
                    raise DemoError(f"no daemon is ready after {seconds:.0f} s:\n"
                                    f"{child.log_tail()}")
                time.sleep(0.05)

    def _ask(self):
        """{label: {"asked": [s], "allowed": [(s, delay s)]}} over all clients, in order."""
        start_ns = time.monotonic_ns() + int(START_AFTER_S * 1e9)
        asker = os.path.join(os.path.dirname(os.path.abspath(__file__)), "asker.py")
        labels = [label for label, _ in self.rules]
        clients = []
        asked = []
        for number, (host, instants) in enumerate(self.timetables()):
            timetable = os.path.join(self.folder, f"arrivals-{number}")
            with open(timetable, "w", encoding="ascii") as file:
                file.writelines(f"{at:.6f}\n" for at in instants)
            asked += instants
            argv = [sys.executable, "-B", asker, self.library, self.daemons[host][0],
                    str(start_ns), timetable, KEY, *labels]
            clients.append((host, Child(f"client {number + 1}", argv,
                                        os.path.join(self.folder, f"client-{number}.log"),
                                        piped=True)))
        self._let_happen(start_ns)
        allowed = {label: [] for label in labels}
        for host, client in clients:
            output, _ = client.popen.communicate(timeout=START_AFTER_S + self.seconds + END_S)
            if client.popen.returncode != 0:
                raise DemoError(f"{client.name} ended with {client.popen.returncode}:\n"
                                f"{client.log_tail()}")
            pairs = {label: [((at - start_ns) / 1e9, delay / 1e9) for at, delay in told["allowed"]]
                     for label, told in json.loads(output).items()}
            self.told_by.append((host, pairs))
            for label, of_client in pairs.items():
                allowed[label] += of_client
        for _, daemon in self.daemons:
            daemon.require_running()
        return sorted(asked), {label: sorted(pairs) for label, pairs in allowed.items()}

    def _let_happen(self, start_ns):
        for at_s, said, happen in self.events():
            time.sleep(max(0.0, at_s + (start_ns - time.monotonic_ns()) / 1e9))
            report.event(at_s, said)
            happen()

    def _write_plot(self, panels):
        text = draw(self.title, panels, self.seconds)
        path = self.arguments.svg and os.path.abspath(self.arguments.svg)
        if path is None:
            fd, path = tempfile.mkstemp(prefix="sluice-demo-", suffix=".svg")
            os.close(fd)
            os.chmod(path, 0o644)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        print(f"plot: {path}", flush=True)


class Algorithms(Scenario):
    """Each algorithm at the same limit; the first window begins with the first request."""

    limit, window_s = 500, 5.0
    seconds = 16.0
    title = "500 requests in 5 s by each algorithm, under the same arrivals on one host"
    rules = tuple((name, (f"algorithm: {name.replace('-', '_')}", "key: [tenant]",
                          "limit: 500 per 5s", *more)) for name, more in (
        ("token-bucket", ()), ("leaky-bucket", ("max_delay: 1s",)), ("fixed-window", ()),
        ("sliding-window", ()), ("sliding-log", ())))

    def timetables(self):
        # A trickle begins the first window; a crowd comes from shortly before its end on.
        return [(0, evenly(((0.0, 4.4, 20), (4.4, 12.4, 1000), (12.4, 16.0, 20))))]

    def judge(self, told):
        asked, allowed = told
        rate = self.limit / self.window_s
        problems, panels = [], []
        print(f"\n{'algorithm':<16} {'asked':>6} {'allowed':>8} {'most in 1 s':>12} "
              f"{'most in 5 s':>12} {'longest wait':>13}", flush=True)
        for label, pairs in allowed.items():
            go_on = sorted(at + delay for at, delay in pairs)
            most = measure.most_in(go_on, self.window_s)
            wait_s = max(delay for _, delay in pairs)
            print(f"{label:<16} {len(asked):>6} {len(pairs):>8} {measure.most_in(go_on, 1.0):>12} "
                  f"{most:>12} {wait_s:>11.2f} s", flush=True)
            burst = {"leaky-bucket": 1, "fixed-window": 2 * self.limit}.get(label, self.limit)
            excess = measure.over(go_on, rate, burst)
            if excess > 1e-3:
                problems.append(f"{label} let {excess:.1f} too many through")
            # The times are the asker's, taken beside the check: a few per cent at either edge.
            if label == "sliding-log" and most > 1.02 * self.limit:
                problems.append(f"{label} let {most} through in {self.window_s:g} s")
            panels.append((label, go_on, rate))
        return problems, [(ASKED, asked, rate), *panels]


class Strict(Scenario):
    """The same limit by each consistency, where all of a crowd comes to two hosts at once."""

    hosts = 2
    rate, burst = 500, 100
    seconds = 16.0
    title = "500/s with a burst of 100 over two hosts, by each consistency"
    rules = tuple((name, (f"consistency: {name}", "key: [tenant]", "limit: 500/s", "burst: 100"))
                  for name in ("strict", "overdraft", "approximate"))

    def timetables(self):
        crowd = (2.0, 5.0, 1200)
        steady = (6.0, 9.0, 225)
        first = [crowd, steady, *((s, s + 1, 1000) for s in (10, 12, 14))]
        second = [crowd, steady, *((s, s + 1, 1000) for s in (11, 13, 15))]
        return [(0, arrivals(1, first)), (1, arrivals(2, second))]

    def judge(self, told):
        asked, allowed = told
        best = measure.perfect(asked, self.rate, self.burst)
        problems, panels = [], [(ASKED, asked, self.rate)]
        print(f"\n{'consistency':<14} {'asked':>7} {'allowed':>8} {'of what one bucket allows':>26} "
              f"{'over, worst window':>19}", flush=True)
        for label, pairs in allowed.items():
            instants = [at for at, _ in pairs]
            excess = measure.over(instants, self.rate, self.burst)
            print(f"{label:<14} {len(asked):>7} {len(instants):>8} "
                  f"{100 * len(instants) / best:>24.1f} % {excess:>12.1f} tokens", flush=True)
            # What overdraws stays within an allowance of each host, and is paid back.
            permitted = {"strict": 0, "overdraft": self.hosts * self.burst}.get(label)
            if permitted is not None and excess > permitted + 1e-3:
                problems.append(f"{label} let {excess:.1f} tokens too many through")
            panels.append((label, instants, self.rate))
        return problems, panels
