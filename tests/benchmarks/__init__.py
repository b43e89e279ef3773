"""Benchmarks: `python -m tests.benchmarks.NAME` prints a table and, as its last line, its figures as JSON."""
