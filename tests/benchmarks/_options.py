"""The option that every benchmark has: `--smoke`."""

from __future__ import annotations

import argparse
from typing import Any


def parse(parser: argparse.ArgumentParser, **toy: Any) -> argparse.Namespace:
    """Parse the command line, with `--smoke` added.

    Args:
        parser: The benchmark's own options.
        toy: Defaults of these options under `--smoke`. Options that the command line sets keep their values.
    """
    parser.add_argument(
        "--smoke", action="store_true", help="run end to end at toy size, in seconds; the figures mean nothing"
    )
    if parser.parse_known_args()[0].smoke:
        parser.set_defaults(**toy)
    return parser.parse_args()
