"""The demo's rules: which limits, and which buckets are watched closely.

Limits are chosen from what the traffic asks for, so that they bind whatever log is replayed: the
busiest user, tenant and address of each tier ask for a multiple of what they may have.
"""

import dataclasses

from children import DemoError

FLUSH_INTERVAL_S = 0.1
SHARDS = 64
HOSTS = 2
# Demand of the busiest key of a rule, divided by its limit. Two at least, so that the two hosts
# together would admit twice too much if they did not share; more where other rules take a part.
USER_EXCESS = 5.0
TENANT_EXCESS = 4.0
IP_EXCESS = 16.0
ROUTE_EXCESS = 4.0
PAID_FACTOR = 2.5
# Routes that the per-tenant rule names; the two with a rule of their own are not among them.
OTHER_ROUTES_MAX = 64
# A burst of half a second is far above what two flush intervals bring.
BURST_S = 0.5
# What other routes than the two below do in an emergency: each host half of its share.
OTHERS_FACTOR = 0.5
GENERATE_FACTOR = 0.25
GENERATE_FOR_S = 3


@dataclasses.dataclass(frozen=True)
class Limit:
    """One rule at one tier."""

    label: str        # "name" or "name@tier"
    key: str          # the descriptor it keys on
    tier: str         # "" for all
    rate: int         # tokens/s
    mode: str         # when_degraded: open, closed, degrade
    factor: float = 1.0
    for_s: float = 0  # then closed; 0: for good
    route: str = ""   # "" for all

    @property
    def burst(self):
        return max(int(self.rate * BURST_S), 2)

    @property
    def name(self):
        return self.label.split("@")[0]


def _nice(value):
    """The nearest below of 1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8 times a power of ten; 4 at least."""
    if value < 4:
        return 4
    scale = 1
    while value >= scale * 10:
        scale *= 10
    for step in (8, 6, 5, 4, 3, 2.5, 2, 1.5, 1.2, 1):
        if value >= step * scale:
            return int(step * scale)
    return 4


def _share(top, descriptor, tier):
    for value in top.get(descriptor, []):
        if not tier or value["tier"] == tier:
            return value["share"]
    return 0.0


