"""sluicectl against a real daemon of one host, and without any."""

import gzip
import json
import os
import signal
import subprocess

import pytest

from harness.processes import Process, wait_until
from harness.sluice import Daemon, binary, ctl, ctl_json

RULES = """
rules:
  - name: per-tenant
    match: {route: "/v1/*"}
    key: [tenant]
    limit: 1 per 60s
    burst: 5
    tiers:
      paid: {limit: 100/s, burst: 50}
  - name: per-ip
    key: [ip/24]
    limit: 1000/s
    burst: 2000
"""

LINE = '{} - - [17/May/2015:10:05:{:02d} +0000] "GET {} HTTP/1.1" 200 12 "-" "agent"\n'
VERBS = ["status", "rules", "check a=b", "buckets", "top --once", "promote per-tenant",
         "unban per-tenant:a", "reserve a=b", "replay --generate keys=1"]


@pytest.fixture(name="daemon", scope="module")
def _daemon():
    with Daemon(RULES) as daemon:
        yield daemon


@pytest.fixture(name="fresh")
def _fresh():
    with Daemon(RULES) as daemon:
        yield daemon


@pytest.mark.parametrize("verb", VERBS)
def test_without_a_daemon_each_verb_names_the_socket_and_the_mend(verb, tmp_path):
    done = ctl(*verb.split(), "--runtime-dir", tmp_path, check=False)
    assert done.returncode == 3
    assert str(tmp_path) in done.stderr
    assert "start it" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("verb", ["status", "rules", "check", "buckets", "top", "replay",
                                  "completion", "promote", "unban", "reserve", "settle"])
def test_help_of_each_verb_teaches_by_example(verb):
    text = ctl(verb, "--help").stdout
    assert f"sluicectl {verb}" in text[text.index("Examples:"):]


@pytest.mark.parametrize("arguments", [
    (), ("nonsense",), ("check",), ("check", "no-equals-sign"), ("check", "a=b", "--cost", "x"),
    ("replay",), ("replay", "x", "--generate", "keys=1"), ("replay", "--generate", "keys=0"),
    ("replay", "/nonexistent"), ("replay", "--generate", "keys=1", "--speed", "fast"),
    ("replay", "--generate", "keys=1", "--report", "1ms"), ("completion", "csh")])
def test_wrong_arguments_end_with_2(arguments, daemon):
    done = ctl(*arguments, daemon=daemon, check=False)
    assert done.returncode == 2
    assert done.stderr + done.stdout


def test_check_allows_the_burst_and_then_denies_with_exit_code_1(fresh):
    argv = ("check", "tenant=acme", "route=/v1/chat")
    first = ctl(*argv, daemon=fresh)
    assert "allowed" in first.stdout and "per-tenant" in first.stdout
    assert "RateLimit-Policy" in first.stdout
    assert ctl(*argv, "--count", "4", daemon=fresh).returncode == 0
    denied = ctl(*argv, daemon=fresh, check=False)
    assert denied.returncode == 1
    assert "denied" in denied.stdout and "Retry-After" in denied.stdout


def test_peeking_spends_nothing(fresh):
    argv = ("check", "tenant=acme", "route=/v1/chat", "--peek", "--count", "100")
    first = json.loads(ctl(*argv, "--json", daemon=fresh).stdout)
    assert first["allowed"] and first["checks_allowed"] == 100
    assert first["remaining"] == 4, "what a check would leave"
    nothing = json.loads(ctl(*argv, "--cost", "0", "--json", daemon=fresh).stdout)
    assert nothing["remaining"] == 5
    ctl("check", "tenant=acme", "route=/v1/chat", "--cost", "5", daemon=fresh)
    assert ctl(*argv, daemon=fresh, check=False).returncode == 1, "as a check would"


def test_check_reports_the_decision_as_json(fresh):
    answer = ctl_json("check", "tenant=acme", "route=/v1/x", "tier=paid", "ip=192.0.2.77", "--cost",
                      "10", daemon=fresh)
    assert answer["rule"] == "per-tenant@paid"
    assert sorted(answer["rules"]) == ["per-ip", "per-tenant@paid"]
    assert answer["limit"] == 100 and answer["burst"] == 50
    assert 40 <= answer["remaining"] <= 50
    assert answer["source"] == "rules"
    never = json.loads(ctl("check", "tenant=acme", "route=/v1/x", "--cost", "6", "--json",
                           daemon=fresh, check=False).stdout)
    assert not never["allowed"] and never["retry_after_ns"] is None


