"""The difference of win rates that a given number of prompts can detect."""

import math

from scipy.stats import norm


def smallest_difference(prompts: int, power: float = 0.8, confidence: float = 0.95, deviation: float = 0.5) -> float:
    """Smallest true difference between a win rate and 0.5 that a comparison detects (normal approximation).

    A difference is detected if the two-sided interval excludes 0.5.

    Args:
        prompts: Number of prompts, each judged at least once.
        power: Probability of detecting the difference, in (0, 1).
        confidence: Nominal coverage of the interval, in (0, 1).
        deviation: Standard deviation of a prompt's mean score. The default 0.5 is the largest possible value: one
            verdict per prompt and no ties. Both presentation orders, repeats and ties reduce it.

    Returns:
        The difference, as a fraction of prompts. Above 0.5, no difference is detected with this power.

    Raises:
        ValueError: There is no prompt.
    """
    if prompts < 1:
        raise ValueError(f"prompts = {prompts}: at least 1 prompt is needed to detect a difference")
    return float(norm.ppf((1 + confidence) / 2) + norm.ppf(power)) * deviation / math.sqrt(prompts)
