"""Costs that are known afterwards, by sluicectl: reservations and outcomes."""

import json
import random

import pytest

from harness.sluice import Daemon, ctl, ctl_json

RULES = """
rules:
  - {name: llm, key: [tenant], limit: 100 per 3600s, burst: 100}
  - {name: login, key: [user], limit: 10 per 3600s, outcomes: {5xx: 0, 401: 4}}
"""


@pytest.fixture(name="daemon", scope="module")
def _daemon():
    with Daemon(RULES) as daemon:
        yield daemon


def left(daemon, **descriptors):
    """Tokens; those that come back within a test are far less than one."""
    words = [f"{name}={value}" for name, value in descriptors.items()]
    return ctl_json("check", *words, "--peek", "--cost", 0, daemon=daemon)["remaining"]


def test_estimates_are_held_together_and_settled_once_by_other_processes(daemon):
    # Five requests at once of 58, 80, 175, 175 and 175: reserved is never more than 100.
    held = [json.loads(ctl("reserve", "tenant=acme", "--cost", cost, "--json", daemon=daemon,
                           check=False).stdout) for cost in (58, 80, 175, 175, 175)]
    assert [one["allowed"] for one in held] == [True, False, False, False, False]
    assert all(one["retry_after_ns"] > 0 and "reservation" not in one for one in held[1:])
    assert held[0]["estimate"] == 58 and left(daemon, tenant="acme") == 42
    token = held[0]["reservation"]
    daemon.kill_worker()
    daemon.wait_for(lambda: daemon.get("/status")[0] == 200, 20, "another worker")
    assert "settled for 8, of 58" in ctl("settle", token, 8, daemon=daemon).stdout
    assert left(daemon, tenant="acme") in (91, 92)
    again = ctl("settle", token, 0, daemon=daemon, check=False)
    assert again.returncode == 1 and "settled before" in again.stdout
    assert left(daemon, tenant="acme") in (91, 92)


def test_an_estimate_is_capped_an_underestimate_is_charged_and_a_cancel_gives_all_back(daemon):
    first = ctl_json("reserve", "tenant=big", "--cost", 175, "--hold", "1m", daemon=daemon)
    assert first["estimate"] == 100 and 60 <= first["expires_in_ns"] / 1e9 < 61
    assert ctl_json("settle", first["reservation"], 0, daemon=daemon)["settled"]
    assert left(daemon, tenant="big") in (99, 100)
    second = ctl_json("reserve", "tenant=big", "--cost", 10, daemon=daemon)
    ctl("settle", second["reservation"], 60, daemon=daemon)
    assert left(daemon, tenant="big") in (39, 40)


def test_what_is_no_reservation_is_refused(daemon):
    token = ctl_json("reserve", "tenant=odd", "--cost", 5, daemon=daemon)["reservation"]
    for wrong in ("", "r1.", "r2." + token[3:], token[:-8], token + "AAAA", "r1.!!"):
        done = ctl("settle", wrong, 1, daemon=daemon, check=False)
        assert done.returncode == 2 and "as sluicectl reserve prints it" in done.stderr, wrong
    rng = random.Random(5)
    for _ in range(30):  # whatever they say: no answer but those, and nothing is lost
        at = rng.randrange(3, len(token))
        wild = token[:at] + rng.choice("AZaz09-_") + token[at + 1:]
        if wild != token:
            assert ctl("settle", wild, 5, daemon=daemon, check=False).returncode in (0, 1, 2)
    assert daemon.get("/status")[0] == 200
    with Daemon(RULES) as other:
        stranger = ctl("settle", token, 1, daemon=other, check=False)
        assert stranger.returncode == 2 and "generation" in stranger.stderr


def test_how_a_request_ended_corrects_its_cost(daemon):
    fine = ctl("check", "user=u", "--outcome", 200, daemon=daemon).stdout
    assert "ended with   200: of 0 rules' outcomes" in fine and left(daemon, user="u") == 9
    assert ctl_json("check", "user=u", "--outcome", 503, daemon=daemon)["rules_of_outcome"] == 1
    assert left(daemon, user="u") in (8, 9)
    ctl("check", "user=u", "--outcome", 401, daemon=daemon)
    assert left(daemon, user="u") in (4, 5)
