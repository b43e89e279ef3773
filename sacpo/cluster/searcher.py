"""The search of a space as a Ray Tune Searcher."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any

import numpy as np
from ray.tune.search import Searcher

from sacpo.search.observations import Known, Observation, Path
from sacpo.search.rules import propose
from sacpo.spaces.search import Proposal
from sacpo.spaces.space import Space


class PolicySearcher(Searcher):  # type: ignore[misc]
    """Proposes policies as configurations with `chain`, `beta`, `beta_over_lambda` and `q`.

    A proposal is a pure function of the space, the proposals before it and the results so far. Results of policies that
    the search did not propose (those of the space's chains and merges) count too.

    Args:
        space: The space; it has a search.
        proposals: What was proposed before, in order, if the search goes on.
    """

    def __init__(self, space: Space, proposals: Sequence[Proposal] = ()) -> None:
        criteria = list(space.evaluation.criteria)
        super().__init__(metric=criteria, mode=["max"] * len(criteria))
        self.known = Known(space, list(proposals))

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next policy's configuration; None until results arrive that it depends on; FINISHED at the end.

        Args:
            trial_id: Id of the trial that will evaluate the policy. No proposal depends on it.
        """
        proposal = propose(self.known)
        if proposal is not None:
            self.known.proposals.append(proposal)
            return proposal.model_dump(mode="json")
        return None if self.known.pending else str(self.FINISHED)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take the result of a policy.

        Args:
            trial_id: Id of the trial.
            result: The policy's configuration, with the win rate of each criterion unless the policy failed,
                `satisfied`, and the previews that were estimated with it as `paths`: a list of objects with `chain`,
                `beta`, `lambdas`, `value` and `low`. A policy without a result stays pending.
            error: The policy failed.
        """
        if result is None:
            return
        names = self.known.space.evaluation.criteria
        rates = {} if error else {name: float(result[name]) for name in names}
        seen = Observation(
            chain=result["chain"],
            beta=result["beta"],
            beta_over_lambda=result["beta_over_lambda"],
            q=result["q"],
            rates=rates,
            satisfied=bool(result.get("satisfied", False)) and not error,
        )
        self.known.observations[seen.chain, seen.beta, seen.beta_over_lambda, seen.q] = seen
        for path in result.get("paths", []):
            curves = ({name: np.array(path[edge][name]) for name in names} for edge in ("value", "low"))
            self.known.paths[path["chain"], path["beta"]] = Path(np.array(path["lambdas"]), *curves)

    def save(self, checkpoint_path: str) -> None:
        """Write the proposals. The results come from the results folder again."""
        proposals = [proposal.model_dump(mode="json") for proposal in self.known.proposals]
        FilePath(checkpoint_path).write_text(json.dumps(proposals))

    def restore(self, checkpoint_path: str) -> None:
        """Read the proposals that `save` wrote."""
        self.known.proposals = [Proposal(**p) for p in json.loads(FilePath(checkpoint_path).read_text())]
