"""A few rows of scripts/chaos; all of them take twenty minutes."""

import pytest

from chaos import rows

SUITE_TIMEOUT_S = 600
SUITE_WAITS = True
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


@pytest.mark.timeout_s(200)
def test_hosts_in_network_namespaces_survive_that_their_links_are_down():
    row, = rows.run(["links-down-5s"])
    if row["skipped"]:
        pytest.skip(row["skipped"])
    assert rows.problems_of(row) == []
    assert row["to_emergency_s"] is not None and row["lost"] == row["doubled"] == 0, row
    assert row["checks"] > 0 and row["admitted"] == row["checks"], row
