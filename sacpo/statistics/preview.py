"""The curve of a criterion over lambda, estimated from answers that policies of one chain already gave.

Stage 1 (p1, KL parameter beta) and a conservative stage 2 (p2, KL parameter beta / L) span the geometric path
p_q ~ p1^(1-q) p2^q. If p2 is the constrained problem's optimum at L, then p_q is the optimum at lambda = q L (paper,
Theorem 1, applied twice). An expectation along the path is estimated by multiple importance sampling with the balance
heuristic (Veach and Guibas 1995): an answer's weight is p_q(y) over the mean density of all policies that answered,
normalised within each prompt, since p_q is known up to a constant for each prompt. Weight merges and further trained
policies need not lie on the path to take part: all their densities are known.

With two policies and equally many answers no weight exceeds 2 before it is normalised, and the effective sample size is
at least Z_q / 2 of the answers, with Z_q = sum_y p1^(1-q) p2^q. The slope along the path is
dE[g]/dlambda = E_x Cov_q(g, log p2 - log p1) / L, which is E_x Var_q(g) / beta where the policies are optimal for g.

Answers must be plain samples (temperature 1, top_p 1): only then is a policy's density of its answers what it gives to
their tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from sacpo.statistics.win_rate import RESAMPLES, SEED, resample_counts, resample_level

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

_RIDGE = 1e-4  # a policy whose density differs from the mixture's by less than 1 % adds no constraint
_EVIDENCE = 3.84  # gain in twice the log-likelihood that a correction needs: 95 % of chi^2 with one degree of freedom

REACH = 4.0
"""Nats between two neighbouring policies up to which a few answers a prompt carry the path from one to the other."""


@dataclass(frozen=True)
class Moments:
    """Each prompt's expectations at some points of the path; arrays of shape (prompts, points).

    Attributes:
        means: Expected score.
        slopes: Its derivative by q.
        effective: Effective number of answers, (sum w)^2 / sum w^2.
        shares: Share of the weight that each policy's answers carry, shape (prompts, points, policies).
    """

    means: Floats
    slopes: Floats
    effective: Floats
    shares: Floats


@dataclass(frozen=True)
class Curve:
    """A criterion along the path; arrays of shape (points,).

    Attributes:
        q: Position on the path, 0 for p1 and 1 for p2; ascending.
        value, low, high: Expected score with its 95 % band (pointwise, over the sample of prompts).
        effective: Effective number of answers a prompt, averaged over prompts.
        shares: Share of the weight that each policy's answers carry, shape (points, policies).
    """

    q: Floats
    value: Floats
    low: Floats
    high: Floats
    effective: Floats
    shares: Floats


@dataclass(frozen=True)
class Trained:
    """A policy that was trained at a point of the path, between the ends.

    Attributes:
        policy: Its column in `ScoredAnswers.logps`.
        q: Its lambda / L.
    """

    policy: int
    q: float


@dataclass(frozen=True)
class ScoredAnswers:
    """Answers of policies with their scores and densities; n answers.

    Attributes:
        logps: Log-probability in nats that each policy gives to each answer, shape (n, policies).
        source: The policy that gave the answer, as a column of `logps`; shape (n,).
        prompt: Number of the prompt; shape (n,).
        score: Win rate against a fixed answer in [0, 1], or any other score of the answer; shape (n,).
        first, second: The columns of p1 and p2.
        trained: Policies that were trained between the ends.
    """

    logps: Floats
    source: Ints
    prompt: Ints
    score: Floats
    first: int = 0
    second: int = 1
    trained: Sequence[Trained] = field(default=())

    def __post_init__(self) -> None:
        n = len(self.logps)
        if self.logps.ndim != 2 or any(values.shape != (n,) for values in (self.source, self.prompt, self.score)):
            raise ValueError("logps must have the shape (answers, policies), and source, prompt and score (answers,)")
        if not n or not np.isfinite(self.logps).all() or not np.isfinite(self.score).all():
            raise ValueError("a preview needs at least one answer, with finite log-probabilities and scores")

    @cached_property
    def log_ratio(self) -> Floats:
        """log p2 - log p1 of each answer, shape (n,)."""
        return np.asarray(self.logps[:, self.second] - self.logps[:, self.first])

    @cached_property
    def _rows(self) -> Ints:
        """Each answer's prompt as a number without gaps."""
        return np.unique(self.prompt, return_inverse=True)[1]

    @cached_property
    def _segments(self) -> tuple[Ints, Ints]:
        """The answers in the order of their prompts, and where each prompt starts in it."""
        order = np.argsort(self._rows, kind="stable")
        return order, np.searchsorted(self._rows[order], np.arange(self._rows.max() + 1))

    @cached_property
    def _log_mixture(self) -> Floats:
        """Log of the mean density of the policies that answered the prompt, each with its share of the answers."""
        counts = self._sums((self.source[:, None] == np.arange(self.logps.shape[1])).astype(np.float64))
        shares = counts / counts.sum(axis=1, keepdims=True)
        return np.asarray(logsumexp(self.logps, b=shares[self._rows], axis=1))

    @cached_property
    def _calibration(self) -> Floats:
        """Each answer's weight before any q: close to 1, such that each policy's density sums to 1 on every prompt.

        The mean of p_j / mixture is 1 for every policy j. Where the drawn answers miss this, their weights are moved by
        a regression (Owen and Zhou 2000, control variates of importance sampling), at the cost of a tiny bias.
        """
        ratios = np.exp(self.logps - self._log_mixture[:, None])
        rows, policies = self._rows, ratios.shape[1]
        counts = self._sums(np.ones((len(rows), 1)))
        means = self._sums(ratios) / counts
        deviations = ratios - means[rows]
        outer = (deviations[:, :, None] * deviations[:, None, :]).reshape(len(rows), -1)
        covariance = (self._sums(outer) / counts).reshape(-1, policies, policies) + _RIDGE * np.eye(policies)
        coefficients = np.linalg.solve(covariance, (1 - means)[:, :, None])[:, :, 0]
        return np.asarray(np.maximum(1 + (deviations * coefficients[rows]).sum(axis=1), _RIDGE))

    def moments(self, q: ArrayLike) -> Moments:
        """Each prompt's expectations.

        Args:
            q: Points of the path, shape (points,).
        """
        rows = self._rows
        weights = self._weights(np.atleast_1d(np.asarray(q, dtype=np.float64)))
        means = self._sums(weights * self.score[:, None])
        deviations = weights * (self.score[:, None] - means[rows])
        shares = [self._sums(weights * (self.source == policy)[:, None]) for policy in range(self.logps.shape[1])]
        return Moments(
            means=means,
            slopes=self._sums(deviations * self.log_ratio[:, None]),
            effective=1 / self._sums(weights**2),
            shares=np.stack(shares, axis=-1),
        )

    def _weights(self, points: Floats) -> Floats:
        """Each answer's weight at points of the path; those of one prompt sum to 1. Shape (answers, points)."""
        logs = (self.logps[:, self.first] - self._log_mixture)[:, None] + points * self.log_ratio[:, None]
        order, starts = self._segments
        largest = np.maximum.reduceat(logs[order], starts, axis=0)
        weights = np.exp(logs - largest[self._rows]) * self._calibration[:, None]
        return np.asarray(weights / self._sums(weights)[self._rows])

    def _sums(self, values: Floats) -> Floats:
        """Sums over each prompt's answers: (n, points) to (prompts, points)."""
        order, starts = self._segments
        return np.asarray(np.add.reduceat(values[order], starts, axis=0))

    def curve(self, q: ArrayLike) -> Curve:
        """The criterion along the path, with what the policies trained between the ends say about it.

        Args:
            q: Points of the path, ascending, shape (points,).
        """
        points = np.asarray(q, dtype=np.float64)
        moments = self.moments(points)
        n = len(moments.means)
        resampled = resample_counts(n) @ moments.means / n
        value, spread = moments.means.mean(axis=0), np.zeros(len(points))
        if self.trained:
            weights, spread, residuals = self._residual_model(points)
            value = value + weights @ residuals.mean(axis=0)
            resampled = resampled + resample_counts(n) @ residuals / n @ weights.T
        draws = np.random.default_rng(SEED).standard_normal((RESAMPLES, 1))
        tail = (1 - resample_level(n)) / 2
        low, high = np.quantile(resampled + draws * spread, [tail, 1 - tail], axis=0)
        return Curve(
            q=points,
            value=value,
            low=np.minimum(low, value),
            high=np.maximum(high, value),
            effective=moments.effective.mean(axis=0),
            shares=moments.shares.mean(axis=0),
        )

    def _residual_model(self, points: Floats) -> tuple[Floats, Floats, Floats]:
        """The model of "trained - path": a Brownian bridge, which is 0 at both ends, where path and policy are one.

        Its scale has the largest marginal likelihood. The residuals' noise is that of the answers: which prompts were
        asked is no part of it, since path and policy answered the same ones. Unless a likelihood-ratio test at 95 %
        speaks against the path, the scale is 0, and so is the correction.

        Returns:
            The correction's weights of the residuals, shape (points, trained); its standard deviation, shape (points,);
            and each prompt's residuals, shape (prompts, trained).
        """
        at = np.array([policy.q for policy in self.trained])
        residuals, noise = self._residuals(at)
        mean = residuals.mean(axis=0)
        kernel = _bridge(at, at)

        def loss(scale: float) -> float:
            covariance = scale**2 * kernel + noise + 1e-12 * np.eye(len(at))
            return float(np.linalg.slogdet(covariance)[1] + mean @ np.linalg.solve(covariance, mean))

        largest = 4 * float(np.abs(mean / np.sqrt(np.diag(kernel))).max()) + 1e-9
        scale = float(minimize_scalar(loss, bounds=(0.0, largest), method="bounded").x)
        if loss(scale) > loss(0.0) - _EVIDENCE:
            scale = 0.0
        cross = scale**2 * _bridge(points, at)
        weights = np.linalg.solve(scale**2 * kernel + noise + 1e-12 * np.eye(len(at)), cross.T).T
        variance = scale**2 * points * (1 - points) - (weights * cross).sum(axis=1)
        return np.asarray(weights, dtype=np.float64), np.sqrt(np.maximum(variance, 0.0)), residuals

    def _residuals(self, at: Floats) -> tuple[Floats, Floats]:
        """Trained minus path of each prompt, and the covariance of their means by the answers that were drawn.

        Both are weighted means of one prompt's answers, so a residual is a sum over its answers, too. Their scores have
        one variance within prompts, estimated from all of them.

        Args:
            at: The q of each trained policy, shape (trained,).

        Returns:
            Shapes (prompts, trained) and (trained, trained). A prompt that a policy did not answer has the residual 0.
        """
        own = (self.source[:, None] == np.array([policy.policy for policy in self.trained])).astype(np.float64)
        counts = self._sums(own)[self._rows]
        path = self._weights(at)
        weights = np.where(counts > 0, own / np.maximum(counts, 1) - path, 0.0)
        deviations = self.score[:, None] - self._sums(path * self.score[:, None])[self._rows]
        free = np.maximum((1 - self._sums(path**2)).sum(axis=0), _RIDGE)
        deviation = np.sqrt((path * deviations**2).sum(axis=0) / free)  # of scores within a prompt, shape (trained,)
        residuals = self._sums(weights * self.score[:, None])
        noise = weights.T @ weights * np.outer(deviation, deviation) / len(residuals) ** 2
        return residuals, noise

    def root(self, threshold: float) -> float:
        """The q at which the expected score along the path reaches a threshold, by safeguarded Newton steps.

        The policies trained between the ends take part through their answers, without the residual model.

        Returns:
            A point in [0, 1]: 0 if p1 satisfies the threshold already. NaN if p2 does not reach it.
        """

        def mean_and_slope(q: float) -> tuple[float, float]:
            moments = self.moments([q])
            return float(moments.means.mean()) - threshold, float(moments.slopes.mean())

        low, high = 0.0, 1.0
        if mean_and_slope(low)[0] >= 0:
            return 0.0
        if mean_and_slope(high)[0] < 0:
            return float("nan")
        q = 0.5
        for _ in range(60):
            excess, slope = mean_and_slope(q)
            low, high = (low, q) if excess >= 0 else (q, high)
            step = q - excess / slope if slope > 0 else np.nan
            step = step if low < step < high else (low + high) / 2
            if abs(step - q) < 1e-9:
                break
            q = step
        return q

    def distances(self) -> list[tuple[int, int, float]]:
        """Neighbouring policies along the path and how far apart they are.

        Returns:
            (policy, next policy, nats): half the sum of the Kullback-Leibler divergences both ways a prompt.
        """
        answered = sorted(set(self.source.tolist()), key=lambda j: float(self.log_ratio[self.source == j].mean()))
        result = []
        for a, b in itertools.pairwise(answered):
            ratio = self.logps[:, b] - self.logps[:, a]
            nats = (ratio[self.source == b].mean() - ratio[self.source == a].mean()) / 2
            result.append((a, b, float(nats)))
        return result


def crossing(q: ArrayLike, values: ArrayLike, threshold: float) -> float:
    """The first point at which a curve, linear between its points, reaches a threshold; NaN if it does not.

    Args:
        q: Ascending points, shape (points,).
        values: The curve, shape (points,).
        threshold: The value to reach.
    """
    x, y = np.asarray(q, dtype=np.float64), np.asarray(values, dtype=np.float64)
    reached = np.flatnonzero(y >= threshold)
    if not reached.size:
        return float("nan")
    i = int(reached[0])
    if i == 0:
        return float(x[0])
    return float(x[i - 1] + (x[i] - x[i - 1]) * (threshold - y[i - 1]) / (y[i] - y[i - 1]))


def stones_between(nats: float) -> int:
    """How many policies in between bring two policies within `REACH` of their neighbours.

    k evenly spaced ones divide the distance of neighbours by (k+1)^2.
    """
    return max(0, int(np.ceil(np.sqrt(max(nats, 0.0) / REACH))) - 1)


def _bridge(s: Floats, t: Floats) -> Floats:
    """Covariance of the Brownian bridge on [0, 1]: min(s, t) - s t; shape (len(s), len(t))."""
    return np.asarray(np.minimum(s[:, None], t) - s[:, None] * t)