def test_check_says_when_no_rule_matches(daemon):
    answer = ctl_json("check", "colour=red", daemon=daemon)
    assert answer["allowed"] and answer["source"] == "no rule matches"


def test_status_puts_health_in_words(daemon):
    text = ctl("status", daemon=daemon).stdout
    assert text.startswith("healthy")
    assert "alarms" in text.lower()
    assert ctl_json("status", daemon=daemon)["pid"] > 0


def test_rules_show_limits_as_they_are_written(daemon):
    text = ctl("rules", daemon=daemon).stdout
    assert "per-tenant@paid" in text and "100/s" in text
    assert "1 per 1 min" in text or "1/min" in text
    labels = [rule["label"] for rule in ctl_json("rules", daemon=daemon)["rules"]]
    assert sorted(labels) == ["per-ip", "per-tenant", "per-tenant@paid"]


def test_buckets_are_listed_by_prefix(fresh):
    for tenant in ("alpha", "beta"):
        ctl("check", f"tenant={tenant}", "route=/v1/x", daemon=fresh)
    names = [bucket["name"] for bucket in
             ctl_json("buckets", "per-tenant:al", daemon=fresh)["buckets"]]
    assert names == ["per-tenant:alpha"]
    assert "per-tenant:beta" in ctl("buckets", daemon=fresh).stdout
    assert "no bucket" in ctl("buckets", "nonsense", daemon=fresh).stdout


def test_global_buckets_need_a_redis(daemon):
    done = ctl("buckets", "--global", daemon=daemon, check=False)
    assert done.returncode == 2 and "redis" in done.stderr


def test_a_bucket_named_by_a_stranger_cannot_steer_the_terminal(fresh):
    ctl("check", "tenant=\x1b[31mred\x07", "route=/v1/x", daemon=fresh)
    text = ctl("buckets", daemon=fresh).stdout
    assert "\x1b" not in text and "\\x1b[31mred" in text


def test_top_looks_once(fresh):
    with Process([binary("sluicectl"), "replay", "--generate", "keys=20,rate=2000", "--seconds",
                  "60", "--runtime-dir", fresh.runtime_dir],
                 os.path.join(fresh.directory, "replay.log")) as replay:
        def busy():
            look = ctl_json("top", "--once", daemon=fresh)
            return look["buckets"] and look["rules"]["per-ip"]["allowed_per_s"] > 0
        replay.wait_for(busy, 30, "top sees the traffic")
        assert "busiest bucket" in ctl("top", "--once", daemon=fresh).stdout


def replay(*arguments, daemon, stdin_text=None):
    """(the JSON lines by their type, the summary)."""
    done = ctl("replay", *arguments, "--json", daemon=daemon, stdin_text=stdin_text)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return lines, next(line for line in lines if line["type"] == "summary")


def test_a_replay_counts_each_line_once_and_what_each_rule_did(fresh):
    text = "".join(LINE.format("192.0.2.1", i % 60, "/v1/a") for i in range(40))
    lines, summary = replay("-", "--speed", "max", "--map", "tier=", daemon=fresh, stdin_text=text)
    assert lines[0]["type"] == "log" and lines[0]["requests"] == 40
    assert summary["checks"] == 40 == summary["allowed"] + summary["denied"]
    assert summary["allowed"] == 5
    rule = summary["rules"]["per-tenant"]
    assert (rule["asked"], rule["allowed"], rule["denied"], rule["tokens"]) == (40, 5, 35, 5)
    assert summary["rules"]["per-ip"]["denied"] == 0
    assert summary["errors"] == summary["defaults"] == summary["no_match"] == 0
    assert 1 <= summary["check_ns"]["samples"] <= 40  # a sample of them, the first included


