"""The search `optuna`: a sampler of Optuna over chain, beta, beta/lambda and q; every criterion is maximised.

Each proposal comes from a new study that holds all results so far, with a seed of its own. It thus depends on the space
and the results alone, and a search that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import warnings
from typing import Any

from sacpo.errors import SacpoError
from sacpo.search.observations import Known, Observation, rounded
from sacpo.spaces.search import OptunaSearch, Proposal

_MOST_RANDOM = 10  # policies before the sampler's model takes over; Optuna's default
_TRIES = 20  # draws until one is new


def propose(known: Known) -> Proposal | None:
    """The next policy; None if results of others are needed first, or if no training is left.

    Raises:
        SacpoError: Optuna is not installed.
    """
    search = known.space.search
    assert isinstance(search, OptunaSearch), "`rules` takes the module that fits the space"
    if known.pending or known.spent() >= search.trainings:
        return None
    optuna = load_optuna()
    distributions = {
        "chain": optuna.distributions.CategoricalDistribution(search.chains),
        "beta": optuna.distributions.CategoricalDistribution(search.beta),
        "beta_over_lambda": optuna.distributions.FloatDistribution(*search.beta_over_lambda, log=True),
        "q": optuna.distributions.CategoricalDistribution([1.0, *search.q]),
    }
    trials = [
        optuna.trial.create_trial(
            params=_parameters(seen),
            distributions=distributions,
            values=[seen.rates[name] for name in known.space.evaluation.criteria],
            constraints={c.criterion: c.at_least - seen.rates[c.criterion] for c in known.space.constraint},
        )
        for seen in known.observations.values()
        if _is_searched(seen, search) and seen.rates
    ]
    for attempt in range(_TRIES):
        seed = search.seed + 1000 * len(known.proposals) + attempt
        study = optuna.create_study(
            directions=["maximize"] * len(known.space.evaluation.criteria), sampler=_sampler(optuna, search, seed)
        )
        study.add_trials(trials)
        with warnings.catch_warnings(action="ignore"):  # the samplers' remarks on features that may change
            drawn = study.ask(distributions).params
        proposal = Proposal(
            chain=drawn["chain"],
            beta=drawn["beta"],
            beta_over_lambda=rounded(drawn["beta_over_lambda"]),
            q=None if drawn["q"] == 1 else drawn["q"],
            reason=f"lambda {drawn['beta'] / drawn['beta_over_lambda']:.3g}: drawn by {search.sampler}",
        )
        if known.spent() < known.spent(proposal) <= search.trainings:
            return proposal
    return None


def load_optuna() -> Any:
    """The library, with its log switched off.

    Raises:
        SacpoError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise SacpoError(
            "search.method is optuna, and Optuna is not installed: pip install 'sacpo[optuna]', or set search.method "
            "to bridge"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _sampler(optuna: Any, search: OptunaSearch, seed: int) -> Any:
    sampler = optuna.samplers.TPESampler if search.sampler == "tpe" else optuna.samplers.GPSampler
    with warnings.catch_warnings(action="ignore"):
        return sampler(seed=seed, n_startup_trials=max(1, min(_MOST_RANDOM, search.trainings // 3)))


def _is_searched(seen: Observation, search: OptunaSearch) -> bool:
    """Whether the search itself could have proposed a policy."""
    smallest, largest = search.beta_over_lambda
    ratio = seen.beta_over_lambda
    is_inside = ratio is not None and smallest <= ratio <= largest
    return is_inside and seen.chain in search.chains and seen.beta in search.beta and seen.q in (None, *search.q)


def _parameters(seen: Observation) -> dict[str, Any]:
    q = 1.0 if seen.q is None else seen.q
    return {"chain": seen.chain, "beta": seen.beta, "beta_over_lambda": seen.beta_over_lambda, "q": q}
