"""Expands a space into its plan.

Pure: reads the space and hashes the files that it names; imports neither torch nor ray and writes nothing. Data flows
one way: prompts, then training steps, then evaluation steps, then trials.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any, assert_never

from sacpo.hashing import content_id
from sacpo.planning.evaluation_steps import EvaluationSteps, judge_model_key, judges_of
from sacpo.planning.graph import Graph
from sacpo.planning.payloads import DPOPayload, HubContent, KTOPayload, RewardPayload, hashed
from sacpo.planning.plan import MERGED_ROLES, MIXED_ROLES, Plan, Trial
from sacpo.planning.preview import families, with_likelihoods
from sacpo.planning.prompt_sets import add_prompt_sets, notes_on_prompts
from sacpo.planning.racing import add_rounds, rounds
from sacpo.planning.training_steps import Chain, TrainingSteps, chain_label, chain_text, seed_label
from sacpo.spaces.chains import parse_chain
from sacpo.spaces.evaluation import TrainedJudge
from sacpo.spaces.grid import ChainGrid, LogitMix, Merge, NaiveMerge, Parent, PSacpo
from sacpo.spaces.merging import LINEAR, ORIGIN
from sacpo.spaces.methods import METHODS
from sacpo.spaces.search import Proposal
from sacpo.spaces.space import Space


def make_plan(
    space: Space, canaries: bool = True, only_shown: bool = False, proposals: Sequence[Proposal] = ()
) -> Plan:
    """Expand a space.

    Args:
        space: The space.
        canaries: Whether judges are tried on canned pairs and on the baseline against itself before policies train.
        only_shown: The plan is only shown (`--dry-run`), so prompts of the hub are not read and files may be missing.
        proposals: What the space's search proposed so far; these policies are added to those of the space.

    Raises:
        DataError: a file that the space names cannot be read.
    """
    graph = Graph()
    prompts = add_prompt_sets(graph, space, only_shown)
    training = TrainingSteps(graph, space, prompts.excluded)
    judge_models = {
        judge_model_key(judge): training.judge(judge, criterion)
        for criterion, judge in judges_of(space)
        if isinstance(judge, TrainedJudge)
    }
    evaluation = EvaluationSteps(graph, space, prompts.criteria, judge_models)
    trials = _Trials(with_proposals(space, proposals), training, evaluation)
    checks = tuple(evaluation.canaries()) if canaries else ()
    trials.expand(canaries)
    every_trial = add_rounds(trials.by_id.values(), trials.baseline, evaluation)
    if space.preview is not None:
        every_trial = with_likelihoods(every_trial, graph, space)
    # The synthetic world's texts are known to fit.
    inspection = None if space.synthetic else training.inspection(prompts.by_criterion)
    return Plan(
        space=space,
        trials=tuple(every_trial),
        steps=graph.steps,
        criteria=prompts.criteria,
        prompt_sets=graph.prompt_sets,
        notes=(*_notes(space, graph), *(_notes_for_show(space, graph) if only_shown else ())),
        canaries=checks,
        inspection=inspection,
        proposals=tuple(proposals),
    )


def with_proposals(space: Space, proposals: Sequence[Proposal]) -> Space:
    """The space with a chain or a merge more for each proposal."""
    chains, merges = list(space.chains), list(space.merges)
    for p in proposals:
        grid = ChainGrid(chain=p.chain, beta=[p.beta], beta_over_lambda=[[p.beta_over_lambda]])
        if p.q is None:
            chains.append(grid)
        else:
            merges.append(PSacpo(method="p-sacpo", q=[p.q], **dict(grid)))
    return space.model_copy(update={"chains": chains, "merges": merges})


class _Trials:
    """Collects the trials of a space, the baseline first."""

    def __init__(self, space: Space, training: TrainingSteps, evaluation: EvaluationSteps) -> None:
        self.space, self.training, self.evaluation = space, training, evaluation
        self.by_id: dict[str, Trial] = {}

    def expand(self, canaries: bool) -> None:
        """Add all trials: the baseline, chains and their beginnings, merges, served policies, sentinels."""
        self._add_baseline(canaries)
        for grid in self.space.chains:
            for chain, kl_parameters, seed in self._variants(grid):
                for length in range(1, len(kl_parameters) + 1):
                    self._add_chain(chain[:length], kl_parameters[:length], seed)
        for merge in self.space.merges:
            self._add_merges(merge)
        if self.space.preview is not None:
            self._add_stones(self.space.preview.stones)
        for name, policy in self.space.served.items():
            self._add_answers("served", name, self.evaluation.served(name, policy))
        for name in self.space.evaluation.sentinels:
            self._add_answers("sentinel", name, self.evaluation.sentinel(name, self.training.sft))

    def _add_answers(self, method: str, label: str, answers: dict[str, str]) -> None:
        """Add a trial that has answers, and no policy in the store."""
        trial_id = content_id("trial", {method: answers})
        self._add_judged(Trial(trial_id=trial_id, label=label, method=method, chain="", policy={}, generate=answers))

    def _add_baseline(self, canaries: bool) -> None:
        trial = self._answered("sft", "sft", "", {"policy": self.training.sft})
        judge = self.evaluation.judge(trial.generate, trial.generate, "sft against itself") if canaries else {}
        self.baseline = self.by_id[trial.trial_id] = trial.model_copy(update={"judge": judge})

    def _add(self, method: str, label: str, chain: str, policy: dict[str, str], **values: Any) -> None:
        trial = self._answered(method, label, chain, policy, **values)
        if trial.trial_id not in self.by_id:
            self._add_judged(trial)

    def _answered(self, method: str, label: str, chain: str, policy: dict[str, str], **values: Any) -> Trial:
        """A trial with its policy and answers, not judged yet."""
        q, combination = values.get("q"), values.get("combination", LINEAR)
        differs = {} if combination == LINEAR else {"combination": hashed(combination)}
        return Trial(
            trial_id=content_id("trial", {"policy": policy, "q": q, **differs}),
            label=label,
            method=method,
            chain=chain,
            policy=policy,
            probabilities=self.training.probabilities(policy, q, label, combination) if self.space.synthetic else None,
            generate=self.evaluation.generate(policy, q, combination, self.training.sft, label),
            **values,
        )

    def _add_judged(self, trial: Trial) -> None:
        """Add a trial with all its judge steps."""
        asked = next(iter(rounds(self.space, trial.trial_id)), None) if trial.policy else None
        panel = self.evaluation.judges(trial.generate, self.baseline.generate, trial.label, asked)
        judge = panel.pop("")
        rivals = [t for t in self.by_id.values() if t is not self.baseline] if self.space.evaluation.all_pairs else []
        head_to_head = {
            rival.trial_id: self.evaluation.judge(
                trial.generate, rival.generate, f"{trial.label} against {rival.label}"
            )
            for rival in rivals
            if trial.method != "sentinel"  # sentinels are not ranked
        }
        steps = {"judge": judge, "panel": panel, "head_to_head": head_to_head}
        self.by_id[trial.trial_id] = trial.model_copy(update=steps)

    def _add_chain(self, chain: Chain, kl_parameters: tuple[float, ...], seed: int) -> None:
        label = chain_label(chain, kl_parameters) + seed_label(self.space, seed)
        method = "one-step" if len(chain) == 1 else "sacpo"
        policy = {"policy": self.training.chain(chain, kl_parameters, seed)}
        self._add(method, label, chain_text(chain), policy, kl_parameters=kl_parameters, seed=seed)

    def _add_merges(self, merge: Merge) -> None:
        match merge:
            case PSacpo() | LogitMix():
                grid = ChainGrid(chain=merge.chain, beta=merge.beta, beta_over_lambda=merge.beta_over_lambda)
                for chain, kl_parameters, seed in self._variants(grid):
                    inner = chain_label(chain, kl_parameters)
                    ends = (chain[:-1], kl_parameters[:-1]), (chain, kl_parameters)
                    self._add_merge(merge, merge.chain, inner, ends, kl_parameters, seed)
            case NaiveMerge():
                first, second = _parent(merge.first), _parent(merge.second)
                inner = f"{chain_label(*first)} + {chain_label(*second)}"
                text = f"{merge.first.chain} + {merge.second.chain}"
                for seed in self.space.seeds:
                    self._add_merge(merge, text, inner, (first, second), first[1][:1], seed)
            case _:
                assert_never(merge)

    def _add_stones(self, ratios: list[float]) -> None:
        """The preview's weight merges between the ends of every family."""
        for family in list(families(self.by_id.values())):
            end = family.second
            policy = {"first": family.first.policy["policy"], "second": end.policy["policy"]}
            for q in ratios:
                label = f"p-sacpo q={q:g} ({end.label})"
                self._add("p-sacpo", label, end.chain, policy, kl_parameters=end.kl_parameters, q=q, seed=end.seed)

    def _add_merge(
        self,
        merge: Merge,
        chain: str,
        inner: str,
        ends: tuple[tuple[Chain, tuple[float, ...]], tuple[Chain, tuple[float, ...]]],
        kl_parameters: tuple[float, ...],
        seed: int,
    ) -> None:
        """One trial for each q and combination: merges of the policies at two ends, or the mixtures of their logits."""
        roles = MIXED_ROLES if isinstance(merge, LogitMix) else MERGED_ROLES
        policy = {role: self.training.chain(*end, seed) for role, end in zip(roles, ends, strict=True)}
        for combination in [LINEAR] if isinstance(merge, LogitMix) else merge.combination:
            origin = {ORIGIN: self.training.sft} if combination.uses_origin else {}
            how = merge.method if combination == LINEAR else f"{merge.method} {combination.text}"
            for q in merge.q:
                label = f"{how} q={q:g} ({inner}){seed_label(self.space, seed)}"
                values = {"kl_parameters": kl_parameters, "q": q, "combination": combination, "seed": seed}
                self._add(merge.method, label, chain, policy | origin, **values)

    def _variants(self, grid: ChainGrid) -> Iterator[tuple[Chain, tuple[float, ...], int]]:
        chain = parse_chain(grid.chain)
        for seed in self.space.seeds:
            for kl_parameters in itertools.product(grid.beta, *(grid.beta_over_lambda or [])):
                yield chain, kl_parameters, seed


