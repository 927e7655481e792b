"""How much a limit may let through over both hosts, and what it did let through.

A limit of L tokens/s and a burst of B permits, in t seconds,

    L t + B

tokens. Hosts that report every 0.1 s can exceed that by what one of them cannot know of the others:
at most a burst and what the limit brings while use is unreported (a: the greatest age that the
daemons showed in calm; while other shards are cut off they show the age of those, and the bucket's
own mode vouches for it). What is too much becomes debt and is paid back, so it counts once:

    + (hosts - 1) (B + L a)

In an emergency hosts cannot share. From the last report before it (d seconds of detection) to its
end (D seconds) each host goes on alone, at the limit and then at the factor of its rule:

    - L (d + D)  + hosts (L d + L factor D)  + 2 (hosts - 1) (B + L a)

the last for the bursts that each holds for itself, and for reports that a failover may lose. A
route that fails open is not bounded while the emergency lasts: there only the rest is compared.
"""

import dataclasses
import math

from clients import BIN_S
from limits import FLUSH_INTERVAL_S, HOSTS
from watcher import SAMPLE_S

# A shard stays in emergency a moment longer on one host than on the other.
FOR_SLACK_S = 1.0
# A shard is healthy up to an age of 3 flush intervals and stale up to 0.5 s; every route follows
# its word within a second.
HEALTHY_AGE_S = 3 * FLUSH_INTERVAL_S
STALE_AGE_S = 0.5
DETECT_MAX_S = 1.0
# Who lets through this part of what a limit permits was held by the limit.
REACHED = 0.9


@dataclasses.dataclass
class Row:
    """One watched bucket at the end of the run."""

    limit: object
    value: str
    seconds: float       # that are compared
    asked: int
    denied: int
    allowed: float       # tokens over both hosts, in the seconds that are compared
    permitted: float     # by the limit
    bound: float
    outage: list         # [(begin, end)] of its shard
    formula: str
    series: object

    @property
    def holds(self):
        return self.allowed <= self.bound

    @property
    def tested(self):
        """Whether at least twice of what the limit permits was asked for."""
        return self.asked >= 2 * self.permitted

    @property
    def reached(self):
        """Whether this limit, not another of the same requests, was what decided."""
        if self.outage:
            return self.denied > 0 and self.tested
        return self.allowed >= REACHED * self.permitted


def judge(limit, value, watch, outage, ages, end_s):
    """The Row of one watched bucket. `ages`: (a, [d of each outage]), in seconds."""
    rate, burst = limit.rate, limit.burst
    age_s = ages[0] + SAMPLE_S
    others = HOSTS - 1
    own_slack = others * (burst + rate * age_s)
    dark_s = sum(end - begin for begin, end in outage)
    detect_s = sum(ages[1])
    if outage and limit.mode == "open":
        # Bins that touch the outage are left out, and so is the detection before it.
        allowed, seconds, at = 0.0, 0.0, 0.0
        gaps = [(begin - d, end) for (begin, end), d in zip(outage, ages[1])]
        for begin, end in [*gaps, (end_s, end_s)]:
            until = math.floor(max(begin, at) / BIN_S) * BIN_S
            allowed += watch.tokens_over_time.between(at, until)
            seconds += max(until - at, 0.0)
            at = math.ceil(end / BIN_S) * BIN_S + BIN_S
        permitted = rate * seconds + burst
        # A burst and a report may be new after each outage.
        bound = permitted + own_slack * (1 + 2 * len(outage)) + burst * len(outage)
        return Row(limit, value, seconds, watch.asked, watch.denied, allowed, permitted, bound,
                   outage, "outside the outage", watch.tokens_over_time)
    permitted = rate * end_s + burst
    bound = permitted + own_slack
    formula = f"{rate}*{end_s:.1f}s + {burst} + {others}*({burst} + {rate}*{age_s:.2f}s)"
    if outage:
        alone_s = dark_s
        if limit.for_s:
            alone_s = sum(min(end - begin, limit.for_s + FOR_SLACK_S) for begin, end in outage)
        bound += (-rate * (detect_s + dark_s)
                  + HOSTS * (rate * detect_s + rate * limit.factor * alone_s)
                  + 2 * own_slack * len(outage))
        formula += (f" - {rate}*{detect_s + dark_s:.1f}s + {HOSTS}*({rate}*{detect_s:.1f}s + "
                    f"{rate}*{limit.factor:g}*{alone_s:.1f}s) + {2 * len(outage)}*{own_slack:.0f}")
    return Row(limit, value, end_s, watch.asked, watch.denied, watch.tokens, permitted, bound,
               outage, formula, watch.tokens_over_time)


def rows(plan, totals, watcher, shard_of, end_s):
    """A Row for every watched bucket that anything was asked of."""
    limits = plan.by_label()
    calm_age_s = watcher.calm_age()
    found = []
    for (label, descriptor, value), watch in totals.watches.items():
        limit = limits.get(label)
        if limit is None or limit.key != descriptor or watch.asked == 0:
            continue
        shard = shard_of(label, value)
        outage = watcher.emergencies(shard, end_s)
        own_age_s = STALE_AGE_S if watcher.was_stale(shard) else HEALTHY_AGE_S
        ages = (max(calm_age_s, own_age_s),
                [min(watcher.age_before(begin), DETECT_MAX_S) for begin, _ in outage])
        found.append(judge(limit, value, watch, outage, ages, end_s))
    return found


def shown(all_rows):
    """Of each limit the bucket nearest to its bound, with and without an outage."""
    table = []
    for label in dict.fromkeys(row.limit.label for row in all_rows):
        mine = [row for row in all_rows if row.limit.label == label]
        for is_out in (False, True):
            side = [row for row in mine if bool(row.outage) == is_out]
            if side:
                table.append(max(side, key=lambda row: row.allowed / row.bound))
    table += [row for row in all_rows if not row.holds and row not in table]
    return table
