"""The work of the commands, one module for each: a sweep, judging again, the report, an export.

A command parses its arguments and calls one function here. The package may import every other package, but no command;
it imports `cluster` and `steps`, and with them ray and torch, only when they are used.
"""
