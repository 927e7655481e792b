#!/usr/bin/env python3
"""Writes a C++ header with the text of each Lua script: embed.py OUT NAME=FILE..."""

import sys


def main():
    out, scripts = sys.argv[1], sys.argv[2:]
    lines = ["// Made from lua/ by lua/embed.py.", "#pragma once", "", "namespace sluice::lua {", ""]
    for script in scripts:
        name, path = script.split("=", 1)
        with open(path, encoding="utf-8") as source:
            text = source.read()
        # A string literal has a bound in MSVC only, but raw literals must not meet their delimiter.
        assert ')lua"' not in text
        lines += [f'inline constexpr char {name}[] = R"lua({text})lua";', ""]
    lines += ["}  // namespace sluice::lua", ""]
    with open(out, "w", encoding="utf-8") as header:
        header.write("\n".join(lines))


if __name__ == "__main__":
    main()
