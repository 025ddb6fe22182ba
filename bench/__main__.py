"""Runs the benchmarks and prints one JSON line per figure (`make bench`)."""

from __future__ import annotations

import importlib
import json
import sys

BENCHES = (
    *(
        "netcode",
        "matchmaker",
        "httpd",
        "httpd_attacks",
        "turn",
        "gameserver",
        "gameserver_attacks",
        "messages",
        "profiles",
        "seats",
        "stack",
    ),
)


def main(names: list[str]) -> int:
    if {"-h", "--help"} & set(names):
        print(f"usage: python -m bench [NAME ...]\n\n{__doc__}\nNames, by default all: {', '.join(BENCHES)}")
        return 0
    for name in names or BENCHES:
        if name not in BENCHES:
            print(f"no bench {name!r}; there are: {', '.join(BENCHES)}", file=sys.stderr)
            return 2
        print(f"{name} ...", file=sys.stderr, flush=True)
        for figure in importlib.import_module(f"bench.{name}").run():
            print(json.dumps({"bench": name, **figure}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
