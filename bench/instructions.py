"""Instructions, locked instructions and cache lines of a check, exactly: under callgrind, with the
clock standing still. The numbers repeat to a few thousandths, so they are held where times cannot
be: `instructions.json` is what was recorded, and no row may leave it by more than 2 %.
"""

import glob
import json
import os
import re
import shutil
import subprocess
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
RECORDED = os.path.join(HERE, "instructions.json")
TOLERANCE = 0.02
# A denial in 64 is written down; how many of them fall into the count is chance.
LOCKED_NOISE = 0.05
RUN_TIMEOUT_S = 300
# In order: a later one may want what an earlier one left (an exhausted bucket).
ROWS = ["check_hot_handle", "check_hot_keyed", "check_three_rules", "check_deny",
        "check_deny_keyed", "check_cold_1m_single", "check_cold_1m_batch3",
        "check_cold_1m_batch16"]
CONTENDERS = {"ns": "", "floor_ns": "floor_", "with_decision_ns": "with_decision_"}
# The cache that sluice_instructions empties.
DATA_CACHE = "32768,8,64"


class Unavailable(Exception):
    """Why nothing can be counted here."""


def compiler_of(directory):
    """What built the client in `directory`: counts are of one compiler's code."""
    text = subprocess.run(
        ["readelf", "-p", ".comment", os.path.join(directory, "client", "libsluice.so.0.1.0")],
        check=True, capture_output=True, text=True, timeout=RUN_TIMEOUT_S).stdout
    return re.search(r"\]\s+(.*)$", text, re.MULTILINE).group(1).strip()


class LockedAddresses:
    """Which instructions of a program or library are locked."""

    def __init__(self):
        self._of = {}

    def __contains__(self, place):
        path, address = place
        if path not in self._of:
            text = subprocess.run(["objdump", "-d", "--no-show-raw-insn", path], check=True,
                                  capture_output=True, text=True, timeout=RUN_TIMEOUT_S).stdout
            self._of[path] = {
                int(at, 16) for at in re.findall(
                    r"^\s*([0-9a-f]+):\s+(?:lock |xchg .*\()", text, re.MULTILINE)}
        return address in self._of[path]


def totals(dump):
    """{event: count} of a dump's text."""
    names = re.search(r"^events: (.*)$", dump, re.MULTILINE).group(1).split()
    values = re.search(r"^totals: (.*)$", dump, re.MULTILINE).group(1).split()
    return dict(zip(names, map(int, values)))


def count_locked(dump, locked):
    """How many locked instructions a dump executed."""
    path, after_calls, total = None, False, 0
    for line in dump.splitlines():
        if line.startswith("ob="):
            path = line[3:]
        elif line.startswith("calls="):
            after_calls = True  # the next line is the callee's cost
        elif line.startswith("0x"):
            if not after_calls:
                fields = line.split()
                if path and os.path.exists(path) and (path, int(fields[0], 16)) in locked:
                    total += int(fields[2])
            after_calls = False
    return total


def read(dumps):
    """{row: {figure: number}} of callgrind's dumps."""
    rows, locked = {}, LockedAddresses()
    for dump in dumps:
        named = re.search(r"Client Request: (\w+) (\w+) (\w+) (\d+)$", dump, re.MULTILINE)
        if named is None or named.group(3) not in CONTENDERS:
            continue
        what, row, contender, checks = named.groups()
        prefix, checks = CONTENDERS[contender], int(checks)
        figures, events = rows.setdefault(row, {}), totals(dump)
        if what == "count":
            figures[prefix + "instructions"] = round(events["Ir"] / checks, 2)
            figures[prefix + "locked"] = round(count_locked(dump, locked) / checks, 2)
        else:
            figures[prefix + "lines"] = round((events["D1mr"] + events["D1mw"]) / checks, 1)
    return rows


def count(directory, rows):
    """A list of rows; each with what a check and its floor take."""
    program = os.path.join(directory, "bench", "sluice_instructions")
    for tool in ("valgrind", "objdump", "readelf"):
        if shutil.which(tool) is None:
            raise Unavailable(f"{tool} is missing: scripts/install-deps all installs it")
    if not os.path.exists(program):
        raise Unavailable(f"{program} is missing: was valgrind installed when it was configured?")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--dump-instr=yes",
             "--compress-pos=no", "--compress-strings=no", "--cache-sim=yes", f"--D1={DATA_CACHE}",
             f"--callgrind-out-file={folder}/out", program, *rows],
            capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"callgrind: {done.returncode}: {done.stderr[-2000:]}")
        dumps = []
        for path in glob.glob(f"{folder}/out.*"):
            with open(path, encoding="utf-8") as file:
                dumps.append(file.read())
    counted = read(dumps)
    return [{"name": name, **counted[name]} for name in rows]


def off_record(rows, compiler):
    """What left the record by more than the tolerance: a sentence each. None: another compiler's."""
    with open(RECORDED, encoding="utf-8") as file:
        recorded = json.load(file)
    if recorded["compiler"] != compiler:
        return None
    problems = []
    for row in rows:
        for figure, was in recorded["rows"].get(row["name"], {}).items():
            now = row[figure]
            if abs(now - was) > max(TOLERANCE * was, LOCKED_NOISE):
                problems.append(f"{row['name']}: {figure} {now}, recorded {was}")
        if row["name"] not in recorded["rows"]:
            problems.append(f"{row['name']}: not recorded")
    return problems


def record(rows, compiler):
    """Writes down instructions and locked instructions of the product."""
    kept = {row["name"]: {figure: row[figure] for figure in ("instructions", "locked")}
            for row in rows}
    with open(RECORDED, "w", encoding="utf-8") as file:
        json.dump({"compiler": compiler, "rows": kept}, file, indent=1)
        file.write("\n")


def text_of(rows):
    lines = [f"{'per check':<26} {'instructions':>12} {'floor':>7} {'ratio':>6} {'locked':>7} "
             f"{'floor':>6} {'lines':>6} {'floor':>6} {'with decision':>14}"]
    for row in rows:
        ratio = row["instructions"] / row["floor_instructions"]
        decision = row.get("with_decision_instructions")
        lines.append(f"{row['name']:<26} {row['instructions']:>12} {row['floor_instructions']:>7} "
                     f"{ratio:>6.2f} {row['locked']:>7} {row['floor_locked']:>6} "
                     f"{row['lines']:>6} {row['floor_lines']:>6} {decision or '':>14}")
    return "\n".join(lines)
