"""A sweep in bfloat16 on a processor without instructions for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sacpo.execution import processor
from sacpo.execution.processor import has_fast_bfloat16, number_format_note
from tests.spaces import space


@pytest.mark.parametrize(
    ("listing", "is_fast"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx avx2 fma\n", False),
        ("flags\t\t: fpu avx2 avx512f avx512bw\n", True),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("Features\t: fp asimd\n", False),
        ("processor : 0\n", True),  # unknown
    ],
)
def test_the_processors_instructions_say_whether_bfloat16_is_fast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listing: str, is_fast: bool
) -> None:
    monkeypatch.setattr(processor, "_CPU_INFO", tmp_path / "cpuinfo")
    assert has_fast_bfloat16(), "unknown without the file"
    (tmp_path / "cpuinfo").write_text(listing)
    assert has_fast_bfloat16() is is_fast
    assert number_format_note(space(model__dtype="float32")) == ""
    slow = space(model__dtype="bfloat16")
    assert ("float32 computes several times as fast" in number_format_note(slow)) is not is_fast
    assert number_format_note(space(model__dtype="bfloat16", resources__gpus_per_worker=1)) == ""
