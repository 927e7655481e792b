"""The demo: a Redis Cluster, two daemons, replaying clients, a killed primary, and the account.

Started by scripts/demo, which builds first. Standard library only.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time

import admin
import bounds
import children
import plot
import report
from children import Child, DemoError
from clients import Client, Totals
from cluster import SLOTS, Cluster, call
from limits import HOSTS, SHARDS, Plan, is_plain, shard_of
from products import Products
from regions import Regions
from scenarios import Algorithms, Strict
from watcher import HEALTHY, Watcher

CLIENTS_PER_HOST = 3
RATE = 24_000  # requests/s over all clients
GENERATOR = "keys=3000,skew=0.9,tenants=16,addresses=60"
GENERATED_ROUTES = ("/v1/metadata", "/v1/generate")
READY_S = 40.0
# A failover with a node timeout of 2 s takes about 5 s, and 2 s more until emergency is left.
RECOVERY_S = 25.0
CALM_S = 3.0  # normal running after the recovery
MIN_SECONDS, DEFAULT_SECONDS, MAX_SECONDS = 10, 30, 3600
SOCKET_PATH_MAX = 100
SCENARIOS = {"algorithms": Algorithms, "strict": Strict, "regions": Regions,
             "products": Products}


class Stopped(Exception):
    """A signal asked the demo to end."""

    def __init__(self, signum):
        super().__init__(signum)
        self.signum = signum


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description="Runs a private Redis Cluster, two sluice daemons that stand for two hosts, and "
        "clients that replay traffic; kills a Redis primary half-way; compares what was allowed "
        "with what the limits permit. Leaves nothing behind but a plot.",
        epilog="Exit codes: 0 every limit held, 1 a limit was exceeded beyond its bound or the demo "
        "could not run, 130 stopped by Ctrl-C.")
    parser.add_argument("--scenario", choices=("failover", *SCENARIOS), default="failover",
                        help="failover (default): as above. algorithms: one limit by each of them, "
                        "under the same arrivals. strict: one limit over two hosts by each consistency. "
                        "regions: three clusters far apart, a home that moves, a region that is "
                        "cut off. products: reservations, requests in flight, priority, "
                        "bans, quotas, candidates and levels, by a few requests each")
    parser.add_argument("--log", metavar="FILE",
                        help="replay this Apache or nginx access log (default: generated traffic)")
    parser.add_argument("--seconds", type=int, metavar="N",
                        help="how long (default 30); longer when the recovery takes longer")
    parser.add_argument("--svg", metavar="FILE", help="where the plot goes (default: a new file in "
                        "the temporary folder)")
    parser.add_argument("--keep", action="store_true",
                        help="keep the folder with logs and configurations, and say where it is")
    parser.add_argument("--build", help=argparse.SUPPRESS, required=True)
    parser.add_argument("--only-parse", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.scenario != "failover" and (arguments.log or arguments.seconds is not None):
        parser.error("--log and --seconds are for the failover: a scenario has its own arrivals")
    if arguments.seconds is None:
        arguments.seconds = DEFAULT_SECONDS
    if not MIN_SECONDS <= arguments.seconds <= MAX_SECONDS:
        parser.error(f"--seconds takes {MIN_SECONDS} to {MAX_SECONDS}")
    if arguments.log:
        try:
            with open(arguments.log, "rb"):
                pass
        except OSError as error:
            parser.error(f"--log {arguments.log}: {error.strerror}")
    if arguments.only_parse:
        sys.exit(0)
    return arguments


class Host:
    """One daemon with a runtime folder and a name of its own."""

    def __init__(self, name, sluiced, folder, plan, addresses):
        self.name = name
        self.runtime_dir = os.path.join(folder, name)
        os.mkdir(self.runtime_dir, 0o755)
        self.admin_socket = os.path.join(self.runtime_dir, "admin.sock")
        config = os.path.join(folder, f"{name}.yaml")
        with open(config, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(plan.yaml(self.runtime_dir, name, addresses))
        self.child = Child(f"sluiced ({name})", [sluiced, "--config", config],
                           os.path.join(folder, f"{name}.log"))

    def is_ready(self):
        self.child.require_running()
        try:
            modes = admin.metrics(self.admin_socket).get("sluice_shard_mode", [])
        except OSError:
            return False
        return len(modes) == SHARDS and all(value == HEALTHY for _, value in modes)


class Demo:
    def __init__(self, arguments, folder):
        self.arguments = arguments
        self.folder = folder
        self.sluiced = os.path.join(arguments.build, "daemon", "sluiced")
        self.sluicectl = os.path.join(arguments.build, "ctl", "sluicectl")
        for path in (self.sluiced, self.sluicectl):
            if not os.access(path, os.X_OK):
                raise DemoError(f"{path} is missing: run scripts/demo, which builds it")
        if len(os.path.join(folder, "host-1", "attach.sock")) > SOCKET_PATH_MAX or (
                not is_plain(folder)):
            raise DemoError(f"{folder} will not do for Unix sockets: set TMPDIR to a short path")
        for program in ("redis-server", "redis-cli"):
            if shutil.which(program) is None:
                raise DemoError(f"{program} is not installed: scripts/install-deps core")

    def run(self):
        """Returns the exit code."""
        report.say("looking at the traffic")
        self.plan = self._make_plan()
        report.say("starting a Redis Cluster: 3 primaries, 3 replicas")
        self.cluster = Cluster(self.folder)
        report.say("starting two daemons")
        self.hosts = [Host(f"host-{n + 1}", self.sluiced, self.folder, self.plan,
                           self.cluster.addresses()) for n in range(HOSTS)]
        self._wait_ready()
        report.rules(self.plan)
        report.say(f"starting {CLIENTS_PER_HOST} client processes on each host, "
                   f"{RATE:,} requests/s in all")
        self.start = time.monotonic()
        self.totals = Totals(self.start)
        self.watcher = Watcher({host.name: host.admin_socket for host in self.hosts}, self.start)
        self.clients = self._start_clients()
        kill_s, recovered_s = self._watch_run()
        for client in self.clients:
            client.child.terminate()
        for client in self.clients:
            client.stop()
        end_s = self.totals.last_end_s
        self.watcher.stop()
        return self._account(end_s, kill_s, recovered_s)

    def _traffic(self, index):
        """What client `index` replays."""
        count = HOSTS * CLIENTS_PER_HOST
        if self.arguments.log:
            return [self.arguments.log, "--rate", str(RATE / count), "--loop"]
        return ["--generate", f"{GENERATOR},seed={index + 1},rate={RATE / count}"]

    def _make_plan(self):
        done = report.run_json([self.sluicectl, "replay", *self._traffic(0), "--dry-run", "--json",
                                "--top", "200"])
        top = next(line["descriptors"] for line in done if line["type"] == "top")
        routes = GENERATED_ROUTES
        if self.arguments.log:
            report.log_found(next(line for line in done if line["type"] == "log"))
            routes = [value["value"] for value in top.get("route", [])
                      if value["value"].startswith("/") and is_plain(value["value"])][:2]
            if len(routes) < 2:
                raise DemoError("the log has fewer than two routes")
        return Plan(top, RATE, routes)

    def _wait_ready(self):
        end = time.monotonic() + READY_S
        while not all(host.is_ready() for host in self.hosts):
            if time.monotonic() > end:
                logs = "".join(f"  {host.name}:\n{host.child.log_tail()}" for host in self.hosts)
                raise DemoError(f"the daemons are not in step with Redis after {READY_S:.0f} s:\n"
                                f"{logs}")
            time.sleep(0.05)

    def _start_clients(self):
        return [Client(f"client {index + 1} on {host.name}", self.sluicectl, self._traffic(index),
                       host.runtime_dir, self.plan.watched,
                       os.path.join(self.folder, f"client-{index + 1}.log"), self.totals)
                for index, host in ((i, self.hosts[i % HOSTS])
                                    for i in range(HOSTS * CLIENTS_PER_HOST))]

    def _watch_run(self):
        """Prints each second; kills a primary half-way. Returns when it was killed and healed."""
        seconds = self.arguments.seconds
        kill_s = recovered_s = None
        was_out = False
        alarms = {}
        next_line = 1
        while True:
            now_s = time.monotonic() - self.start
            if kill_s is None and now_s >= seconds / 2:
                kill_s = self._kill_primary()
            if kill_s is not None and recovered_s is None:
                modes = [mode for sample in self.watcher.latest() for mode in sample.modes]
                was_out = was_out or any(mode != HEALTHY for mode in modes)
                if was_out and modes and all(mode == HEALTHY for mode in modes):
                    recovered_s = now_s
                    report.event(now_s, f"recovered, {now_s - kill_s:.1f} s after the kill: "
                                 "all limits are shared again")
            alarms = report.alarms(now_s, alarms, self.watcher.alarms())
            # A second is printed when the clients' reports of it have surely come.
            if now_s >= next_line + 0.4:
                report.second(next_line, self.totals.second(next_line - 1),
                              self.watcher.worst(next_line - 1), self.plan)
                next_line += 1
            if now_s >= seconds and kill_s is not None:
                if recovered_s is not None and now_s >= recovered_s + CALM_S:
                    return kill_s, recovered_s
                if now_s >= kill_s + RECOVERY_S + CALM_S:
                    return kill_s, recovered_s
            for child in (*(h.child for h in self.hosts), *(c.child for c in self.clients)):
                child.require_running()
            time.sleep(0.05)

    def _kill_primary(self):
        """SIGKILLs the primary that holds most of the busiest watched buckets."""
        owners = self.cluster.owners()

        def owner(shard):
            slot = shard * SLOTS // SHARDS
            return next(node for first, last, node in owners if first <= slot <= last)

        limits = self.plan.by_label()
        best = {}  # (node's port, label) -> how much its busiest bucket was denied
        for (label, descriptor, value), (asked, denied) in self.totals.snapshot().items():
            if label in limits and limits[label].key == descriptor and asked:
                port = owner(shard_of(label, value)).port
                best[port, label] = max(best.get((port, label), 0),
                                        min(denied / limits[label].rate, 5))
        # The two routes with a word of their own are what there is to see.
        weight = {"metadata": 3, "generate": 3}
        nodes = {node.port: node for _, _, node in owners}
        victim = max(nodes.values(), key=lambda node: sum(
            score * weight.get(label.split("@")[0], 1)
            for (port, label), score in best.items() if port == node.port))
        victim.child.kill()
        now_s = time.monotonic() - self.start
        shards = sum(owner(shard) is victim for shard in range(SHARDS))
        report.event(now_s, f"killed the Redis primary {victim.address} (SIGKILL): "
                     f"{shards} of {SHARDS} shards are without a primary")
        return now_s

    def _account(self, end_s, kill_s, recovered_s):
        rows = bounds.rows(self.plan, self.totals, self.watcher, shard_of, end_s)
        table = bounds.shown(rows)
        report.table(table, rows, end_s)
        self._write_plot(table, end_s, kill_s)
        problems = []
        if not rows:
            problems.append("no watched bucket was used: there is nothing to compare")
        exceeded = [row for row in rows if not row.holds]
        if exceeded:
            problems.append(f"{len(exceeded)} of {len(rows)} watched buckets exceeded their bound")
        if not any(row.outage for row in rows):
            problems.append("no watched bucket saw an emergency")
        if recovered_s is None:
            problems.append(f"no recovery within {RECOVERY_S:.0f} s of the kill")
        if self.totals.errors or self.totals.defaults:
            problems.append(f"{self.totals.errors} checks ended in an error, "
                            f"{self.totals.defaults} were answered by default")
        report.verdict(problems, rows, self.totals)
        return 1 if problems else 0

    def _write_plot(self, table, end_s, kill_s):
        wanted = [row for row in table if row.outage]
        wanted += [row for row in table if not row.outage and row.reached][:2]
        ages = [(sample.at_s, max(sample.age_s, 0)) for host in self.watcher.samples.values()
                for sample in host]
        by_time = {}
        for at_s, age_s in ages:
            bucket = round(at_s * 5) / 5
            by_time[bucket] = max(by_time.get(bucket, 0), age_s)
        traffic = os.path.basename(self.arguments.log) if self.arguments.log else "generated"
        text = plot.draw(wanted, sorted(by_time.items()), end_s, kill_s,
                         f"{RATE:,} requests/s of {traffic} traffic by "
                         f"{HOSTS * CLIENTS_PER_HOST} client processes on {HOSTS} hosts")
        if self.arguments.svg:
            path = os.path.abspath(self.arguments.svg)
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
        else:
            fd, path = tempfile.mkstemp(prefix="sluice-demo-", suffix=".svg")
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(path, 0o644)
        print(f"plot: {path}", flush=True)


def main():
    arguments = parse_arguments()
    children.adopt_orphans()

    def stop(signum, _):
        raise Stopped(signum)

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, stop)
    # A Unix socket's path has 107 bytes at most: see the check in Demo.
    folder = tempfile.mkdtemp(prefix="sluice-demo-")
    code = 1
    try:
        code = SCENARIOS.get(arguments.scenario, Demo)(arguments, folder).run()
    except Stopped as stopped:
        code = 128 + stopped.signum
        report.note("stopped; cleaning up")
    except DemoError as error:
        report.note(f"demo: {error}")
    except BrokenPipeError:
        # Nobody reads any more; nothing may be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        children.end_all()
        if arguments.keep:
            report.note(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
