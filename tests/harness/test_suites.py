"""The counting of the test run: a failure must not be able to hide."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap

import pytest

from harness.processes import Process, is_running, run, wait_until
from harness.sluice import ROOT

TESTS = os.path.join(ROOT, "tests")
# Runs the suites given as JSON and prints what came of each; in a process of its own, since it
# adopts orphans.
DRIVER = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
from harness.suites import Runner, Suite
runner = Runner(sys.argv[2], 2)
suites = [Suite(**suite) for suite in json.loads(sys.argv[3])]
try:
    runner.run(suites, time.monotonic() + float(sys.argv[4]))
finally:
    runner.close()
print("RESULT", json.dumps({r.name: [r.passed, len(r.skipped), r.failures]
                            for r in runner.results}))
"""
GTEST_XML = """<?xml version="1.0"?><testsuites tests="4" failures="1"><testsuite name="S">
<testcase name="Works" status="run" result="completed" classname="S"/>
<testcase name="Breaks" status="run" result="completed" classname="S">
  <failure message="expected 1, got 2"/></testcase>
<testcase name="Skips" status="run" result="skipped" classname="S"><skipped message="no"/></testcase>
<testcase name="Off" status="notrun" result="suppressed" classname="S"/>
</testsuite></testsuites>"""


def outcome(tmp_path, *suites, deadline_s=60):
    done = run([sys.executable, "-c", DRIVER, TESTS, tmp_path / "logs", json.dumps(suites),
                deadline_s], 60)
    return json.loads(re.search(r"^RESULT (.*)$", done.stdout, re.MULTILINE)[1])


def shell(name, script, **more):
    return {"name": name, "argv": ["/bin/sh", "-c", script], **more}


def test_a_program_without_a_report_is_one_case(tmp_path):
    assert outcome(tmp_path, shell("good", "exit 0"), shell("bad", "exit 3"),
                   shell("skipped", "exit 77")) == {
        "good": [1, 0, []], "bad": [0, 0, [["exit", "the program ended with 3"]]],
        "skipped": [0, 1, []]}


def test_a_program_that_is_killed_by_a_signal_is_a_failure(tmp_path):
    assert outcome(tmp_path, shell("crash", "kill -SEGV $$")) == {
        "crash": [0, 0, [["exit", "the program was killed by SIGSEGV"]]]}


def test_the_cases_of_a_gtest_report_are_counted_each(tmp_path):
    (tmp_path / "source.xml").write_text(GTEST_XML)
    report = str(tmp_path / "report.xml")
    assert outcome(tmp_path, shell("unit", f"cp {tmp_path}/source.xml {report}; exit 1",
                                   report=report)) == {
        "unit": [1, 1, [["S.Breaks", "expected 1, got 2"]]]}


def test_a_program_that_may_report_is_counted_by_its_cases_or_as_one(tmp_path):
    (tmp_path / "source.xml").write_text(GTEST_XML)
    assert outcome(
        tmp_path,
        shell("with", f"cp {tmp_path}/source.xml {tmp_path}/with.xml; exit 1",
              report=str(tmp_path / "with.xml"), may_report=True),
        shell("without", "exit 0", report=str(tmp_path / "without.xml"), may_report=True),
        shell("crash", "kill -SEGV $$", report=str(tmp_path / "crash.xml"), may_report=True)) == {
        "with": [1, 1, [["S.Breaks", "expected 1, got 2"]]],
        "without": [1, 0, []],
        "crash": [0, 0, [["exit", "the program was killed by SIGSEGV"]]]}


def test_a_gtest_program_that_exits_in_the_middle_is_a_failure(tmp_path):
    assert outcome(tmp_path, shell("exits", "echo '[==========] Running 3 tests'; exit 0",
                                   report=str(tmp_path / "r.xml"), may_report=True)) == {
        "exits": [0, 0, [["report", "the program ended in the middle of its cases"]]]}


def test_a_report_of_an_earlier_run_is_not_counted_for_a_program_that_crashed(tmp_path):
    report = tmp_path / "report.xml"
    report.write_text(GTEST_XML.replace('<failure message="expected 1, got 2"/>', ""))
    assert outcome(tmp_path, shell("unit", "kill -ABRT $$", report=str(report))) == {
        "unit": [0, 0, [["exit", "the program was killed by SIGABRT"]]]}


def test_a_suite_in_which_no_case_ran_is_a_failure(tmp_path):
    report = str(tmp_path / "report.xml")
    assert outcome(tmp_path, shell("none", f"echo '<testsuites/>' > {report}", report=report)) == {
        "none": [0, 0, [["empty", "no case ran"]]]}


