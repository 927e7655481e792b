"""SIGKILL at any instruction, over every feature of a rule: alone and together in one request.

Each has an invariant here that holds whoever is killed when; features_clients.cc says what it sees,
and this what it has to be. `TORTURE_KILLS` and `TORTURE_SEED` make a longer or another run;
scripts/torture sets them. For five kills of test_torture.py one is made here, whose end is waited for.
"""

import json
import os
import random
import struct
import time

import pytest

from harness.processes import Process, wait_until
from harness.sluice import Daemon, build_dir, ctl, ctl_json
from torture.torment import HANG_S, torment_daemon

KILLS = max(1, int(os.environ.get("TORTURE_KILLS", "10000")) // 5)
SEED = int(os.environ.get("TORTURE_SEED", "1"))
DAEMON_ONE_OF = 200
# Far below what any machine manages.
KILLS_PER_S = 10

# Limits per second and bursts, in tokens.
RATES = {"classes": (1000, 200), "login": (500, 50), "levels": (10_000, 1000),
         "spread": (2000, 50), "turns": (2000, 50), "private": (10, 1000), "brink": (20_000, 2), "verge": (20_000, 2), "given": (500, 100)}
PARTS = {"critical": 1.0, "normal": 0.8, "sheddable": 0.5}
# As requests give them; the last is above the rule's maximum, and counts as that.
PLANS = {"0": (500, 100), "1": (250, 50), "2": (1000, 200), "3": (1500, 300)}
LOG_LIMIT = 500
# In tokens: when a request of several rules was charged is known to a part of one.
VAGUE = 0.5
STOCK_TOKEN_S = 365 * 86_400 / 300_000
QUOTAS = {"day": 4000, "classday": 2000}
BAN_S = 1
# Who waits in features_worker.cc is charged for so much later at most.
PATIENCE_S = 0.02
PLAIN = "plain-secret-"  # how values of the private key begin

CONFIG = """
daemon: {{runtime_dir: "{{runtime_dir}}", buckets: 4096, log_level: debug}}
privacy: {{keys_file: {keys}}}
rules:
  - {{name: places, key: [places], in_flight: 12}}
  - name: classes
    key: [classes]
    limit: 1000/s
    burst: 200
    priority: {{classes: {{critical: 1, normal: 0.8, sheddable: 0.5}}}}
  - name: log
    key: [log]
    algorithm: sliding_log
    limit: 500 per 250ms
    priority: {{classes: {{critical: 1, normal: 0.8, sheddable: 0.5}}}}
  - name: classday
    key: [classday]
    algorithm: fixed_window
    limit: 2000/day
    calendar: {{anchor_time: "{anchor}"}}
    priority: {{classes: {{critical: 1, normal: 0.8, sheddable: 0.5}}}}
  - {{name: login, key: [login], limit: 500/s, burst: 50, penalty: {{after: 200 per 1s, for: {ban}s}}}}
  - name: day
    key: [day]
    algorithm: fixed_window
    limit: 4000/day
    calendar: {{anchor_time: "{anchor}"}}
  - {{name: levels, key: [levels], limit: 10000/s, burst: 1000, near: 0.7, soft: {{at: 0.9}}}}
  - {{name: given, key: [given], limit: 500/s, burst: 100, override: {{by: plan, max: 1500}}}}
  - {{name: spread, key: [spread], limit: 2000/s, burst: 50, retry_spread: 1s}}
  - {{name: turns, key: [turns], limit: 2000/s, burst: 50}}
  - name: priced
    key: [priced]
    algorithm: fixed_window
    limit: 1000000000000/day
    calendar: {{anchor_time: "{anchor}"}}
    outcomes: {{401: 5, 4xx: 2, 5xx: refund}}
  - {{name: private, key: [{{private: {{private: true}}}}], limit: 10/s, burst: 1000}}
  - {{name: stock, key: [stock], limit: 300000 per 365d, burst: 300000}}
  - {{name: brink, key: [brink], limit: 20000/s, burst: 2}}
  - {{name: verge, key: [verge], limit: 20000/s, burst: 2}}
  - {{name: shut, key: [shut], limit: 1 per 1d}}
"""


def config(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("old 000102030405060708090a0b0c0d0e0f\n")
    # Half a day from now, so that no day ends meanwhile.
    anchor = time.strftime("%H:00", time.gmtime(time.time() + 12 * 3600))
    return CONFIG.format(keys=keys, anchor=anchor, ban=BAN_S)


def expect_no_plain_value(daemon):
    """Nothing but the host's own memory has a private value as it is."""
    names = [b["name"] for b in ctl_json("buckets", "private", daemon=daemon)["buckets"]]
    assert names and all(name.startswith("private:#old.") for name in names), names
    # Who knows a value finds its bucket.
    known = {ctl_json("buckets", f"private:{PLAIN}{key}", daemon=daemon)["buckets"][0]["name"]
             for key in (16, 40, 63)}
    assert len(known) == 3 and known <= set(names)
    texts = {"the log": daemon.log(), "top": ctl("buckets", daemon=daemon).stdout}
    for page in ("/metrics", "/status", "/buckets", "/rules", "/config"):
        texts[page] = daemon.get(page)[1]
    for where, text in texts.items():
        assert PLAIN not in text, f"a private value in {where}"


def expect_traces(traces):
    """No time of any length holds more than a bucket's rate and burst, or a class's part."""
    for name, (entries, most) in traces.items():
        bucket, key = name.split("/")
        rule, _, rank = bucket.partition(">")
        assert entries > 0, name
        # Keys that only the lowest class uses are a class's too.
        part = PARTS["sheddable" if key == "4" else rank or "critical"]
        burst = LOG_LIMIT if rule == "log" else PLANS[key][1] if rule == "given" else RATES[rule][1]
        assert most <= burst * part + VAGUE, f"{name}: {most} at once of {burst} * {part}"


def expect_books(books, elapsed_s):
    quotas = 0
    for rule, key, least, most, used, drained in books:
        name = f"{rule}:{key}"
        assert least <= most, name
        if rule in QUOTAS:
            # The bucket says what was written down, and holds what is left of it, and no more.
            assert least <= used <= most, f"{name}: {used} used, {least} to {most} written down"
            assert least + drained <= QUOTAS[rule] <= most + drained, f"{name}: {drained} drained"
            quotas += used == QUOTAS[rule]
        elif rule == "classday>sheddable":
            assert least <= QUOTAS["classday"] * PARTS["sheddable"], name
        elif rule == "priced":
            assert least <= used <= most, f"{name}: {used} used, {least} to {most} written down"
        elif rule == "stock":
            # A token bucket of which next to nothing comes back.
            back = 1 + elapsed_s / STOCK_TOKEN_S
            assert least - back <= used <= most, f"{name}: {used} used, {least} to {most} written down"
        elif rule in RATES:
            plan = str(key - 24) if rule == "given" and key >= 24 else None
            rate, burst = PLANS[plan] if plan else RATES[rule]
            # Some are charged in advance; the beginning and the end are known to a bit.
            assert least <= burst + rate * (elapsed_s + PATIENCE_S), f"{name}: {least}"
    assert quotas > 0, "no quota was used up"


@pytest.mark.timeout_s(120 + KILLS // KILLS_PER_S)
def test_every_feature_keeps_its_word_whoever_is_killed_and_with_whom_it_is_asked(tmp_path):
    rng = random.Random(SEED)
    progress = tmp_path / "progress"
    progress.write_bytes(bytes(8))

    def kills_done():
        return struct.unpack("Q", progress.read_bytes()[:8])[0]

    program = os.path.join(build_dir(), "tests", "torture", "features_clients")
    with Daemon(config(tmp_path)) as daemon:
        with Process([program, daemon.runtime_dir, progress, SEED, KILLS],
                     tmp_path / "log") as clients:
            wait_until(lambda: kills_done() > 0, HANG_S, "the first kill")
            worker_kills, upgrades = torment_daemon(
                daemon, clients, kills_done, KILLS, DAEMON_ONE_OF, rng)
            daemon.wait_for(daemon.metrics, HANG_S, "the last worker")
            expect_no_plain_value(daemon)
            assert clients.wait(3 * HANG_S) == 0, clients.log_tail()
        end = json.loads((tmp_path / "log").read_text().splitlines()[-1])
        shown = {key: value for key, value in end.items() if key not in ("books", "traces")}
        print(f"{worker_kills} workers killed, {upgrades} upgrades", shown, end["traces"])
        assert end["wrong"] == {}
        assert end["overflow"] == 0, "there is room for every bucket"
        assert end["held_after"] == 0
        expect_traces(end["traces"])
        expect_books(end["books"], end["elapsed_s"])
        # All of it has happened.
        for what in ("admitted", "together", "denied", "banned", "entered", "waited", "served", "raced", "settled",
                     "refunded", "returned", "reported", "alone", "near", "soft", "kept", "killed_within"):
            assert end[what] > 0, what
        assert KILLS < 500 or worker_kills + upgrades > 0
