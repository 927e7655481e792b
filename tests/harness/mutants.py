"""A changed source compiled as the build does it, and linked in front of the library that holds it as
it is."""

import json
import os
import shlex
import subprocess

from harness.sluice import ROOT, build_dir

COMPILE_TIMEOUT_S = 300


def run(argv, timeout_s, **env):
    return subprocess.run(argv, cwd=build_dir(), capture_output=True, text=True, timeout=timeout_s,
                          check=False, env={**os.environ, **env})


def _compile_command(source):
    with open(os.path.join(build_dir(), "compile_commands.json"), encoding="utf-8") as file:
        for entry in json.load(file):
            if os.path.realpath(os.path.join(entry["directory"], entry["file"])) == \
                    os.path.join(os.path.realpath(ROOT), source):
                return shlex.split(entry["command"]), entry["file"]
    raise AssertionError(f"nothing compiles {source}")


def write_mutant(source, code, bug, folder):
    """The source with `code`, which must stand in it once, replaced. Returns the new file's path."""
    with open(os.path.join(ROOT, source), encoding="utf-8") as file:
        text = file.read()
    assert text.count(code) == 1, f"{source} has changed; {text.count(code)} places match"
    # A header's place in the tree is a part of its name.
    mutant = os.path.join(folder, source if source.endswith(".h") else os.path.basename(source))
    os.makedirs(os.path.dirname(mutant), exist_ok=True)
    with open(mutant, "w", encoding="utf-8") as file:
        file.write(text.replace(code, bug))
    return mutant


def link_with(source, mutant, target, folder):
    """The program `target` of the build with `mutant` in the place of `source`. A header's is seen by
    the target's own source alone, which is named as the target."""
    is_header = source.endswith(".h")
    argv, as_named = _compile_command(f"{target}.cc" if is_header else source)
    compiled = os.path.join(folder, "mutant.o")
    original = argv[argv.index("-o") + 1]
    argv[argv.index("-o") + 1] = compiled
    if is_header:
        first = next(i for i, word in enumerate(argv) if word.startswith("-I"))
        argv.insert(first, f"-I{folder}")  # found before the header as it is
    else:
        argv[argv.index(as_named)] = mutant
    done = run(argv, COMPILE_TIMEOUT_S)
    assert done.returncode == 0, done.stderr[-2000:]
    done = run(["ninja", "-t", "commands", target], COMPILE_TIMEOUT_S)
    argv = shlex.split(done.stdout.splitlines()[-1])
    program = os.path.join(folder, os.path.basename(target))
    argv[argv.index("-o") + 1] = program
    if original in argv:
        argv[argv.index(original)] = compiled
    else:
        argv[argv.index("-o") + 2:argv.index("-o") + 2] = [compiled]
    done = run(argv, COMPILE_TIMEOUT_S)
    assert done.returncode == 0, done.stderr[-2000:]
    return program