def _parent(parent: Parent) -> tuple[Chain, tuple[float, ...]]:
    return parse_chain(parent.chain), (parent.beta, *(grid[0] for grid in parent.beta_over_lambda or []))


def _notes(space: Space, graph: Graph) -> Iterator[str]:
    stages = [step.payload for step in graph.steps.values() if isinstance(step.payload, DPOPayload | KTOPayload)]
    judges = [step.payload for step in graph.steps.values() if isinstance(step.payload, RewardPayload)]
    methods: set[str] = {payload.method for payload in stages}
    objectives = {payload.objective for payload in (*stages, *judges)}
    searched = [] if space.search is None else space.search.chains
    for stage_method, objective in itertools.chain.from_iterable(map(parse_chain, searched)):
        methods.add(stage_method)
        objectives.add(objective)
    for method in METHODS.values():
        if method.in_chains and getattr(space.training, method.name) is not None and method.name not in methods:
            yield f"training.{method.name} is used by no chain of this space"
    chains = [*searched, *(grid.chain for grid in space.chains)]
    if space.preview is not None and all(len(parse_chain(chain)) < 2 for chain in chains):
        yield "preview has nothing to estimate, since no chain of this space has two stages"
    for objective in space.data.preferences:
        if objective not in objectives:
            yield f"data.preferences.{objective} is used by no chain of this space"
    for content in graph.contents.values():
        if isinstance(content, HubContent) and not re.fullmatch("[0-9a-f]{40}", content.revision):
            yield f"{content.hub}: revision {content.revision!r} may move; a commit would pin it"


def _notes_for_show(space: Space, graph: Graph) -> Iterator[str]:
    """Notes of a plan that is only shown: what is not at hand yet."""
    hub = [
        f"{content.hub} ({content.revision})" for content in graph.contents.values() if isinstance(content, HubContent)
    ]
    if hub:
        yield f"the sweep reads from the hub: {', '.join(dict.fromkeys(hub))}"
    yield from notes_on_prompts(space)
