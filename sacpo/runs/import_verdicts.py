"""Matches verdicts from a file of another harness with the answers of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sacpo.errors import SacpoError
from sacpo.judges.annotations import read_annotations
from sacpo.judges.thoughts import without_thoughts
from sacpo.results.load import Results
from sacpo.spaces.evaluation import AnnotationsJudge


def matched(
    settings: AnnotationsJudge, criteria: Sequence[str] | None, results: Results, baseline_id: str
) -> tuple[list[str], frozenset[str]]:
    """The criteria and the trials on whose answers a file has verdicts; prints how many verdicts are left out.

    Args:
        settings: The file.
        criteria: Criteria whose answers are looked at; None for all.
        results: The tables of the sweep.
        baseline_id: The trial of the SFT policy.

    Raises:
        DataError: the file cannot be read.
        SacpoError: it has no verdict on any answers of this sweep.
    """
    annotations = read_annotations(Path(settings.path))
    answers = results.responses[results.responses["criterion"].isin(criteria or results.responses["criterion"])]
    answers = answers.assign(response=answers["response"].map(without_thoughts))
    keys = ["criterion", "prompt_id", "sample"]
    is_baseline = answers["trial_id"] == baseline_id
    baseline = answers[is_baseline].set_index(keys)["response"].rename("baseline")
    pairs = answers[~is_baseline].join(baseline, on=keys, how="inner")
    pair_keys = list(zip(pairs["prompt"], pairs["response"], pairs["baseline"], strict=True))
    known = {key for annotation in annotations for key in annotation.keys}
    own = pairs[[key in known for key in pair_keys]]
    if own.empty:
        raise SacpoError(
            f"{settings.path}: none of its {len(annotations)} annotations compares an answer of this sweep with the "
            "SFT policy's answer to the same prompt; its first instruction is "
            f"{annotations[0].instruction[:80]!r}; annotate what sacpo export --answers alpaca_eval wrote, with "
            "reference_outputs.json as the reference"
        )
    left_out = sum(annotation.keys.keys().isdisjoint(pair_keys) for annotation in annotations)
    if left_out:
        print(f"{left_out} of {len(annotations)} annotations are of no answers of this sweep and are left out")
    return list(dict.fromkeys(own["criterion"])), frozenset(own["trial_id"])
