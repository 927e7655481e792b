"""What the two daemons say of themselves, sampled ten times a second."""

import threading
import time

import admin

SAMPLE_S = 0.1
HEALTHY, STALE, EMERGENCY = 0, 1, 2


class Sample:
    """One look at one daemon."""

    def __init__(self, at_s, metrics):
        self.at_s = at_s
        self.age_s = _one(metrics, "sluice_unreconciled_age_seconds")
        self.modes = [EMERGENCY] * len(metrics.get("sluice_shard_mode", []))
        for labels, value in metrics.get("sluice_shard_mode", []):
            self.modes[int(labels["shard"])] = int(value)
        # The demo's clients run as the daemons' user; the daemons are right to warn of it.
        self.alarms = sorted(labels["id"] for labels, _ in metrics.get("sluice_alarm", [])
                             if labels["id"] != "client-same-user")


def _one(metrics, name):
    samples = metrics.get(name, [])
    return samples[0][1] if samples else 0.0


class Watcher:
    """Samples every daemon in a thread of its own until stopped."""

    def __init__(self, hosts, start):
        self._start = start
        self.samples = {name: [] for name in hosts}  # appended to by one thread each
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=item, daemon=True)
                         for item in hosts.items()]
        for thread in self._threads:
            thread.start()

    def _run(self, name, socket_path):
        while not self._stop.wait(SAMPLE_S):
            try:
                metrics = admin.metrics(socket_path)
            except OSError:
                continue
            self.samples[name].append(Sample(time.monotonic() - self._start, metrics))

    def stop(self):
        self._stop.set()
        for thread in self._threads:
            thread.join(5)

    def latest(self):
        """The last sample of each host that has one."""
        return [samples[-1] for samples in self.samples.values() if samples]

    def worst(self, second):
        """Of one second: (greatest age, {shards in emergency on any host}, {stale shards})."""
        age, emergency, stale = 0.0, set(), set()
        for samples in self.samples.values():
            for sample in samples[-int(5 / SAMPLE_S):]:
                if not second <= sample.at_s < second + 1:
                    continue
                age = max(age, sample.age_s)
                emergency.update(i for i, m in enumerate(sample.modes) if m == EMERGENCY)
                stale.update(i for i, m in enumerate(sample.modes) if m == STALE)
        return age, emergency, stale - emergency

    def alarms(self):
        """{alarm id: [hosts]} that stand now."""
        standing = {}
        for name, samples in self.samples.items():
            for alarm in samples[-1].alarms if samples else ():
                standing.setdefault(alarm, []).append(name)
        return standing

    def emergencies(self, shard, end_s):
        """[(begin, end)] while any host had `shard` in emergency; a sample wide of the truth."""
        spans = []
        for samples in self.samples.values():
            begin = None
            last_s = 0.0
            for sample in samples:
                is_on = shard < len(sample.modes) and sample.modes[shard] == EMERGENCY
                if is_on and begin is None:
                    begin = last_s  # it began after the sample before
                elif not is_on and begin is not None:
                    spans.append((begin, sample.at_s))
                    begin = None
                last_s = sample.at_s
            if begin is not None:
                spans.append((begin, end_s))
        merged = []
        for begin, end in sorted(spans):
            if merged and begin <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((begin, end))
        return merged

    def calm_age(self):
        """The greatest age while no shard of that host was in emergency, nor a second around."""
        oldest = 0.0
        for samples in self.samples.values():
            troubled = [sample.at_s for sample in samples if EMERGENCY in sample.modes]
            begin, end = (min(troubled) - 1, max(troubled) + 1) if troubled else (1e9, 0)
            oldest = max([oldest, *(sample.age_s for sample in samples
                                    if not begin <= sample.at_s <= end)])
        return oldest

    def was_stale(self, shard):
        """Whether any host ever saw this shard stale."""
        return any(shard < len(sample.modes) and sample.modes[shard] == STALE
                   for samples in self.samples.values() for sample in samples)

    def age_before(self, at_s):
        """The greatest age within the second before `at_s`: how long use had gone unreported."""
        return max((sample.age_s for samples in self.samples.values() for sample in samples
                    if at_s - 1 <= sample.at_s <= at_s + 2 * SAMPLE_S), default=0.0)
