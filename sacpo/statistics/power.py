"""What a number of prompts can show."""

import math

from scipy.stats import norm


def smallest_difference(prompts: int, power: float = 0.8, confidence: float = 0.95, deviation: float = 0.5) -> float:
    """The smallest true difference of a win rate from 0.5 that so many prompts show (normal approximation).

    "Show" means that the two-sided interval leaves out 0.5 with the probability `power`.

    Args:
        prompts: Number of prompts, each judged at least once.
        power: Probability with which the difference is to be seen, in (0, 1).
        confidence: Nominal coverage of the interval, in (0, 1).
        deviation: Standard deviation of a prompt's mean score. 0.5, the most there can be, is that of one verdict a
            prompt without ties; both orders, repeats and ties lessen it.

    Returns:
        The difference, in shares won. More than 0.5 means that no difference is sure to be seen.

    Raises:
        ValueError: There is no prompt.
    """
    if prompts < 1:
        raise ValueError("nothing can be shown without prompts")
    return float(norm.ppf((1 + confidence) / 2) + norm.ppf(power)) * deviation / math.sqrt(prompts)