class Plan:
    """Rules and watched values for traffic whose busiest values are `top`, at `rate` requests/s.

    `top` is what `sluicectl replay --dry-run --json` prints: {descriptor: [{value, share, tier}]}.
    """

    WATCHED = 8  # values of each descriptor that are counted one by one

    def __init__(self, top, rate, routes):
        for name in ("user", "tenant", "ip", "route"):
            if not top.get(name):
                raise DemoError(f"the traffic has no descriptor '{name}'")
        self.metadata_route, self.generate_route = routes
        self.other_routes = [value["value"] for value in top["route"]
                             if value["value"] not in routes
                             and is_plain(value["value"])][:OTHER_ROUTES_MAX]
        if not self.other_routes:
            raise DemoError("the traffic has fewer than three routes")
        shares = {value["value"]: value["share"] for value in top["route"]}
        others_share = sum(shares[route] for route in self.other_routes)
        user = self._both_tiers(top, "user", rate / USER_EXCESS)
        tenant = self._both_tiers(top, "tenant", rate * others_share / TENANT_EXCESS)
        address = _nice(rate * _share(top, "ip", "") / IP_EXCESS)
        per_tenant = rate * _share(top, "tenant", "") / ROUTE_EXCESS
        others = {"mode": "degrade", "factor": OTHERS_FACTOR}
        self.limits = [
            Limit("per-user", "user", "", user, **others),
            Limit("per-user@paid", "user", "paid", _nice(user * PAID_FACTOR), **others),
            Limit("per-tenant", "tenant", "", tenant, **others, route="most routes"),
            Limit("per-tenant@paid", "tenant", "paid", _nice(tenant * PAID_FACTOR), **others,
                  route="most routes"),
            Limit("per-ip", "ip", "", address, **others),
            Limit("metadata", "tenant", "", _nice(per_tenant * shares.get(routes[0], 0)), "open",
                  route=routes[0]),
            Limit("generate", "tenant", "", _nice(per_tenant * shares.get(routes[1], 0)),
                  "degrade", GENERATE_FACTOR, GENERATE_FOR_S, route=routes[1]),
        ]
        self.tiers = {}  # (descriptor, value) -> tier
        self.watched = []
        for name in ("user", "tenant", "ip"):
            by_tier = {"free": 0, "paid": 0}
            for value in top[name]:
                if by_tier.get(value["tier"], self.WATCHED) >= self.WATCHED:
                    continue
                if not is_plain(value["value"]):
                    continue
                by_tier[value["tier"]] += 1
                self.watched.append((name, value["value"]))
                self.tiers[name, value["value"]] = value["tier"]

    @staticmethod
    def _both_tiers(top, descriptor, rate):
        """A free limit that binds the busiest free key, and so that the paid one binds, too."""
        free, paid = _share(top, descriptor, "free"), _share(top, descriptor, "paid")
        return _nice(rate * min([share for share in (free, paid / PAID_FACTOR) if share] or [0]))

    def by_label(self):
        return {limit.label: limit for limit in self.limits}

    def yaml(self, runtime_dir, host_name, addresses):
        """The configuration of one host."""
        limits = self.by_label()

        def rate(label):
            limit = limits[label]
            return f"{{limit: {limit.rate}/s, burst: {limit.burst}}}"

        def rule(name, routes=(), more=()):
            limit = limits[name]
            lines = [f"  - name: {name}"]
            if routes:
                text = ", ".join(f'"{route}"' for route in routes)
                lines.append(f"    match: {{route: [{text}]}}")
            lines += [f"    key: [{limit.key}]", f"    limit: {limit.rate}/s",
                      f"    burst: {limit.burst}", *more]
            return lines

        others = f"    when_degraded: {{mode: degrade, factor: {OTHERS_FACTOR}}}"
        lines = [
            "daemon:",
            f'  runtime_dir: "{runtime_dir}"',
            "redis:",
            "  addresses: [" + ", ".join(f'"{address}"' for address in addresses) + "]",
            f"  host_name: {host_name}",
            f"  shards: {SHARDS}",
            f"  flush_interval: {int(FLUSH_INTERVAL_S * 1000)}ms",
            "rules:",
            *rule("per-user", (),
                  ["    tiers:", f"      paid: {rate('per-user@paid')}", others]),
            *rule("per-tenant", self.other_routes,
                  ["    tiers:", f"      paid: {rate('per-tenant@paid')}", others]),
            *rule("per-ip", (), [others]),
            *rule("metadata", [self.metadata_route],
                  ["    when_degraded: {mode: open, alert: true}"]),
            *rule("generate", [self.generate_route], [
                f"    when_degraded: {{mode: degrade, factor: {GENERATE_FACTOR}, "
                f"for: {GENERATE_FOR_S}s, then: closed, alert: true}}"]),
        ]
        return "\n".join(lines) + "\n"


def is_plain(text):
    """Whether a value from a log can stand in a rule and on a command line as it is."""
    return text.isprintable() and not set(text) & set('"\\*?[]\ufffd')


# The shard of a bucket's text, as every host computes it: FNV-1a and a finaliser.
_MASK = (1 << 64) - 1


def _split_mix(x):
    x = (x + 0x9e3779b97f4a7c15) & _MASK
    x = ((x ^ (x >> 30)) * 0xbf58476d1ce4e5b9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94d049bb133111eb) & _MASK
    return x ^ (x >> 31)


def shard_of(label, value):
    h = 0xcbf29ce484222325
    text = f"{label}:" + value.replace("%", "%25").replace("\0", "%00")
    for byte in text.encode("utf-8", "surrogateescape"):
        h = ((h ^ byte) * 0x100000001b3) & _MASK
    return _split_mix(h) % SHARDS
