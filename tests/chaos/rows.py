"""One row: hosts under load, calm, then a fault, then calm again, and the books."""

import math
import time

from harness.load import counted
from harness.processes import Timeout
from harness.resp import RespError
from harness.sluice import wait_until

from chaos.faults import FAULTS
from chaos.world import RATE, cluster_world, proxy_world

CALM_S = 4.0
RECOVER_S = 90
BOOKS_S = 30
ALARMS_S = 60
WORLDS = {"cluster": cluster_world, "proxy": proxy_world}


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


def measure(name, world):
    """The row of the fault `name`, as plain values."""
    row = FAULTS[name]
    before = counted(world.redis)
    with world.under_load():
        calm_s = time.monotonic()
        time.sleep(CALM_S)
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
    admitted = sum(r["allowed"] for r in reports)
    bound = admitted if row.forgets else int(row.lost_s * RATE)
    if row.forgets:
        before = 0

    def off():
        return admitted - (counted(world.redis) - before)

    happens(lambda: off() == 0, BOOKS_S if bound == 0 else 5)
    happens(lambda: not world.alarms(), ALARMS_S)
    missing = off()
    return {
        "name": name, "world": row.world, "checks": sum(r["checks"] for r in reports),
        "p999_calm_ns": p999_ns(reports, calm_s, begin_s),
        "p999_fault_ns": p999_ns(reports, begin_s, end_s),
        "p999_after_ns": p999_ns(reports, end_s, healthy_s),
        "error": None, "to_emergency_s": round(min(emergencies) - begin_s, 2) if emergencies else None,
        "recovery_s": recovery_s, "admitted": admitted, "lost": max(0, missing),
        "doubled": max(0, -missing), "lost_bound": bound, "why_lost": row.why, "alarms_raised": raised, "alarms_left": world.alarms(),
    }


def problems_of(row):
    """What is wrong with a row, as texts."""
    if row["error"]:
        return [row["error"]]
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


def run(names):
    """Yields the rows of these faults; those of one world share it."""
    for kind, make in WORLDS.items():
        of_kind = [name for name in names if FAULTS[name].world == kind]
        if not of_kind:
            continue
        while of_kind:
            with make() as world:
                while of_kind:
                    name = of_kind.pop(0)
                    try:
                        yield measure(name, world)
                    except (AssertionError, OSError, Timeout, RespError) as error:
                        yield {"name": name, "world": kind, "error": str(error)}
                        break  # the next one finds a world that is whole
