"""Two hosts and one limit, beside a limiter that syncs in batches: the comparison runs and judges."""

import json
import os
import subprocess
import sys

import pytest

from harness.sluice import ROOT, build_dir

sys.path.append(os.path.join(ROOT, "bench"))
from peers import hosts  # noqa: E402  pylint: disable=wrong-import-position

SUITE_WAITS = True


@pytest.mark.timeout_s(200)
def test_strict_is_never_over_and_what_cannot_be_built_is_skipped_with_a_word(tmp_path):
    if not os.path.exists(os.path.join(build_dir(), "bench")):
        pytest.skip("built without the benchmarks")
    out = tmp_path / "rows.json"
    done = subprocess.run(["/usr/bin/python3", os.path.join(ROOT, "scripts", "bench"), "--hosts",
                           "--quick", "--build", build_dir(), "--json", str(out)],
                          env=dict(os.environ, PATH="/usr/bin:/bin"), capture_output=True,
                          text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(out.read_text())
    assert len(rows) == 12
    for row in rows:
        if row["limiter"] == "sluice, strict":
            assert row["over_tokens"] <= 0.01, row
        if row["limiter"].startswith("sluice"):
            assert row["asked"] > 1000 and row["used_percent"] > 50, row
        elif "skipped" in row:
            assert "cargo" in row["skipped"], row


def test_what_is_over_is_seen():
    arrivals = [[hosts.CALM_S + i / 2000 for i in range(4000)]]
    allowed = [int(at * 1e9) for at in arrivals[0]]
    row = hosts.judged("all at once", "none", arrivals, (allowed, 0))
    assert row["asked"] == row["allowed"] == 4000
    assert row["over_tokens"] == pytest.approx(4000 - hosts.LIMIT - 2 * hosts.LIMIT, abs=2)
    assert row["over_1s_percent"] == pytest.approx(200, abs=1)
    assert row["used_percent"] == pytest.approx(100 * 4000 / (3 * hosts.LIMIT), rel=0.01)
