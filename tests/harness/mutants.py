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


def compile_mutated(source, folder, mutant=None):
    """Compiles the source, or `mutant` in its place, with headers in the folder before those of the
    tree. Returns the object's name in the build, and the new one's."""
    argv, as_named = _compile_command(source)
    original = argv[argv.index("-o") + 1]
    compiled = os.path.join(folder, os.path.basename(source) + ".o")
    argv[argv.index("-o") + 1] = compiled
    if mutant:
        argv[argv.index(as_named)] = mutant
    argv.insert(next(i for i, word in enumerate(argv) if word.startswith("-I")), f"-I{folder}")
    done = run([word for word in argv if word not in ("-Werror", "-g")], COMPILE_TIMEOUT_S)
    assert done.returncode == 0, f"{source}: {done.stderr[-2000:]}"
    return original, compiled


def link_in_front(target, objects, folder):
    """The program `target` of the build with these objects, as compile_mutated returns them, in the
    place of its own or in front of the libraries that hold them."""
    done = run(["ninja", "-t", "commands", target], COMPILE_TIMEOUT_S)
    argv = shlex.split(done.stdout.splitlines()[-1])
    program = os.path.join(folder, os.path.basename(target))
    out = argv.index("-o") + 1
    argv[out] = program
    for original, compiled in objects:
        if original in argv:
            argv[argv.index(original)] = compiled
        else:
            argv.insert(out + 1, compiled)
    done = run(argv, COMPILE_TIMEOUT_S)
    assert done.returncode == 0, f"{target}: {done.stderr[-2000:]}"
    return program


def link_with(source, mutant, target, folder):
    """The program `target` of the build with `mutant` in the place of `source`. A header's is seen by
    the target's own source alone, which is named as the target."""
    if source.endswith(".h"):
        compiled = compile_mutated(f"{target}.cc", folder)
    else:
        compiled = compile_mutated(source, folder, mutant)
    return link_in_front(target, [compiled], folder)
