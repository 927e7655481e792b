"""One row: hosts under load, calm, then a fault, then calm again, and the books."""

import json
import math
import os
import sys
import tempfile
import time

from harness.load import counted
from harness.processes import Process, Timeout
from harness.resp import RespError
from harness.sluice import ROOT, build_dir, wait_until

from chaos.faults import FAULTS
from chaos.world import LOAD_S, RATE
from chaos.worlds import INSIDE, ISOLATE, ISOLATED, WORLDS, Refused, enter, may_isolate

CALM_S = 4.0
CALM_MOST_S = 120
RECOVER_S = 90
BOOKS_S = 30
ALARMS_S = 60
# A world, and a row of it, in a process of their own.
ISOLATED_START_S, ISOLATED_ROW_S = 120, LOAD_S


def p999_ns(reports, begin_s, end_s):
    """Of all checks reported in that time, from the slowest of each report."""
    inside = [r for r in reports if begin_s * 1e9 < r["t_ns"] <= end_s * 1e9]
    checks = sum(r["checks"] for r in inside)
    slowest = sorted((ns for r in inside for ns in r["slowest_ns"]), reverse=True)
    rank = math.ceil(checks / 1000)
    return slowest[rank - 1] if 0 < rank <= len(slowest) else None


def happens(predicate, deadline_s):
    try:
        wait_until(predicate, deadline_s)
    except Timeout:
        return False
    return True


def measure(name, world, calm_for_s):
    """The row of the fault `name`, as plain values."""
    row = FAULTS[name]
    before = counted(world.redis)
    world.admitted_besides = world.rate_besides = 0
    with world.under_load():
        calm_s = time.monotonic()
        time.sleep(calm_for_s)
        begin_s = time.monotonic()
        with row.act(world):
            time.sleep(row.hold_s)
        end_s = time.monotonic()
        is_well = happens(world.is_healthy, RECOVER_S)
        recovery_s = round(time.monotonic() - end_s, 2) if is_well else None
        time.sleep(1.0)
        emergencies = [t for t in (w.first("emergency", begin_s) for w in world.watches) if t]
        raised = sorted({a for w in world.watches for t, _, ids in w.seen if t >= begin_s
                         for a in ids if a != "client-same-user"})
        reports = [r for load in world.loads for r in load.stop()]
        healthy_s = time.monotonic()
    admitted = sum(r["allowed"] for r in reports) + world.admitted_besides
    bound = admitted if row.forgets else int(row.lost_s * (RATE + world.rate_besides))
    if row.forgets:
        before = 0

    def off():
        return admitted - (counted(world.redis) - before)

    happens(lambda: off() == 0, BOOKS_S if bound == 0 else 5)
    happens(lambda: not world.alarms(), ALARMS_S)
    missing = off()
    return {
        "name": name, "world": row.world, "calm_s": calm_for_s, "checks": sum(r["checks"] for r in reports),
        "p999_calm_ns": p999_ns(reports, calm_s, begin_s),
        "p999_fault_ns": p999_ns(reports, begin_s, end_s),
        "p999_after_ns": p999_ns(reports, end_s, healthy_s),
        "error": None, "skipped": None,
        "to_emergency_s": round(min(emergencies) - begin_s, 2) if emergencies else None,
        "recovery_s": recovery_s, "admitted": admitted, "lost": max(0, missing),
        "doubled": max(0, -missing), "lost_bound": bound, "why_lost": row.why,
        "alarms_raised": raised, "alarms_left": world.alarms(),
    }


def problems_of(row):
    """What is wrong with a row, as texts."""
    if row["error"] or row["skipped"]:
        return [row["error"]] if row["error"] else []
    found = []
    if row["recovery_s"] is None:
        found.append(f"not healthy within {RECOVER_S} s of its end")
    if row["lost"] > row["lost_bound"]:
        found.append(f"{row['lost']} tokens lost, {row['lost_bound']} are the bound")
    if row["doubled"]:
        found.append(f"{row['doubled']} tokens counted twice")
    if row["alarms_left"]:
        found.append(f"alarms stand: {', '.join(row['alarms_left'])}")
    return found


def none(name, *, error=None, skipped=None):
    """The row of a fault that was not measured."""
    return {"name": name, "world": FAULTS[name].world, "error": error, "skipped": skipped}


def run(names, calm_for_s=CALM_S):
    """Yields the rows of these faults; those of one world share it."""
    enter()
    for kind in WORLDS:
        of_kind = [name for name in names if FAULTS[name].world == kind]
        if kind in ISOLATED and INSIDE not in os.environ:
            yield from run_isolated(of_kind, calm_for_s)
        else:
            yield from run_here(kind, of_kind, calm_for_s)


def run_here(kind, names, calm_for_s):
    left = list(names)
    while left:
        with WORLDS[kind]() as world:
            while left:
                name = left.pop(0)
                try:
                    yield measure(name, world, calm_for_s)
                except (AssertionError, OSError, Timeout, RespError) as error:
                    yield none(name, error=f"{type(error).__name__}: {error}")
                    break  # the next one finds a world that is whole


def run_isolated(names, calm_for_s):
    """The same in a process with a network and mounts of its own."""
    if not names:
        return
    try:
        may_isolate()
    except Refused as refused:
        yield from (none(name, skipped=str(refused)) for name in names)
        return
    with tempfile.TemporaryDirectory() as folder:
        result = os.path.join(folder, "rows")
        argv = [*ISOLATE, sys.executable, os.path.join(ROOT, "scripts", "chaos"), "--json", result,
                "--build", build_dir(), "--calm", calm_for_s]
        argv += [word for name in names for word in ("--only", name)]
        with Process(argv, os.path.join(folder, "log"), env={INSIDE: "1"}) as process:
            process.wait(ISOLATED_START_S + len(names) * (ISOLATED_ROW_S + calm_for_s))
            if not os.path.exists(result):
                yield from (none(name, error=process.log_tail()) for name in names)
                return
        with open(result, encoding="utf-8") as file:
            yield from json.load(file)
