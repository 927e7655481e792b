"""Waiting for a turn, with a real daemon and processes: their order, the rate, and how it ends."""

import contextlib
import json
import signal

import pytest

from harness.load import Waiter
from harness.processes import KILL_WAIT_S, wait_until
from harness.sluice import Daemon, ctl, ctl_json

SECOND_NS = 1_000_000_000
PROCESSES = 8
E_CANCELLED = -9

RULES = """
rules:
  - {name: slow, match: {api: slow}, key: [api], limit: 1 per 1m, burst: 20}
  - {name: second, match: {api: second}, key: [api], limit: 1/s, burst: 20}
  - {name: fast, match: {api: fast}, key: [api], limit: 100/s, burst: 30}
  - {name: window, match: {api: window}, key: [api], limit: 40 per 1s, algorithm: sliding_log}
"""


def waiters(daemon, stack, api, **arguments):
    return [stack.enter_context(Waiter(daemon, f"api={api}", **arguments)) for _ in range(PROCESSES)]


def ahead_ns(daemon, api):
    """How far the bucket's word is ahead of now."""
    # A look that finds too little ends as a denial does.
    done = ctl("check", f"api={api}", "--peek", "--json", daemon=daemon, check=False)
    return json.loads(done.stdout)["reset_after_ns"]


def await_ahead(daemon, api, least_ns):
    wait_until(lambda: ahead_ns(daemon, api) >= least_ns, 30, "in the queue")


def most_ahead(turns, cost_ns):
    """Replays the turns through an exact bucket: the farthest it is ahead of a turn, with its cost."""
    tat = worst = 0
    for turn in sorted(turns):
        tat = max(tat, turn) + cost_ns
        worst = max(worst, tat - turn)
    return worst


@pytest.fixture(scope="module")
def daemon():
    with Daemon(RULES) as running:
        yield running


@pytest.mark.timeout_s(120)
def test_processes_are_served_in_the_order_in_which_they_came(daemon):
    with contextlib.ExitStack() as stack:
        queue = waiters(daemon, stack, api="second", max_wait_ms=60_000, GO="1")
        ctl("check", "api=second", "--cost", "20", daemon=daemon)
        # Each comes when the one before it stands in the queue. Their turns are a second apart, so
        # that the queue grows as long as the tests' own commands take less.
        order = []
        for waiter in queue:
            before_ns = ahead_ns(daemon, "second")
            waiter.go()
            await_ahead(daemon, "second", before_ns + SECOND_NS // 10)
            order.append(waiter)
        answers = [waiter.finished()[0] for waiter in order]
        assert [answer["result"] for answer in answers] == [1] * PROCESSES
        turns = [answer["turn_ns"] for answer in answers]
        assert all(later - turn >= SECOND_NS for turn, later in zip(turns, turns[1:])), turns
        assert all(answer["woken_ns"] >= answer["turn_ns"] for answer in answers)


@pytest.mark.timeout_s(180)
def test_the_rate_is_held_exactly_whoever_gives_up_and_nearly_all_of_it_is_used(daemon):
    with contextlib.ExitStack() as stack:
        queue = waiters(daemon, stack, api="fast", max_wait_ms=60_000, count=150,
                        CANCEL_ONE_IN="40")
        answers = [answer for waiter in queue for answer in waiter.finished(120)]
        turns = [a["turn_ns"] for a in answers if a["result"] == 1]
        given_up = sum(a["result"] == E_CANCELLED for a in answers)
        assert len(turns) + given_up == len(answers) == PROCESSES * 150
        worst = most_ahead(turns, SECOND_NS // 100)
        print(f"{len(turns)} turns, {given_up} given up, at most {worst / 1e6:.3f} ms ahead; "
              f"{len(turns) / ((max(turns) - min(turns)) / SECOND_NS):.1f}/s")
        # The exact tolerance of a burst of 30: a nanosecond less than 31 tokens are all at once.
        assert worst < 31 * SECOND_NS // 100
        assert all(a["woken_ns"] >= a["turn_ns"] for a in answers if a["result"] == 1)


@pytest.mark.timeout_s(60)
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait_and_gives_the_turn_back(daemon, signum):
    ctl("check", "api=slow", "--cost", "20", daemon=daemon, check=False)
    begin_ns = ahead_ns(daemon, "slow")
    with Waiter(daemon, "api=slow", 19 * 60_000) as waiter:
        await_ahead(daemon, "slow", begin_ns + 30 * SECOND_NS)
        waiter.process.send(signum)
        assert waiter.finished(KILL_WAIT_S)[0]["result"] == E_CANCELLED
        assert ahead_ns(daemon, "slow") <= begin_ns


@pytest.mark.timeout_s(60)
def test_who_is_killed_has_spent_its_turn(daemon):
    ctl("check", "api=slow", "--cost", "20", daemon=daemon, check=False)
    begin_ns = ahead_ns(daemon, "slow")
    with Waiter(daemon, "api=slow", 19 * 60_000) as waiter:
        await_ahead(daemon, "slow", begin_ns + 30 * SECOND_NS)
        waiter.process.kill()
        assert ahead_ns(daemon, "slow") >= begin_ns + 30 * SECOND_NS


@pytest.mark.timeout_s(120)
def test_a_log_is_waited_for_by_trying_again(daemon):
    with contextlib.ExitStack() as stack:
        queue = waiters(daemon, stack, api="window", max_wait_ms=60_000, count=20)
        answers = [answer for waiter in queue for answer in waiter.finished()]
        assert [a["result"] for a in answers] == [1] * (PROCESSES * 20)
        times = sorted(a["now_ns"] for a in answers)
        # Each counts from when its check read the clock, which may be after its own.
        assert times[-1] - times[0] >= 2.9 * SECOND_NS


@pytest.mark.timeout_s(60)
def test_sluicectl_waits_too_and_says_when_it_is_too_late(daemon):
    ctl("check", "api=second", "--cost", "20", daemon=daemon, check=False)
    answer = ctl_json("check", "api=second", "--acquire", "30s", daemon=daemon)
    assert answer["allowed"] in (True, 1)
    ctl("check", "api=slow", "--cost", "20", daemon=daemon, check=False)
    done = ctl("check", "api=slow", "--acquire", "10ms", daemon=daemon, check=False)
    assert done.returncode == 1 and done.stdout.startswith("denied"), done.stdout
    done = ctl("check", "api=slow", "--acquire", "soon", daemon=daemon, check=False)
    assert done.returncode == 2 and "30s" in done.stderr, done.stderr
