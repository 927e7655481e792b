"""The demo as a user runs it: short, to its end, and stopped half-way."""

import os
import re
import shutil
import signal
import subprocess
import xml.etree.ElementTree
import tempfile

import pytest

from harness.processes import Process, wait_until
from harness.sluice import ROOT, build_dir

# What scripts/test waits for this file: two whole runs with failovers, four scenarios, and two that
# are stopped.
SUITE_TIMEOUT_S = 760

DEMO = os.path.join(ROOT, "scripts", "demo")
SAMPLE_LINE = '{ip} - - [17/May/2015:10:{minute:02d}:03 +0000] "GET {path} HTTP/1.1" 200 1 "-" "{agent}"\n'


def processes_with(text):
    """The pids of processes that have `text` in their command line."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if text.encode() in file.read():
                    found.append(int(pid))
        except OSError:
            pass
    return found


class Run:
    """One run of scripts/demo with a temporary folder of its own, so that leftovers show."""

    def __init__(self, folder, *arguments):
        self.temporary = os.path.join(folder, "t")
        os.mkdir(self.temporary)
        env = {"TMPDIR": self.temporary, "SLUICE_BUILD": build_dir()}
        self.process = Process([DEMO, *arguments], os.path.join(folder, "log"), env=env)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # In order first: a demo that is killed outright cannot remove its folder.
        self.process.send(signal.SIGTERM)
        try:
            self.process.wait(60)
        finally:
            self.process.close()

    def output(self):
        return self.process.log()

    def left_processes(self):
        return processes_with(self.temporary)

    def left_files(self):
        return sorted(os.listdir(self.temporary))


@pytest.fixture(name="folder")
def _folder():
    # Short: Unix sockets' paths are.
    folder = tempfile.mkdtemp(prefix="sl-", dir="/tmp")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def check_whole_run(run, plot_folder):
    """What every run that was not stopped must show."""
    text = run.output()
    assert run.process.returncode == 0, text
    assert "killed the Redis primary" in text
    assert "recovered" in text
    assert text.count("alarm raised: degraded:metadata") == 1
    assert text.count("alarm cleared: degraded:metadata") == 1
    assert re.search(r"^ +\d+s +[\d,]+ ", text, re.MULTILINE), "no line a second"
    assert re.search(r"metadata .*held", text) and "every limit held" in text
    assert "EXCEEDED" not in text
    path = re.search(r"^plot: (.+\.svg)$", text, re.MULTILINE)[1]
    assert os.path.dirname(path) == plot_folder
    svg = xml.etree.ElementTree.parse(path).getroot()
    assert svg.tag.endswith("svg")
    words = " ".join(element.text or "" for element in svg.iter())
    for word in ("limit", "allowed", "emergency", "seconds since the start"):
        assert word in words
    assert run.left_processes() == []
    assert run.left_files() == ([os.path.basename(path)] if plot_folder == run.temporary else [])


@pytest.mark.timeout_s(300)
def test_the_demo_holds_every_limit_and_leaves_only_its_plot(folder):
    with Run(folder, "--seconds", "12") as run:
        run.process.wait(240)
        check_whole_run(run, run.temporary)


@pytest.mark.slow
@pytest.mark.timeout_s(300)
def test_the_demo_replays_a_log_with_odd_lines(folder):
    log = os.path.join(folder, "access.log")
    with open(log, "w", encoding="utf-8") as file:
        for i in range(3000):
            file.write(SAMPLE_LINE.format(ip=f"10.{i % 7}.{i % 5}.{i % 23}", minute=i // 60,
                                          path=("/a/x", "/b/y", "/c/z")[i % 3], agent=i % 11))
            if i % 500 == 0:
                file.write("garbage\n")
    plot = os.path.join(folder, "plots")
    os.mkdir(plot)
    with Run(folder, "--seconds", "12", "--log", log, "--svg", os.path.join(plot, "p.svg")) as run:
        run.process.wait(240)
        assert "6 malformed" in run.output()
        check_whole_run(run, plot)


@pytest.mark.timeout_s(200)
@pytest.mark.parametrize("scenario, rows", [
    ("algorithms", ["token-bucket", "leaky-bucket", "fixed-window", "sliding-window",
                    "sliding-log"]),
    ("strict", ["strict", "overdraft", "approximate"]),
    ("regions", ["moved", "closed", "open", "local"]),
])
def test_a_scenario_shows_its_limits_side_by_side(folder, scenario, rows):
    with Run(folder, "--scenario", scenario) as run:
        run.process.wait(150)
        text = run.output()
        assert run.process.returncode == 0, text
        assert "every limit held" in text
        for row in rows:
            assert re.search(rf"^{row} +[\d,]+ +[\d,]+ ", text, re.MULTILINE), text
        path = re.search(r"^plot: (.+\.svg)$", text, re.MULTILINE)[1]
        words = " ".join(e.text or "" for e in xml.etree.ElementTree.parse(path).iter())
        for row in rows:
            assert row in words
        assert run.left_processes() == []
        assert run.left_files() == [os.path.basename(path)]


@pytest.mark.timeout_s(200)
def test_what_products_ask_for_is_shown_act_by_act(folder):
    with Run(folder, "--scenario", "products") as run:
        run.process.wait(150)
        text = run.output()
        assert run.process.returncode == 0, text
        for act in ("reserve, then settle", "in flight", "priority", "penalty",
                    "quota by the calendar", "candidate", "levels"):
            assert re.search(rf"^{act}\n  \S", text, re.MULTILINE), text
        assert "every limit held" in text and "WRONG" not in text
        assert run.left_processes() == []
        assert run.left_files() == []


def test_a_scenario_takes_no_traffic_of_its_own(folder):
    with Run(folder, "--scenario", "strict", "--seconds", "20") as run:
        run.process.wait(60)
        assert run.process.returncode == 2
        assert "--log and --seconds are for the failover" in run.output()


@pytest.mark.timeout_s(200)
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_stopped_leaves_nothing(folder, signum):
    with Run(folder, "--seconds", "60") as run:
        run.process.wait_for(lambda: re.search(r"^ +2s ", run.output(), re.MULTILINE), 120,
                             "it runs")
        assert len(run.left_processes()) >= 8  # six servers and two daemons at least
        # As a terminal does on Ctrl-C: to the whole foreground group, which the children left.
        os.killpg(run.process.pid, signum)
        assert run.process.wait(60) == 128 + signum
        assert run.left_processes() == []
        assert run.left_files() == []


@pytest.mark.timeout_s(200)
def test_children_of_a_demo_that_was_killed_die_with_it(folder):
    with Run(folder, "--seconds", "60") as run:
        run.process.wait_for(lambda: re.search(r"^ +2s ", run.output(), re.MULTILINE), 120,
                             "it runs")
        run.process.kill()
        wait_until(lambda: run.left_processes() == [], 30, "its children are gone")


@pytest.mark.parametrize("arguments, said", [
    (("--seconds", "1"), "--seconds takes"), (("--nonsense",), "unrecognized"),
    (("--log", "/nonexistent"), "No such file")])
def test_wrong_arguments_are_refused_before_anything_starts(arguments, said):
    env = dict(os.environ, SLUICE_BUILD=build_dir())
    done = subprocess.run([DEMO, *arguments], env=env, capture_output=True, text=True, check=False,
                          timeout=110)
    assert done.returncode not in (0, 130)
    assert said in done.stderr
    assert "starting a Redis Cluster" not in done.stdout
