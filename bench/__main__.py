"""Run the measurements, or one with its options: `python -m bench [NAME [OPTION]...]`."""

from __future__ import annotations

import sys

from bench import gpu, hashing, larger, loading, plan, startup, streaming

MEASUREMENTS = {
    "loading": loading.main,
    "startup": startup.main,
    "hashing": hashing.main,
    "streaming": streaming.main,
    "gpu": gpu.main,
    "larger": larger.main,
    "plan": plan.main,
}
ONLY_NAMED = {"larger"}
"""Measurements that take more of the disk than anybody expects."""


def main() -> None:
    """Run and print the tables."""
    if len(sys.argv) == 1:
        for name, measure in MEASUREMENTS.items():
            if name not in ONLY_NAMED:
                measure([])
        return
    name, *options = sys.argv[1:]
    if name not in MEASUREMENTS:
        sys.exit(f"no measurement {name}: there are {', '.join(MEASUREMENTS)}")
    MEASUREMENTS[name](options)


if __name__ == "__main__":
    main()
