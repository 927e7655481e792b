"""A client process of the scenarios: asks by a timetable, and tells each admission's instant.

    asker.py LIBSLUICE RUNTIME_DIR START_NS TIMETABLE KEY LABEL...

TIMETABLE is a file of seconds after START_NS (CLOCK_MONOTONIC), one a line. At each, every LABEL is
asked once for KEY, so that all of them meet the same arrivals. Prints one JSON object at the end:
{label: {"asked": N, "allowed": [[instant_ns, delay_ns], ...]}}.
"""

import ctypes
import json
import sys
import time

ATTACH_S = 10.0


class Options(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_uint32), ("default_allowed", ctypes.c_int32),
                ("runtime_dir", ctypes.c_char_p), ("label", ctypes.c_char_p)]


class Decision(ctypes.Structure):
    """The part of sluice_decision_t that is read; the rest is room for it."""

    _fields_ = [("allowed", ctypes.c_int32), ("source", ctypes.c_uint16),
                ("shadow", ctypes.c_uint16), ("limit", ctypes.c_uint64),
                ("period_ns", ctypes.c_uint64), ("burst", ctypes.c_uint64),
                ("remaining", ctypes.c_uint64), ("retry_after_ns", ctypes.c_uint64),
                ("reset_after_ns", ctypes.c_uint64), ("delay_ns", ctypes.c_uint64),
                ("now_ns", ctypes.c_uint64), ("rest", ctypes.c_char * 4096)]


SOURCE_RULES, SOURCE_EMERGENCY = 0, 3


def main():
    library, runtime_dir, start_ns, timetable, key, *labels = sys.argv[1:]
    sluice = ctypes.CDLL(library)
    options = Options(ctypes.sizeof(Options), 0, runtime_dir.encode(), b"demo")
    client = ctypes.c_void_p()
    if sluice.sluice_open(ctypes.byref(options), ctypes.byref(client)) != 0:
        sys.exit("the client does not open")
    rules = {}
    end_s = time.monotonic() + ATTACH_S
    for label in labels:
        rule = ctypes.c_void_p()
        while sluice.sluice_rule_bind(client, label.encode(), ctypes.byref(rule)) != 0:
            if time.monotonic() > end_s:
                sys.exit(f"no rule {label} within {ATTACH_S:.0f} s")
            time.sleep(0.01)
        rules[label] = rule
    told = {label: {"asked": 0, "allowed": []} for label in labels}
    decision = Decision()
    key = key.encode()
    with open(timetable, encoding="ascii") as file:
        instants = [int(start_ns) + int(float(line) * 1e9) for line in file]
    for due_ns in instants:
        wait_ns = due_ns - time.monotonic_ns()
        if wait_ns > 0:
            time.sleep(wait_ns / 1e9)
        for label, rule in rules.items():
            result = sluice.sluice_rule_check(rule, key, len(key), 1, ctypes.byref(decision))
            if result < 0 or decision.source not in (SOURCE_RULES, SOURCE_EMERGENCY):
                sys.exit(f"{label} was not decided by its rule ({result})")
            told[label]["asked"] += 1
            if result:
                told[label]["allowed"].append([decision.now_ns, decision.delay_ns])
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