def test_the_intervals_of_a_replay_add_up_to_its_summary(fresh):
    lines, summary = replay("--generate", "keys=100,rate=4000", "--seconds", "1.5", "--threads", "3",
                            "--report", "200ms", daemon=fresh)
    reports = [line for line in lines if line["type"] == "report"]
    assert len(reports) >= 2
    for name in ("checks", "allowed", "denied"):
        assert sum(report[name] for report in reports) == summary[name]
    assert summary["checks"] > 0


def test_tracked_values_are_counted_apart(fresh):
    text = "".join(LINE.format(f"192.0.{i % 4}.1", i % 60, "/v1/a") for i in range(40))
    _, summary = replay("-", "--speed", "max", "--map", "tier=", "--map", "tenant=ip", "--track",
                        "tenant=192.0.1.1", daemon=fresh, stdin_text=text)
    [track] = summary["tracks"]
    assert (track["checks"], track["allowed"]) == (10, 5)
    assert track["rules"]["per-tenant"]["denied"] == 5


def test_malformed_lines_are_counted_and_shown_but_not_fatal(fresh):
    text = "what is this\n" + LINE.format("192.0.2.1", 0, "/v1/a") + "192.0.2.1 cut\n\n"
    lines, summary = replay("-", "--speed", "max", daemon=fresh, stdin_text=text)
    assert summary["checks"] == 1
    assert lines[0]["malformed"] == 2
    assert lines[0]["examples"][0]["text"] == "what is this"


def test_a_compressed_log_is_refused_with_the_command_that_reads_it(tmp_path, daemon):
    path = tmp_path / "access.log.gz"
    path.write_bytes(gzip.compress(LINE.format("192.0.2.1", 0, "/").encode()))
    done = ctl("replay", path, daemon=daemon, check=False)
    assert done.returncode == 2 and f"zcat {path}" in done.stderr


def test_a_dry_run_needs_no_daemon_and_shows_the_hot_keys(tmp_path):
    text = "".join(LINE.format(f"192.0.2.{1 + (i % 4) // 3}", i % 60, "/v1/a") for i in range(40))
    done = ctl("replay", "-", "--dry-run", "--json", "--runtime-dir", tmp_path, stdin_text=text)
    top = json.loads(done.stdout.splitlines()[-1])["descriptors"]
    assert top["ip"][0] == {"value": "192.0.2.1", "share": 0.75, "tier": top["ip"][0]["tier"]}


def test_a_replay_ends_in_order_on_a_signal(fresh):
    log = os.path.join(fresh.directory, "out")
    with Process([binary("sluicectl"), "replay", "--generate", "keys=10,rate=100", "--json",
                  "--runtime-dir", fresh.runtime_dir], log) as process:
        process.wait_for(lambda: '"report"' in process.log(), 30, "a first report")
        assert process.terminate() == 0
        assert json.loads(process.log().splitlines()[-1])["type"] == "summary"


def test_a_replay_whose_reader_went_away_ends(fresh):
    argv = [binary("sluicectl"), "replay", "--generate", "keys=10,rate=100", "--report", "50ms",
            "--runtime-dir", fresh.runtime_dir]
    process = Process(argv, os.path.join(fresh.directory, "out"), stdout=subprocess.PIPE)
    with process:
        assert process.stdout.readline()
        process.stdout.close()
        wait_until(lambda: not process.running(), 30, "it noticed")
        assert process.returncode != -signal.SIGPIPE


@pytest.mark.parametrize("shell, check", [("bash", ["bash", "-n"]), ("zsh", None), ("fish", None)])
def test_completion_knows_every_verb_and_option(shell, check, tmp_path):
    script = ctl("completion", shell).stdout
    for word in ("status", "rules", "check", "buckets", "top", "replay", "runtime-dir", "generate"):
        assert word in script
    if check:
        path = tmp_path / "script"
        path.write_text(script)
        assert subprocess.run([*check, path], check=False).returncode == 0


def test_bash_completes_verbs_and_options(tmp_path):
    path = tmp_path / "script"
    path.write_text(ctl("completion", "bash").stdout)
    ask = (f". {path}; COMP_WORDS=(sluicectl rep); COMP_CWORD=1; _sluicectl; echo ${{COMPREPLY[*]}}; "
           "COMP_WORDS=(sluicectl replay --ge); COMP_CWORD=2; _sluicectl; echo ${COMPREPLY[*]}")
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["replay", "--generate"]
