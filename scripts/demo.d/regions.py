"""Regions, far apart: strict limits that are lent from a home, one of which moves, a limit that each
region counts by itself, and a region that the others lose."""

import os
import sys
import time

import measure
import report
from children import DemoError
from cluster import SLOTS, Node, call
from comparison import ASKED
from scenarios import KEY, Scenario, evenly

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tests"))
from chaos.proxy import Fault, Proxy  # pylint: disable=wrong-import-position

NAMES = ("ap", "eu", "us")
# Each cluster is near at NEAR, and the same port of FAR leads there through its proxy.
NEAR, FAR = "127.0.0.1", "127.0.0.2"
WAY_S = 0.04  # there, and as much back
WHOLE_S = 20.0


class Region:
    """A cluster of one primary, and the way there from other regions."""

    def __init__(self, folder, taken):
        # It names its port and no host, so that a daemon stays on the way by which it asked.
        self.node = Node(folder, taken,
                         {"cluster-preferred-endpoint-type": "unknown-endpoint"})
        call(self.node.port, "CLUSTER", "ADDSLOTSRANGE", 0, SLOTS - 1)
        end_s = time.monotonic() + WHOLE_S
        while "cluster_state:ok" not in call(self.node.port, "CLUSTER", "INFO"):
            if time.monotonic() > end_s:
                raise DemoError(f"{self.node.address} is no cluster after {WHOLE_S:.0f} s")
            time.sleep(0.05)
        self._proxy = Proxy(self.node.port, at=(FAR, self.node.port))
        self.heal()

    def cut_off(self):
        self._proxy.fault = Fault(drop=True)

    def heal(self):
        self._proxy.fault = Fault(delay_s=WAY_S, jitter_s=WAY_S / 10)


def _strict(home, mode, epoch=0):
    return ("key: [tenant]", "limit: 300/s", "burst: 150",
            "consistency: {mode: strict, "
            f"home: {{tenant: {{{KEY}: {home}}}, default: ap}}, epoch: {epoch}}}",
            f"when_degraded: {{mode: {mode}}}")


class Regions(Scenario):
    """A host in each of three regions, all asking for the same key at twice its limit."""

    hosts = len(NAMES)
    rate, burst, local_burst = 300, 150, 300
    beat_s = 0.5
    moves_s = (4.0, 5.0, 6.0)  # when each host learns of the new home
    cut_s, heal_s = 10.0, 14.0
    seconds = 26.0
    title = "300/s over three regions, 40 ms apart; eu is lost at 10 s for four seconds"
    rules = (("moved", _strict("eu", "closed")), ("closed", _strict("eu", "closed")),
             ("open", _strict("eu", "open")), ("local", ("key: [tenant]", "limit: 300/s")))

    def start_redis(self):
        report.say(f"starting three Redis Clusters, for {', '.join(NAMES)}")
        taken = set()
        self._regions = [Region(self.folder, taken) for _ in NAMES]

    def redis_lines(self, host):
        regions = ", ".join(
            f'{name}: {{addresses: ["{NEAR if at == host else FAR}:{region.node.port}"], '
            "request_timeout: 500ms}" for at, (name, region) in enumerate(zip(NAMES, self._regions)))
        return [f"region: {NAMES[host]}", f"host_name: host-{host + 1}",
                f"exchange: {self.beat_s * 1000:.0f}ms", f"regions: {{{regions}}}"]

    def timetables(self):
        # Each region asks for two thirds of the limit: twice the limit in all.
        return [(host, evenly(((0.002 * host, self.seconds, 2 * self.rate / self.hosts),)))
                for host in range(self.hosts)]

    def events(self):
        rules = (("moved", _strict("us", "closed", 1)), *self.rules[1:])
        eu = self._regions[NAMES.index("eu")]
        return [*((at_s, f"{name} is told that moved is at home in us",
                   lambda host=host: self.write_config(host, rules))
                  for host, (name, at_s) in enumerate(zip(NAMES, self.moves_s))),
                (self.cut_s, "eu is cut off", eu.cut_off), (self.heal_s, "eu is back", eu.heal)]

    def judge(self, told):
        asked, allowed = told
        instants = {label: [at for at, _ in pairs] for label, pairs in allowed.items()}
        calm = {label: [at for at in of if at < self.cut_s] for label, of in instants.items()}
        far = [at for host, pairs in self.told_by if NAMES[host] != "eu"
               for at, _ in pairs["closed"]]
        spans = {"first home": (1.5, self.moves_s[0]), "new home": (8.0, self.cut_s),
                 "eu is lost": (self.cut_s + 2.0, self.heal_s), "after": (self.seconds - 4, self.seconds)}

        def per_s(of, span):
            return sum(spans[span][0] <= at < spans[span][1] for at in of) / (
                spans[span][1] - spans[span][0])

        print(f"\n{'rule':<8} {'asked':>7} {'allowed':>8}" + "".join(
            f" {span + '/s':>13}" for span in spans) + f" {'over, worst window':>19}", flush=True)
        over = {}
        for label, of in instants.items():
            # open and local give their limit up where they are cut off.
            judged = calm[label] if label in ("open", "local") else of
            over[label] = measure.over(judged, self.rate,
                                       self.local_burst if label == "local" else self.burst)
            print(f"{label:<8} {len(asked):>7} {len(of):>8}" + "".join(
                f" {per_s(of, span):>13.0f}" for span in spans)
                + f" {over[label]:>12.1f} tokens", flush=True)
        bound = (self.hosts - 1) * (self.local_burst + self.rate * (self.beat_s + WAY_S))
        faults = [
            *((f"{label} let {over[label]:.1f} tokens too many through", over[label] > 1e-3)
              for label in ("moved", "closed", "open")),
            (f"local let {over['local']:.1f} tokens too many through, of {bound:.0f}",
             over["local"] > bound),
            ("local is not near its limit before the cut",
             not 0.7 < per_s(instants["local"], "new home") / self.rate < 1.15),
            ("closed let something through in a region that had lost its home",
             any(spans["eu is lost"][0] <= at < self.heal_s for at in far)),
            ("closed let nothing through in the region of its home",
             per_s(instants["closed"], "eu is lost") == 0),
            ("open did not let all through in the regions that had lost its home",
             per_s(instants["open"], "eu is lost") < 1.25 * self.rate),
            *((f"moved gave less than the limit: {span}",
               per_s(instants["moved"], span) < 0.7 * self.rate) for span in spans),
            ("closed is not back after the cut",
             per_s(instants["closed"], "after") < 0.7 * self.rate)]
        panels = [(ASKED, asked, self.rate),
                  *((label, of, self.rate) for label, of in instants.items())]
        return [said for said, is_wrong in faults if is_wrong], panels
