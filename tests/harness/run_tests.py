"""Builds, runs every test and lint check, and counts them; scripts/test calls it.

The last line is `N passed, N failed` (and `, N skipped` where there are any); the exit code is 0
only when something ran and nothing failed.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from harness.suites import Result, Runner, Suite  # pylint: disable=wrong-import-position

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PYTHON = "/usr/bin/python3"
# The whole run takes some 34 minutes on two cores, from nothing; what has not begun by then, on a
# machine that others load, is a failure.
RUN_DEADLINE_S = 70 * 60
BUILD_TIMEOUT_S = 25 * 60
# A Python file's cases together; a file that needs more says SUITE_TIMEOUT_S = seconds, one that
# mostly sleeps SUITE_WAITS = True, and one whose single process does not mind others at work beside
# it SUITE_PARALLEL = True.
PYTEST_TIMEOUT_S = 600
# clang-tidy has what processor time the others leave.
LINT_TIMEOUT_S = 2700
# A gtest program that sets no bound of its own (timeout: 0) gets this one.
UNIT_TIMEOUT_S = 600
# Sanitizers cost a factor of 3 to 15.
SANITIZE_SLOWER = 6

SANITIZERS = {
    "asan": {
        "option": "address,undefined",
        "env": {
            "ASAN_OPTIONS": "detect_stack_use_after_return=1:strict_string_checks=1:exitcode=99",
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        },
    },
    "tsan": {
        "option": "thread",
        "env": {
            "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1:exitcode=99:suppressions="
                            + os.path.join(ROOT, "tests/harness/tsan.supp"),
        },
    },
}


class Stopped(Exception):
    """A signal asked the run to end."""


class Plan:
    """One run of this script."""

    def __init__(self, args):
        self.args = args
        self.jobs = max(1, os.cpu_count() or 1)
        self.deadline = time.monotonic() + RUN_DEADLINE_S
        self.runner = Runner(os.path.join(self.build_dir(), "test-logs"), self.jobs)

    def build_dir(self, kind=""):
        base = os.path.abspath(self.args.build or os.path.join(ROOT, "build"))
        return f"{base}-{kind}" if kind else base

    def wanted(self, suites):
        """Those that --only names; all without it."""
        if not self.args.only:
            return suites
        return [suite for suite in suites if any(part in suite.name for part in self.args.only)]

    # Building.

    def build(self, kind=""):
        """Configures and builds; True when it worked."""
        folder = self.build_dir(kind)
        env = {}
        if shutil.which("ccache"):
            env = {"CC": "ccache gcc", "CXX": "ccache g++"}
        setup = ["meson", "setup", folder, ROOT, "--prefix=/usr", "--buildtype=debugoptimized",
                 "-Dtests=true"]  # scripts/demo leaves a folder without
        if kind:
            # The sanitizers' own code makes the compiler warn of what is not there.
            setup += [f"-Db_sanitize={SANITIZERS[kind]['option']}", "-Db_lundef=false",
                      "-Dbench=false", "-Dwerror=false"]
        else:
            setup.append("-Dbench=true")
        if os.path.exists(os.path.join(folder, "build.ninja")):
            # A folder of another Meson, or one that is half made, is made anew.
            known = subprocess.run(["meson", "introspect", "--buildoptions", folder], cwd=ROOT,
                                   capture_output=True, check=False).returncode == 0
            setup.append("--reconfigure" if known else "--wipe")
        elif os.path.isdir(os.path.join(folder, "meson-private")):
            setup.append("--wipe")
        label = f"build {kind}".strip()
        steps = [Suite(f"{label}: configure", setup, env=env, timeout_s=300),
                 Suite(f"{label}: compile", ["ninja", "-C", folder, f"-j{self.jobs}"], env=env,
                       timeout_s=BUILD_TIMEOUT_S)]
        for step in steps:
            before = len(self.runner.results)
            self.runner.run([step], self.deadline)
            result = self.runner.results[before]
            if result.failures:
                return False
            # A build that works is no test.
            self.runner.results.remove(result)
        return True

    # What there is to run.

    def unit_suites(self, kind=""):
        """The programs that meson.build files declare with test()."""
        folder = self.build_dir(kind)
        out = subprocess.run(["meson", "introspect", "--tests", folder], cwd=ROOT, check=True,
                             capture_output=True, text=True).stdout
        suites = []
        for test in json.loads(out):
            groups = {suite.split(":")[-1] for suite in test.get("suite", [])}
            name = f"unit/{test['name']}" + (f" ({kind})" if kind else "")
            if (kind and "no-sanitize" in groups) or (self.args.quick and "slow" in groups):
                self.skip(name)
                continue
            timeout = test.get("timeout") or 0
            timeout = timeout if timeout > 0 else UNIT_TIMEOUT_S
            env = dict(test.get("env") or {})
            env.setdefault("SLUICE_BUILD", folder)
            argv = list(test["cmd"])
            if kind:
                env.update(SANITIZERS[kind]["env"])
                timeout *= SANITIZE_SLOWER
                argv = _without_aslr() + argv if kind == "tsan" else argv
            # GoogleTest programs obey the variable, whatever protocol the test was declared with.
            report = os.path.join(folder, "test-logs", re.sub(r"\W+", "-", name) + ".xml")
            env["GTEST_OUTPUT"] = f"xml:{report}"
            # Those that start servers of their own wait for them most of the time.
            waits = "integration" in groups
            parallel = test.get("is_parallel", True) and not waits
            suites.append(Suite(name, argv, report=report, env=env, cwd=test.get("workdir"),
                                may_report=test.get("protocol") != "gtest", timeout_s=timeout,
                                parallel=parallel, waits=waits))
        return suites

    def python_suites(self):
        suites = []
        for folder, folders, files in os.walk(os.path.join(ROOT, "tests")):
            folders.sort()
            for file in sorted(files):
                if not (file.startswith("test_") and file.endswith(".py")):
                    continue
                path = os.path.join(folder, file)
                name = os.path.relpath(path, ROOT)
                report = os.path.join(self.build_dir(), "test-logs",
                                      name.replace("/", "-") + ".xml")
                argv = [PYTHON, "-m", "pytest", "-q", "--tb=short", f"--junitxml={report}", path]
                if self.args.quick:
                    argv += ["-m", "not slow"]
                suites.append(Suite(name, argv, report=report, cwd=ROOT,
                                    env={"SLUICE_BUILD": self.build_dir(),
                                         "PYTHONDONTWRITEBYTECODE": "1"},
                                    timeout_s=int(_own(path, "TIMEOUT_S", PYTEST_TIMEOUT_S)),
                                    parallel=_own(path, "PARALLEL", "False") == "True",
                                    waits=_own(path, "WAITS", "False") == "True"))
        return suites

    def lint_suites(self):
        suites = []
        for check in ("format", "shell", "python", "lua", "tidy"):
            report = os.path.join(self.build_dir(), "test-logs", f"lint-{check}.xml")
            argv = [PYTHON, os.path.join(ROOT, "scripts/lint"), "--build", self.build_dir(),
                    "--junit", report, check]
            if self.args.quick:
                argv.append("--quick")
            # clang-tidy's minutes fit into the time in which others wait.
            suites.append(Suite(f"lint/{check}", argv, report=report, cwd=ROOT,
                                timeout_s=LINT_TIMEOUT_S, parallel=True, idle=check == "tidy"))
        return suites

    def skip(self, name):
        if self.wanted([Suite(name, [])]):
            result = Result(name)
            result.skipped.append(name)
            self.runner.results.append(result)

    def run(self):
        args = self.args
        if args.sanitize:
            for kind in SANITIZERS:
                if self.build(kind):
                    self.runner.run(self.wanted(self.unit_suites(kind)), self.deadline)
            return
        suites = []
        if self.build():
            suites += self.unit_suites() + self.python_suites()
        else:
            print("nothing but lint can run without a build", flush=True)
        self.runner.run(self.wanted(suites + self.lint_suites()), self.deadline)

    def summary(self, stopped):
        """Prints what failed and the last line; returns the exit code."""
        results = self.runner.results
        passed = sum(result.passed for result in results)
        failed = [(result.name, case) for result in results for case, _ in result.failures]
        skipped = [skip for result in results for skip in result.skipped]
        if stopped:
            failed.append(("the run", f"stopped by {stopped}"))
        elif not passed and not failed:
            failed.append(("the run", "no test ran" + (
                f": nothing is named like {self.args.only}" if self.args.only else "")))
        if skipped:
            print("\nskipped:\n" + "".join(f"  {skip}\n" for skip in skipped), end="")
        if failed:
            print("\nfailed:\n" + "".join(f"  {name}: {case}\n" for name, case in failed), end="")
        print(f"\n{passed} passed, {len(failed)} failed"
              + (f", {len(skipped)} skipped" if skipped else ""), flush=True)
        return 1 if failed else 0


def _own(path, name, default):
    """What the file itself says as SUITE_<name>."""
    with open(path, encoding="utf-8") as file:
        found = re.search(rf"^SUITE_{name} = (\w+)$", file.read(), re.MULTILINE)
    return found[1] if found else default


def _without_aslr():
    """g++ 12's ThreadSanitizer cannot start where the kernel randomises more bits than it knows."""
    probe = subprocess.run(["setarch", "-R", "true"], capture_output=True, check=False)
    return ["setarch", "-R"] if probe.returncode == 0 else []


def parse(argv):
    parser = argparse.ArgumentParser(
        prog="scripts/test", description="Installs what is missing, builds, and runs every test, "
        "formatting and lint. The last line counts what passed and failed.",
        epilog="examples: scripts/test --only gcra   scripts/test --only lint/   "
        "scripts/test --only tests/packaging")
    parser.add_argument("--sanitize", action="store_true",
                        help="instead: the unit tests under ASan+UBSan and under TSan")
    parser.add_argument("--only", metavar="NAME", action="append",
                        help="only suites whose name contains NAME; may be given again")
    parser.add_argument("--quick", action="store_true",
                        help="leave out slow tests; clang-tidy on changed files only")
    parser.add_argument("--build", metavar="DIR", help="the build directory (default: build)")
    return parser.parse_args(argv)


def main(argv):
    args = parse(argv)

    def stop(signum, _):
        # Once: a second signal must not cut the cleaning up short.
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(signal.Signals(signum).name)

    plan, stopped = Plan(args), None
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, stop)
    try:
        plan.run()
    except Stopped as error:
        stopped = str(error)
    finally:
        plan.runner.close()
    code = plan.summary(stopped)
    return 130 if stopped else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
