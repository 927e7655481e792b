"""What products ask of limits beside "so many a second": each shown by a few requests on two hosts."""

import json
import os
import subprocess
import time

import report
from children import Child, DemoError
from scenarios import Scenario

CALL_S = 30.0     # of one call of sluicectl, at most
NEWS_S = 15.0     # until another host has heard of something, at most
DAY_S = 86_400
HOUR_NS = 3_600_000_000_000


def until(look, what):
    """Looks until something is told; returns it and how long that took, s."""
    begun_s = time.monotonic()
    while True:
        found = look()
        took_s = time.monotonic() - begun_s
        if found:
            return found, took_s
        if took_s > NEWS_S:
            raise DemoError(f"not within {NEWS_S:.0f} s: {what}")
        time.sleep(0.02)


class Products(Scenario):
    """Each act returns (what is told, whether it is as it should be) in order."""

    hosts = 2
    title = "what products ask of limits, on two hosts with one Redis Cluster"
    rules = (
        ("llm", ("key: [model_user]", "limit: 100/h", "burst: 100")),
        ("jobs", ("key: [tenant]", "in_flight: 3")),
        ("api", ("key: [app]", "limit: 100/h", "burst: 100",
                 "priority: {by: class, classes: {critical: 1, sheddable: 0.5}}")),
        ("login", ("key: [user]", "limit: 5/m", "burst: 5",
                   "penalty: {after: 10 per 10s, for: 1h}")),
        ("monthly", ("key: [account]", "algorithm: fixed_window", "limit: 5/month",
                     "calendar: {time_zone: Europe/Berlin, anchor_day: 15}")),
        ("search", ("key: [client]", "limit: 100/h", "burst: 100",
                    "candidate: {limit: 10/h, burst: 10}")),
        ("mail", ("key: [sender]", "limit: 10/h", "burst: 10", "near: 0.5", "soft: {at: 0.8}")),
    )

    def run(self):
        self.start()
        report.say(self.title)
        wrong = []
        for name, act in (("reserve, then settle", self.reserve), ("in flight", self.in_flight),
                          ("priority", self.priority), ("penalty", self.penalty),
                          ("quota by the calendar", self.quota), ("candidate", self.candidate),
                          ("levels", self.levels)):
            print(f"\n{name}", flush=True)
            for told, is_right in act():
                print(f"  {'' if is_right else 'WRONG: '}{told}", flush=True)
                if not is_right:
                    wrong.append(f"{name}: {told}")
        print(flush=True)
        return self.conclude(wrong)

    def argv(self, host, *words):
        ctl = os.path.join(self.arguments.build, "ctl", "sluicectl")
        return [ctl, *map(str, words), "--runtime-dir", self.daemons[host][0]]

    def ctl(self, host, *words):
        """What sluicectl prints as JSON; exit codes of denials are answers too."""
        done = subprocess.run([*self.argv(host, *words), "--json"], capture_output=True, text=True,
                              timeout=CALL_S, check=False, stdin=subprocess.DEVNULL)
        if done.returncode not in (0, 1):
            raise DemoError(f"sluicectl {' '.join(map(str, words))}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def reserve(self):
        estimates = (58, 80, 175, 175, 175)
        held = [self.ctl(0, "reserve", "model_user=ada", "--cost", cost) for cost in estimates]
        granted = [one for one in held if one["allowed"]]
        total = sum(one["estimate"] for one in granted)
        yield (f"of five estimates at once ({', '.join(map(str, estimates))}) {len(granted)} is "
               f"held: {total} of 100", total <= 100 and len(granted) == 1)
        self.ctl(0, "settle", granted[0]["reservation"], 20)
        again = self.ctl(0, "settle", granted[0]["reservation"], 0)["settled"]
        left = self.ctl(0, "check", "model_user=ada", "--peek", "--cost", 0)["remaining"]
        yield f"it cost 20: {left} are left, and nobody settles it again", left in (79, 80) and not again

    def in_flight(self):
        holders = [Child(f"request {n + 1}", self.argv(host, "check", "tenant=acme", "--hold", "1h",
                                                       "--acquire", f"{NEWS_S:.0f}s"),
                         os.path.join(self.folder, f"request-{n}.log"))
                   for n, host in enumerate((0, 0, 1))]

        def held():
            listed = [self.ctl(host, "buckets", "jobs:acme")["buckets"] for host in range(self.hosts)]
            return sum(holder["places"] for buckets in listed for bucket in buckets
                       for holder in bucket["holders"])

        until(lambda: held() == len(holders), "three requests are under way")
        fourth = self.ctl(1, "check", "tenant=acme", "--hold", 0, "--acquire", "200ms")
        yield "three are under way on two hosts; a fourth waits 0.2 s in vain", not fourth["allowed"]
        holders[0].kill()
        fourth, took_s = until(lambda: self.ctl(1, "check", "tenant=acme", "--hold", 0, "--acquire",
                                                f"{NEWS_S:.0f}s"), "a place")
        yield (f"one of host 1 is killed; the next on host 2 is in after {took_s:.1f} s",
               fourth["allowed"])
        for holder in holders:
            holder.kill()

    def priority(self):
        prefetches, payments = (self.ctl(0, "check", "app=shop", f"class={name}", "--count", 200)
                                ["checks_allowed"] for name in ("sheddable", "critical"))
        yield (f"200 prefetches: {prefetches} are admitted; 200 payments then: {payments}, of "
               "what was kept", abs(prefetches - 50) <= 1 and abs(payments - 50) <= 1)

    def penalty(self):
        self.ctl(0, "check", "user=eve", "--count", 20)

        def ban():
            told = self.ctl(1, "check", "user=eve")
            return told if told["banned"] else None

        denied, took_s = until(ban, "host 2 knows of the ban")
        minutes = denied["retry_after_ns"] / 6e10
        yield (f"15 denials on host 1 are a ban, on host 2 too after {took_s:.1f} s: come back in "
               f"{minutes:.0f} minutes", 0.98 * HOUR_NS < denied["retry_after_ns"] <= 1.02 * HOUR_NS)
        self.ctl(1, "unban", "login:eve")
        _, took_s = until(lambda: self.ctl(0, "check", "user=eve")["allowed"], "host 1 lets eve in")
        yield f"unbanned on host 2, let in on host 1 after {took_s:.1f} s", True

    def quota(self):
        first = self.ctl(0, "check", "account=7", "--count", 4)["checks_allowed"]
        fifth = self.ctl(1, "check", "account=7")["allowed"]
        until(lambda: not self.ctl(1, "check", "account=7", "--peek")["allowed"],
              "host 2 knows what was used")
        last = self.ctl(1, "check", "account=7", "--count", 3)
        days = last["retry_after_ns"] / 1e9 / DAY_S
        yield (f"5 a month from the 15th on, in Berlin: {first} on host 1, one on host 2, and "
               f"{last['checks_allowed']} of 3 more; again in {days:.1f} days",
               first == 4 and fifth and last["checks_allowed"] == 0 and 0 <= days <= 31.1)

    def candidate(self):
        allowed = self.ctl(0, "check", "client=web", "--count", 50)["checks_allowed"]

        def denied():
            rule = next(r for r in self.ctl(0, "rules")["rules"] if r["label"] == "search")
            tried = rule["candidate"]
            return tried["would_deny"] if tried["would_allow"] + tried["would_deny"] >= 50 else None

        tried, _ = until(denied, "the candidate's counts")
        yield (f"50 requests, {allowed} admitted; under the lower limit that is tried {tried} would "
               "have been denied", allowed == 50 and abs(tried - 40) <= 1)

    def levels(self):
        seen = [self.ctl(0, "check", "sender=bob")["level"] for _ in range(11)]
        counts = [f"{seen.count(level)} x {level}" for level in ("ok", "near", "soft", "hard")]
        yield (f"eleven requests of ten: {', '.join(counts)}",
               seen[0] == "ok" and seen[-1] == "hard" and {"soft", "near"} <= set(seen))
