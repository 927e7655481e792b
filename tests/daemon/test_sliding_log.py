"""A sliding log's daemon: what its memory is, and what of it outlives a worker, a reload, a start."""

from harness.processes import run
from harness.sluice import START_DEADLINE_S, Daemon, binary, ctl, ctl_json

RELOAD_DEADLINE_S = 10.0

# Tokens that do not come back while a test runs.
RULES = """
rules:
  - name: per-user
    key: [user]
    algorithm: sliding_log
    limit: {limit} per 30d
"""


def allowed(daemon, user, times):
    return sum(ctl("check", f"user={user}", daemon=daemon, check=False).returncode == 0
               for _ in range(times))


def test_its_memory_is_told_before_at_and_after_the_start(tmp_path):
    path = tmp_path / "sluice.yaml"
    path.write_text(RULES.format(limit=100))
    told = run([binary("sluiced"), "--config", path, "--check-config"], START_DEADLINE_S).stdout
    assert "rows for 1024 keys of logs and places, 128 entries each, take 1024 KiB" in told
    with Daemon(RULES.format(limit=100)) as daemon:
        assert "rows for 1024 keys of logs and places, 128 entries each (1024 KiB)" in daemon.log()
        assert ("rows     for 1024 keys of logs and places, 128 entries each, 1024 KiB"
                in ctl("status", daemon=daemon).stdout)
        table = daemon.status()["table"]
        assert (table["log_keys"], table["log_tokens"], table["log_bytes"]) == (1024, 128, 1 << 20)


def test_a_log_outlives_its_worker_and_follows_its_limit():
    with Daemon(RULES.format(limit=3)) as daemon:
        assert allowed(daemon, "ann", 5) == 3
        daemon.kill_worker()
        daemon.wait_for(lambda: daemon.status()["adopted"], START_DEADLINE_S, "adopted")
        assert allowed(daemon, "ann", 2) == 0
        bucket = ctl_json("buckets", "per-user", daemon=daemon)["buckets"][0]
        assert bucket["algorithm"] == "sliding_log" and bucket["remaining"] == 0
        assert 29.9 * 86400 < bucket["reset_after_s"] <= 30 * 86400
        daemon.write_config(RULES.format(limit=5))
        daemon.wait_for(lambda: daemon.rules()["rules"][0]["limit"] == 5, RELOAD_DEADLINE_S, "5")
        assert allowed(daemon, "ann", 5) == 2
        assert allowed(daemon, "bob", 9) == 5


def test_a_limit_above_the_room_is_refused_until_a_restart():
    with Daemon(RULES.format(limit=3)) as daemon:
        assert allowed(daemon, "ann", 5) == 3
        daemon.reload(RULES.format(limit=9))
        daemon.wait_for(lambda: not daemon.status()["config"]["ok"], RELOAD_DEADLINE_S, "refused")
        problems = daemon.status()["config"]["problems"]
        assert len(problems) == 1 and "rows of 16 entries" in problems[0], problems
        assert "room for 8" in problems[0] and "restart sluiced" in problems[0]
        assert allowed(daemon, "bob", 9) == 3
        assert daemon.stop() == 0
        daemon.start()
        assert allowed(daemon, "ann", 12) == 9, "its buckets begin anew"


def test_a_rule_that_comes_later_needs_a_restart():
    without = RULES.format(limit=3).replace("    algorithm: sliding_log\n", "")
    with Daemon(without) as daemon:
        daemon.reload(RULES.format(limit=3))
        daemon.wait_for(lambda: not daemon.status()["config"]["ok"], RELOAD_DEADLINE_S, "refused")
        assert "have none" in daemon.status()["config"]["problems"][0]
        assert daemon.status()["table"]["log_keys"] == 0