def test_a_suite_that_hangs_is_ended_and_is_a_failure(tmp_path):
    assert outcome(tmp_path, shell("hang", "sleep 600", timeout_s=0.3)) == {
        "hang": [0, 0, [["timeout", "took longer than 0.3 s"]]]}


def test_what_has_not_begun_when_the_time_is_up_is_a_failure(tmp_path):
    assert outcome(tmp_path, shell("late", "exit 0"), deadline_s=0) == {
        "late": [0, 0, [["not run", "the test run's time was up"]]]}


def test_a_process_that_outlives_its_suite_is_ended_and_is_a_failure(tmp_path):
    pid_file = tmp_path / "pid"
    # It ends once the other has left its session: before that, it would be ended with it.
    seen = outcome(tmp_path, shell("leaky", f"setsid sh -c 'echo $$ > {pid_file}; exec sleep 600' & "
                                   f"for _ in $(seq 500); do test -s {pid_file} && exit 0; "
                                   "sleep 0.01; done; exit 1"))
    passed, _, failures = seen["leaky"]
    assert passed == 1
    assert len(failures) == 1 and failures[0][0] == "left behind"
    assert not is_running(pid_file.read_text().strip())


def meets(tmp_path, own, other):
    """A script that ends well only when one like it, with the names exchanged, runs beside it."""
    return (f"touch {tmp_path}/{own}; for _ in $(seq 100); do "
            f"test -e {tmp_path}/{other} && sleep 0.2 && exec rm {tmp_path}/{own}; "
            "sleep 0.05; done; exit 1")


def test_suites_that_wait_go_side_by_side_and_others_by_themselves(tmp_path):
    seen = outcome(tmp_path, shell("alone", f"test -z \"$(ls {tmp_path}/*.here)\""),
                   shell("a", meets(tmp_path, "a.here", "b.here"), waits=True),
                   shell("b", meets(tmp_path, "b.here", "a.here"), waits=True))
    assert seen == {"alone": [1, 0, []], "a": [1, 0, []], "b": [1, 0, []]}


def test_an_idle_suite_is_behind_the_others(tmp_path):
    assert outcome(tmp_path, shell("idle", "test $(nice) = 19", waits=True, idle=True),
                   shell("other", f"test $(nice) = {os.nice(0)}")) == {
        "idle": [1, 0, []], "other": [1, 0, []]}


def test_an_idle_suite_goes_beside_those_that_go_by_themselves(tmp_path):
    assert outcome(tmp_path, shell("idle", meets(tmp_path, "a.here", "b.here"), idle=True),
                   shell("alone", meets(tmp_path, "b.here", "a.here"))) == {
        "idle": [1, 0, []], "alone": [1, 0, []]}


def write_project(folder):
    """A tree with the real runner and one meson test that does not end."""
    os.makedirs(folder / "tests")
    os.makedirs(folder / "scripts")
    os.symlink(os.path.join(TESTS, "harness"), folder / "tests/harness")
    (folder / "meson_options.txt").write_text(
        "option('tests', type: 'boolean')\noption('bench', type: 'boolean')\n")
    (folder / "meson.build").write_text(textwrap.dedent("""\
        project('p')
        test('forever', find_program('sh'), args: ['-c', 'echo $$ > pid; sleep 600 & wait'],
             workdir: meson.current_source_dir(), timeout: 600)
        """))


@pytest.mark.parametrize("signum, name", [(signal.SIGINT, "SIGINT"), (signal.SIGTERM, "SIGTERM")])
def test_a_stopped_run_ends_what_it_began_and_still_counts(tmp_path, signum, name):
    write_project(tmp_path)
    # Run as the project's own: the runner takes its root from its place.
    runner = tmp_path / "run_tests.py"
    source = open(os.path.join(TESTS, "harness/run_tests.py"), encoding="utf-8").read()
    runner.write_text(re.sub(r"^ROOT = .*$", f"ROOT = {str(tmp_path)!r}", source,
                             flags=re.MULTILINE).replace(
        "os.path.dirname(os.path.dirname(os.path.abspath(__file__)))", repr(TESTS), 1))
    with Process([sys.executable, runner, "--only", "forever"], tmp_path / "log") as process:
        process.wait_for((tmp_path / "pid").exists, 60, "the test has begun")
        pid = wait_until(lambda: int((tmp_path / "pid").read_text()), 10, "its pid is written")
        process.send(signum)
        assert process.wait(20) == 130
        assert process.log().splitlines()[-1] == "0 passed, 1 failed"
        assert f"stopped by {name}" in process.log()
        assert not is_running(pid)


def test_a_run_in_which_nothing_ran_fails(tmp_path):
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {TESTS!r})
        from harness import run_tests
        plan = run_tests.Plan(run_tests.parse(["--build", sys.argv[1]]))
        sys.exit(plan.summary(None))
        """), str(tmp_path)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "0 passed, 1 failed"
