"""Standard errors of paired differences from verdicts that are probabilities, beside those from outcomes.

Exact optima of the synthetic world at several lambda answer its 24 questions, several times each, against the SFT
policy. Two judges decide: `noisy`, which reverses a fifth of its verdicts, by the outcome of one call in each order or
by the probability of it; and `gold`, by the higher gold score or by the Bradley-Terry probability of the two scores.
The last line is JSON: for each judge the ratio of the standard errors (probabilities / outcomes), and that of
difference / standard error, each the median over pairs of policies and draws.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence

import numpy as np

from sacpo.judges.noisy import noisy
from sacpo.judges.scalar import by_score, gold
from sacpo.judges.verdicts import AnswerPair, JudgeFunction
from sacpo.synthetic import world
from tests.benchmarks._options import parse

LAMBDAS = (0.0, 0.5, 1.0, 2.0, 4.0)
BETA = 5.0
ERROR = 0.2
CRITERION = "harmlessness"
TEXTS = [" ".join(slot[k] for slot, k in zip(world.SLOTS, answer, strict=True)) for answer in world.ANSWERS]


def main() -> None:
    """Draw answers, judge them both ways, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=20, help="draws of all answers and errors")
    parser.add_argument("--samples", type=int, default=4, help="answers to each question")
    options = parse(parser, draws=2, samples=2)
    rng = np.random.default_rng(0)
    sft = np.full_like(world.REWARD, 1 / len(TEXTS))
    policies = [world.optimum(sft, 1 / BETA, value / BETA) for value in LAMBDAS]
    ratios: dict[str, list[tuple[float, float]]] = {"noisy": [], "gold": []}
    for draw in range(options.draws):
        answers = [drawn(rng, policy, options.samples) for policy in [sft, *policies]]
        judges = {
            "noisy": [noisy(CRITERION, error=ERROR, order_bias=0, repeats=1, seed=draw, probabilities=p) for p in BOTH],
            "gold": [by_score(gold(CRITERION), probabilities=p) for p in BOTH],
        }
        for name, (outcomes, probabilities) in judges.items():
            hard, soft = (prompt_means(judge, answers) for judge in (outcomes, probabilities))
            ratios[name] += [compared(hard[:, i] - hard[:, j], soft[:, i] - soft[:, j]) for i, j in PAIRS]
    figures = {}
    for name, pairs in ratios.items():
        error, signal = np.nanmedian(np.array(pairs), axis=0)
        figures |= {f"{name}_standard_error_ratio": round(error, 3), f"{name}_signal_ratio": round(signal, 3)}
    print(json.dumps(figures))


BOTH = (False, True)
PAIRS = list(itertools.combinations(range(len(LAMBDAS)), 2))


def drawn(rng: np.random.Generator, policy: world.Array, samples: int) -> list[list[str]]:
    """Answers of a policy to every question."""
    return [[TEXTS[k] for k in rng.choice(len(TEXTS), samples, p=row / row.sum())] for row in policy]


def prompt_means(judge: JudgeFunction, answers: Sequence[list[list[str]]]) -> np.ndarray:
    """Mean score of each prompt (rows) and policy (columns) against the SFT policy, whose answers come first."""
    columns = []
    for ours in answers[1:]:
        pairs = [
            AnswerPair(str(i), "", k, prompt, *texts)
            for i, (prompt, _) in enumerate(world.PROMPTS)
            for k, texts in enumerate(zip(ours[i], answers[0][i], strict=True))
        ]
        verdicts = judge(pairs)
        prompts = np.array([int(pairs[v.pair].prompt_id) for v in verdicts])
        scores = np.array([v.decided_score for v in verdicts])
        columns.append(np.bincount(prompts, weights=scores) / np.bincount(prompts))
    return np.column_stack(columns)


def compared(hard: np.ndarray, soft: np.ndarray) -> tuple[float, float]:
    """Ratio of the standard errors of two mean differences, and of their values in standard errors."""
    errors = [part.std(ddof=1) for part in (hard, soft)]
    if min(errors) == 0 or hard.mean() == 0:
        return float("nan"), float("nan")
    return errors[1] / errors[0], (soft.mean() / errors[1]) / (hard.mean() / errors[0])


if __name__ == "__main__":
    main()
