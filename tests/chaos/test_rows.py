"""A few rows of scripts/chaos; all of them take a quarter of an hour."""

import pytest

from chaos import rows

SUITE_TIMEOUT_S = 500
NAMES = ["user-deleted", "slots-migrated-and-back", "connections-killed-in-a-loop",
         "daemon-upgraded", "cut-in-mid-reply", "garbage-down"]


@pytest.mark.timeout_s(400)
def test_checks_go_on_no_use_is_lost_or_doubled_and_all_is_well_again():
    found = list(rows.run(NAMES))
    assert sorted(row["name"] for row in found) == sorted(NAMES)
    problems = {row["name"]: rows.problems_of(row) for row in found}
    assert not any(problems.values()), problems
    for row in found:
        assert row["checks"] > 0 and row["admitted"] == row["checks"], row
    by_name = {row["name"]: row for row in found}
    assert by_name["user-deleted"]["to_emergency_s"] is not None
    assert any("wrong_password" in alarm for alarm in by_name["user-deleted"]["alarms_raised"])
