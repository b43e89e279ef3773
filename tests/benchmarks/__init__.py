"""Benchmarks: each module is a command that prints its figures, the last line as JSON. See `docs/benchmarks.md`."""
