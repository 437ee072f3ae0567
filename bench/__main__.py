"""Run every measurement, or those named: `python -m bench [loading] [commands]`."""

from __future__ import annotations

import sys

from bench import commands, loading

MEASUREMENTS = {"loading": loading.main, "commands": commands.main}


def main() -> None:
    """Run and print the tables."""
    names = sys.argv[1:] or list(MEASUREMENTS)
    strange = [name for name in names if name not in MEASUREMENTS]
    if strange:
        sys.exit(f"no measurement {', '.join(strange)}: there are {', '.join(MEASUREMENTS)}")
    for name in names:
        MEASUREMENTS[name]()


if __name__ == "__main__":
    main()
