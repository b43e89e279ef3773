"""Win rates on the human scale: a judge's many verdicts, corrected by a few human labels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t

from sacpo.statistics.win_rate import CONFIDENCE, Estimate, estimates


@dataclass(frozen=True)
class Corrected:
    """A win rate on the human scale.

    Attributes:
        rate: The corrected win rate with its interval; `n_prompts` is the number of labelled prompts.
        weight: How much the judge's verdicts count, in [0, 1]: 0 if they say nothing about the labels.
    """

    rate: Estimate
    weight: float


def prediction_powered(
    labels: ArrayLike, judged: ArrayLike, elsewhere: ArrayLike, confidence: float = CONFIDENCE
) -> Corrected:
    """Estimate the mean label by prediction-powered inference with power tuning.

    With n labelled prompts, N prompts that only the judge scored, labels Y and the judge's scores f, the estimate is
    mean(Y) + w (mean_N(f) - mean_n(f)) with w = cov(Y, f) / ((1 + n/N) var(f)), clipped to [0, 1] (Angelopoulos et al.
    2023, Prediction-Powered Inference, Science 382; power tuning: Angelopoulos, Duchi and Zrnic 2023, PPI++). Its
    variance is var(Y - w f) / n + w^2 var_N(f) / N; the bounds use Student's t with n - 1 degrees of freedom. The
    labelled prompts must be a random sample of all prompts.

    Args:
        labels: Shape (n,), each labelled prompt's mean human score, in [0, 1].
        judged: Shape (n,), the judge's mean score on the same answers.
        elsewhere: Shape (N,), the judge's mean score of the prompts without labels; may be empty.
        confidence: Nominal coverage of the interval.

    Returns:
        The estimate, within [0, 1]. Without other prompts, and where nothing varies, it is that of the labels alone.

    Raises:
        ValueError: The first two differ in length, there are fewer than two labels, or a score is outside [0, 1].
    """
    y, f, other = (np.asarray(values, dtype=np.float64) for values in (labels, judged, elsewhere))
    if y.ndim != 1 or y.shape != f.shape or other.ndim != 1:
        raise ValueError(f"labels and judged must be lists of one length, not of shapes {y.shape} and {f.shape}")
    if y.size < 2:
        raise ValueError("prediction-powered inference needs at least two labelled prompts")
    if not all(((values >= 0) & (values <= 1)).all() for values in (y, f, other)):
        raise ValueError("scores must be within 0 and 1")
    alone = estimates(y[:, None], confidence)[0]
    variance = np.concatenate([f, other]).var()
    if not other.size or variance == 0:
        return Corrected(alone, 0.0)
    n, others = y.size, other.size
    covariance = float(((y - y.mean()) * (f - f.mean())).mean())
    weight = float(np.clip(covariance / ((1 + n / others) * variance), 0, 1))
    value = float(y.mean() + weight * (other.mean() - f.mean()))
    error = float(np.sqrt((y - weight * f).var(ddof=1) / n + weight**2 * other.var() / others))
    if error == 0:
        return Corrected(alone, weight)
    half_width = float(t.ppf((1 + confidence) / 2, n - 1)) * error
    value = min(1.0, max(0.0, value))
    return Corrected(Estimate(value, max(0.0, value - half_width), min(1.0, value + half_width), n), weight)
