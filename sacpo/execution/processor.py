"""What this machine's processor computes slowly."""

from __future__ import annotations

import re
from pathlib import Path

from sacpo.spaces.space import Space

_CPU_INFO = Path("/proc/cpuinfo")
_FLAGS = re.compile(r"^(?:flags|Features)\s*:\s*(.*)$", re.M)
_FAST_BFLOAT16 = frozenset(("avx512bw", "avx512_bf16", "amx_bf16", "bf16"))
"""Instructions with which torch computes in bfloat16 as fast as in float32, or faster."""


def number_format_note(space: Space) -> str:
    """A note if a sweep computes in bfloat16 on a processor without instructions for it; empty otherwise."""
    if space.resources.gpus_per_worker or space.model.dtype != "bfloat16" or has_fast_bfloat16():
        return ""
    return (
        "model.dtype is bfloat16, for which this processor has no instructions: float32 computes several times as fast "
        "here, and needs twice the memory"
    )


def has_fast_bfloat16() -> bool:
    """Whether this machine's processor has such instructions; also true where this is unknown."""
    try:
        listed = _FLAGS.search(_CPU_INFO.read_text())
    except OSError:
        return True
    return listed is None or not _FAST_BFLOAT16.isdisjoint(listed[1].split())
