"""Measurements; each module prints the table that `docs/benchmarks.md` keeps."""
