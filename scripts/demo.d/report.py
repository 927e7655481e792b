"""What the demo prints."""

import json
import subprocess
import sys

from children import DemoError
from limits import HOSTS, SHARDS

DRY_RUN_S = 120
HEADER_EVERY = 20


def say(text):
    print(f"- {text}", flush=True)


def note(text):
    """To standard error, also when standard output is gone."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        pass


def run_json(argv):
    """The JSON lines that a command prints."""
    done = subprocess.run(argv, timeout=DRY_RUN_S, capture_output=True, text=True, check=False,
                          errors="surrogateescape", stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise DemoError(done.stderr.strip() or f"{argv[0]} ended with {done.returncode}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def log_found(log):
    more = "".join(f"; {log[key]:,} {text}" for key, text in (
        ("malformed", "malformed"), ("not_http", "not HTTP"), ("cut", "cut for length"))
        if log[key])
    say(f"the log has {log['requests']:,} requests in {log['lines']:,} lines{more}")
    for bad in log["examples"][:3]:
        print(f"    line {bad['line']}: {bad['reason']}: {bad['text'][:100]}", flush=True)


def rules(plan):
    say("limits on both hosts together:")
    for limit in plan.limits:
        word = {"open": "fails open, with an alert", "closed": "fails closed",
                "degrade": f"degrades to {limit.factor:g}"}[limit.mode]
        if limit.for_s:
            word += f", after {limit.for_s:g} s closed, with an alert"
        where = f" on {limit.route}" if limit.route else ""
        print(f"    {limit.label:<16} {limit.rate:>6}/s  burst {limit.burst:>5}  "
              f"per {limit.key}{where}; without Redis it {word}", flush=True)


def nanoseconds(ns):
    return f"{ns} ns" if ns < 10_000 else f"{ns / 1000:.0f} us"


def seconds(value):
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def event(at_s, text):
    print(f"{at_s:6.1f}s  >>> {text}", flush=True)


def alarms(at_s, before, now):
    """Says which alarms were raised and cleared between two looks; returns `now`."""
    for alarm in sorted(set(now) - set(before)):
        event(at_s, f"alarm raised: {alarm} ({', '.join(now[alarm])})")
    for alarm in sorted(set(before) - set(now)):
        event(at_s, f"alarm cleared: {alarm}")
    return now


def mode_of(limit, emergency, stale):
    """In words, the mode of a rule while these shards are in emergency or stale."""
    if emergency:
        word = {"open": "open", "closed": "closed"}.get(limit.mode, f"x{limit.factor:g}")
        if limit.for_s:
            word += "/closed"
        return f"{word} {len(emergency)}/{SHARDS}"
    return f"stale {len(stale)}/{SHARDS}" if stale else "shared"


def second(number, numbers, worst, plan):
    """One line for the second that ends at `number`."""
    if number % HEADER_EVERY == 1:
        print(f"{'time':>7} {'checks/s':>9} {'allowed':>8} {'denied':>8} {'p50':>8} {'p99':>8} "
              f"{'oldest use':>10}  {'metadata':<11} {'generate':<19} others", flush=True)
    checks, allowed, denied, p50, p99 = numbers
    age, emergency, stale = worst
    limits = plan.by_label()
    modes = [mode_of(limits[name], emergency, stale)
             for name in ("metadata", "generate", "per-user")]
    print(f"{number:6d}s {checks:9,.0f} {allowed:8,.0f} {denied:8,.0f} {nanoseconds(p50):>8} "
          f"{nanoseconds(p99):>8} {seconds(age):>10}  {modes[0]:<11} {modes[1]:<19} {modes[2]}",
          flush=True)


def table(rows, every, end_s):
    print(f"\nWhat was allowed over {HOSTS} hosts in {end_s:.1f} s, beside what the limit permits "
          "(rate x time + burst),\nand the bound beyond which it would be exceeded. Of each limit "
          "the bucket nearest to its bound, among\nthose that kept their primary and among those "
          "that lost it.\n")
    head = (f"{'limit':<16} {'bucket':<18} {'rate':>7} {'asked':>9} {'allowed':>9} {'permits':>9} "
            f"{'used':>6} {'bound':>9}  {'outage':<8} verdict")
    print(head)
    for row in rows:
        outage = sum(end - begin for begin, end in row.outage)
        verdict = "held" if row.holds else "EXCEEDED"
        if row.holds and not row.reached:
            verdict += ", not reached"
        if row.seconds < end_s - 0.01:
            verdict += f" in the {row.seconds:.1f} s outside"
        name = row.value if len(row.value) <= 18 else row.value[:15] + "..."
        print(f"{row.limit.label:<16} {name:<18} {f'{row.limit.rate}/s':>7} {row.asked:>9,} "
              f"{row.allowed:>9,.0f} {row.permitted:>9,.0f} {row.allowed / row.permitted:>6.1%} "
              f"{row.bound:>9,.0f}  {f'{outage:.1f} s' if outage else '-':<8} {verdict}")
    print("\nHow the bounds come about:")
    for row in rows:
        print(f"  {row.limit.label} {row.value}: {row.formula} = {row.bound:,.0f}")
    print(f"{sum(row.holds for row in every)} of {len(every)} watched buckets held, "
          f"{sum(row.tested for row in every)} of them asked for at least twice their limit.",
          flush=True)


def verdict(problems, rows, totals):
    if totals.behind_s > 0:
        print(f"note: this machine was too slow for the traffic by up to {totals.behind_s:.1f} s")
    if problems:
        print("FAILED: " + "; ".join(problems), flush=True)
    else:
        print(f"every limit held: {len(rows)} watched buckets over {HOSTS} hosts", flush=True)
