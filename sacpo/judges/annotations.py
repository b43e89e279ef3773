"""The `annotations` judge: verdicts of AlpacaEval's annotators, read from `annotations.json`.

A row has `instruction`, `output_1` and `output_2`, and in `preference` a number from 1 (the first output is better) to
2 (the second is), where weighted annotators give any number between them. 0 is a draw in older versions.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sacpo.errors import DataError
from sacpo.judges.completions import printable
from sacpo.judges.verdicts import AnswerPair, JudgeFunction, Verdict, outcome_of

_TEXTS = ("instruction", "output_1", "output_2")
_NO_ANNOTATION = "the file has no annotation of these two answers; import one that has"
Key = tuple[str, str, str]
"""Prompt, the policy's answer, the baseline's answer."""


@dataclass(frozen=True)
class Annotation:
    """An annotator's verdict.

    Attributes:
        score: Of the second output, in [0, 1]; None if the annotator gave no preference.
        raw: The annotator's completion, or the preference.
    """

    instruction: str
    output_1: str
    output_2: str
    score: float | None
    raw: str

    @property
    def keys(self) -> dict[Key, float | None]:
        """The annotation read both ways: the score of the policy's answer, whichever output it is."""
        other = None if self.score is None else 1 - self.score
        same = None if self.score is None else 0.5
        if self.output_1 == self.output_2:
            return {(self.instruction, self.output_1, self.output_2): same}
        return {
            (self.instruction, self.output_2, self.output_1): self.score,
            (self.instruction, self.output_1, self.output_2): other,
        }


def read_annotations(path: Path) -> list[Annotation]:
    """Read a file of annotations of one annotator.

    Raises:
        DataError: it cannot be read, a row lacks a field or has a preference outside [1, 2], or it has several
            annotators.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); give AlpacaEval's annotations.json") from None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: is not a list of objects with rows in it; give AlpacaEval's annotations.json")
    annotators = sorted({str(row.get("annotator", "")) for row in rows})
    if len(annotators) > 1:
        raise DataError(
            f"{path}: has annotations of {len(annotators)} annotators ({', '.join(annotators[:5])}); give a file of one"
        )
    return [_annotation(row, f"{path}: row {number}") for number, row in enumerate(rows, start=1)]


def _annotation(row: dict[str, Any], where: str) -> Annotation:
    for name in _TEXTS:
        if not isinstance(row.get(name), str):
            raise DataError(f"{where} has no text in {name}; it needs {', '.join(_TEXTS)} and preference")
    if "preference" not in row:
        raise DataError(f"{where} has no preference: 1 for the first output, 2 for the second, or a number between")
    preference, score = row["preference"], None
    if preference is not None and not (isinstance(preference, float) and math.isnan(preference)):
        is_number = isinstance(preference, int | float) and not isinstance(preference, bool)
        if not is_number or not (preference == 0 or 1 <= preference <= 2):
            raise DataError(f"{where} has preference {preference!r}; it must be from 1 to 2, or 0 for a draw")
        score = 0.5 if preference == 0 else float(preference) - 1
    raw = row.get("preference_raw_completion") or row.get("raw_completion") or f"preference {preference}"
    return Annotation(row["instruction"], row["output_1"], row["output_2"], score, printable(str(raw)))


def from_annotations(annotations: Sequence[Annotation], *, probabilities: bool) -> JudgeFunction:
    """A judge that looks verdicts up. Several annotations of the same answers are repeats.

    A pair without an annotation is `unavailable`; an annotation without a preference is `unparsable`.

    Args:
        annotations: The annotations.
        probabilities: Whether the preference is the score; otherwise the score is that of the outcome.
    """
    by_key: dict[Key, list[tuple[float | None, str]]] = defaultdict(list)
    for annotation in annotations:
        for key, score in annotation.keys.items():
            by_key[key].append((score, annotation.raw))

    def judge(pairs: list[AnswerPair]) -> list[Verdict]:
        verdicts = []
        for i, pair in enumerate(pairs):
            known = by_key.get((pair.prompt, pair.policy, pair.baseline))
            if not known:
                verdicts.append(Verdict(i, "none", 0, "unavailable", _NO_ANNOTATION, attempts=0))
                continue
            for repeat, (score, raw) in enumerate(known):
                outcome = "unparsable" if score is None else outcome_of(score)
                soft = score if probabilities else None
                verdicts.append(Verdict(i, "none", repeat, outcome, raw, attempts=0, score=soft))
        return verdicts

    return judge
