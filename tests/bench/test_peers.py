"""sluice beside its peers: every kind is really asked, and what cannot be had is skipped with a word."""

import json
import os
import subprocess

import pytest

from harness.processes import children_of, is_running
from harness.sluice import ROOT, build_dir

SERVERS = ["nginx_limit_req", "nginx_without", "haproxy_stick_table", "memcached_incr_pipelined",
           "redis_incr", "redis_evalsha"]
# Envoy's service takes minutes to build where Go has never built it: whoever wants it names it.
BUILT = ["x_time_rate", "governor", "governor_coarse", "governor_keyed"]


def bench(*arguments, path=None):
    env = dict(os.environ, PATH=path) if path else None
    return subprocess.run(["/usr/bin/python3", os.path.join(ROOT, "scripts", "bench"), "--peers",
                           "--quick", "--build", build_dir(), *arguments], env=env,
                          capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(autouse=True, name="needs_bench")
def fixture_needs_bench():
    if not os.path.exists(os.path.join(build_dir(), "bench")):
        pytest.skip("built without the benchmarks")


@pytest.mark.timeout_s(600)
def test_each_peer_is_measured_beside_sluice(tmp_path):
    out = tmp_path / "rows.json"
    before = set(children_of(os.getpid()))
    done = bench("--json", str(out), *SERVERS, *BUILT)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["name"]: row for row in json.loads(out.read_text())}
    assert set(rows) == {"sluice_handle", "sluice_keyed", *SERVERS, *BUILT}
    skipped = {name for name, row in rows.items() if "skipped" in row}
    assert skipped <= set(BUILT), [rows[name] for name in skipped]  # their tools may be missing
    for name in set(rows) - skipped:
        row = rows[name]
        assert row["spread"][0] <= row["cpu_ns"] <= row["spread"][1], row
        assert row["beside_ratio"] > 0 and row["repetitions"] == 3, row
        assert name in done.stdout
    # A decision that crosses to another process costs more than ten that do not.
    for name in SERVERS:
        assert rows[name]["beside_ratio"] > 10, rows[name]
    left = [pid for pid in set(children_of(os.getpid())) - before if is_running(pid)]
    assert not left, "processes outlive the run"


def test_a_peer_that_is_not_there_is_skipped_with_the_reason(tmp_path):
    out = tmp_path / "rows.json"
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("meson", "ninja"):
        os.symlink(f"/usr/bin/{tool}", tools / tool)
    done = bench("--json", str(out), "x_time_rate", path=str(tools))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["name"]: row for row in json.loads(out.read_text())}
    assert rows["x_time_rate"]["skipped"] == "go is not installed (scripts/install-deps all)"
    assert "x_time_rate" in done.stdout and "skipped: go is not installed" in done.stdout
    assert rows["sluice_keyed"]["cpu_ns"] > 0


def test_an_unknown_peer_is_named():
    done = bench("no_such_peer")
    assert done.returncode == 2
    assert "no_such_peer" in done.stderr and "nginx_limit_req" in done.stderr
