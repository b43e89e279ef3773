"""Checks of a space that involve several settings; the models check single settings."""

from __future__ import annotations

from typing import assert_never, get_args

from sacpo.spaces.chains import parse_chain
from sacpo.spaces.choice_checks import check_constraints, check_racing
from sacpo.spaces.document import Report, Setting, dotted
from sacpo.spaces.evaluation import PromptSource, Sentinel, TrainedJudge
from sacpo.spaces.grid import ChainGrid, LogitMix, NaiveMerge, Parent, PSacpo
from sacpo.spaces.judge_checks import check_judges, judges
from sacpo.spaces.merging import LINEAR
from sacpo.spaces.methods import METHODS
from sacpo.spaces.space import Demonstrations, Preferences, Space, SyntheticModel
from sacpo.spaces.stages import grid_stages, stages
from sacpo.spaces.training import KTOTraining, PolicyTraining, Training


def conflicts(space: Space) -> list[tuple[Setting, str]]:
    """Find combinations of settings that are errors although each setting is valid.

    Returns:
        For each error: the path of the setting, and a message that names the setting, the problem and the way out.
    """
    problems: list[tuple[Setting, str]] = []

    def report(setting: Setting, text: str) -> None:
        problems.append((setting, f"{dotted(setting)}: {text}"))

    for i, grid in enumerate(space.chains):
        _check_chain(space, ("chains", i), grid, report)
    _check_merges(space, report)
    _check_model(space, report)
    _check_loading(space, report)
    check_judges(space, report)
    _check_served(space, report)
    _check_overrides(space, report)
    _check_resources(space, report)
    _check_batches(space, report)
    check_constraints(space, report)
    _check_preview(space, report)
    _check_search(space, report)
    check_racing(space, report)
    return problems


def _check_chain(space: Space, setting: Setting, grid: ChainGrid | PSacpo | LogitMix | Parent, report: Report) -> None:
    stages = parse_chain(grid.chain)
    for method, objective in stages:
        if objective not in space.data.preferences:
            known = space.data.known_objectives(objective)
            report((*setting, "chain"), f"unknown objective {objective!r}; data.preferences has {known}")
        if space.training.method(method) is None:
            report((*setting, "chain"), f"has a {method} stage, but training.{method} is absent; give its settings")
    adapts = [space.training.adapts(*stage) for stage in stages]
    full_after_adapter = next((i for i in range(1, len(stages)) if adapts[i - 1] and not adapts[i]), None)
    if not adapts[0] and space.training.sft is not None and space.training.sft.lora is not None:
        full_after_adapter = 0
    if full_after_adapter is not None:
        method, objective = stages[full_after_adapter]
        report(
            (*setting, "chain"),
            f"{method}:{objective} trains all weights, but the stage before it trains adapters (lora); give "
            f"training.{method}.lora too, or no lora for the stage before it",
        )
    given = len(grid.beta_over_lambda or [])
    if given != len(stages) - 1:
        report(
            (*setting, "beta_over_lambda"),
            f"{grid.chain} has {len(stages) - 1} stage(s) after the first, but values for {given} are given; "
            "give one list of values for each (and none for a chain of one stage)",
        )


def _check_merges(space: Space, report: Report) -> None:
    for i, merge in enumerate(space.merges):
        quantization = space.model.loading.quantization
        if isinstance(merge, PSacpo | NaiveMerge) and quantization is not None and {*merge.combination} != {LINEAR}:
            report(
                ("merges", i, "combination"),
                f"is not linear, which merges all weights, but model.quantization is {quantization}: policies are "
                "adapters on 4-bit weights; give combination: {kind: linear}, which adds adapters, or no quantization",
            )
        match merge:
            case PSacpo() | LogitMix():
                _check_chain(space, ("merges", i), merge, report)
                if len(parse_chain(merge.chain)) < 2:
                    report(
                        ("merges", i, "chain"),
                        f"has one stage, but {merge.method} takes the policies before and after the last stage of a "
                        "chain; give two or more stages",
                    )
                if isinstance(merge, LogitMix) and space.evaluation.generation.engine != "batched":
                    report(
                        ("evaluation", "generation", "engine"),
                        f"is {space.evaluation.generation.engine}, which answers with one model, but merges.{i} is a "
                        "logit-mix of two; give engine: batched",
                    )
            case NaiveMerge():
                for side, parent in (("first", merge.first), ("second", merge.second)):
                    _check_chain(space, ("merges", i, side), parent, report)
                    if any(len(grid) != 1 for grid in parent.beta_over_lambda or []):
                        report(
                            ("merges", i, side, "beta_over_lambda"),
                            "has several values for a stage, but a parent is one policy; give one value per stage",
                        )
            case _:
                assert_never(merge)


def _check_model(space: Space, report: Report) -> None:
    if isinstance(space.model, SyntheticModel):
        if space.training.sft is None:
            report(("training",), "the synthetic model starts untrained; give training.sft")
        if space.model.hidden_size % space.model.heads:
            report(("model", "heads"), f"{space.model.heads} must divide model.hidden_size ({space.model.hidden_size})")
    sources: list[tuple[Setting, Demonstrations | Preferences | PromptSource]] = [
        (("data", "preferences", name), source) for name, source in space.data.preferences.items()
    ]
    if space.data.demonstrations is not None:
        sources.append((("data", "demonstrations"), space.data.demonstrations))
    for name, criterion in space.evaluation.criteria.items():
        sources += [(("evaluation", name, "prompts"), source) for source in criterion.prompts]
    for setting, source in sources:
        if source.synthetic != space.synthetic:
            report(
                setting,
                f"is {source.kind}, but model.kind is {space.model.kind}; the synthetic model needs synthetic data "
                "and prompts, and a pretrained model needs files",
            )
    if (space.training.sft is None) != (space.data.demonstrations is None):
        report(("data", "demonstrations"), "training.sft and data.demonstrations go together; give both or neither")


def _check_loading(space: Space, report: Report) -> None:
    loading = space.model.loading
    if loading.needs_accelerator and not space.resources.gpus_per_worker:
        report(
            ("model", "attn_implementation"),
            f"{loading.attn_implementation} needs a GPU, but resources.gpus_per_worker is 0; set it to 1, or take sdpa",
        )
    if loading.quantization is None:
        return
    stages = {f"training.{name}": space.training.method(name) for name in METHODS if hasattr(space.training, name)}
    full = [name for name, stage in stages.items() if isinstance(stage, PolicyTraining) and stage.lora is None]
    if full:
        report(
            ("model", "quantization"),
            f"is {loading.quantization}, but {' and '.join(full)} trains all weights, and 4-bit weights are frozen; "
            f"give {full[0]}.lora (lora: {{}} has the defaults), or leave quantization out",
        )
    if space.resources.sharding == "zero3":
        report(
            ("model", "quantization"),
            f"is {loading.quantization}, but resources.sharding is zero3, which cannot divide 4-bit weights among "
            "workers; set resources.sharding: ddp",
        )


def _check_served(space: Space, report: Report) -> None:
    names: dict[tuple[str, str], str] = {}
    for name, policy in space.served.items():
        if name in ("sft", *get_args(Sentinel)):
            report(("served", name), "is the name of another trial; give the policy another name")
        first = names.setdefault((policy.model, policy.revision), name)
        if first != name:
            report(
                ("served", name),
                f"has the model and the revision of served.{first}, so that its answers would be taken for the same; "
                "give them different revisions, or leave one out",
            )


def _check_overrides(space: Space, report: Report) -> None:
    for key in space.training.overrides:
        setting: Setting = ("training", "overrides", key)
        try:
            ((method, objective),) = parse_chain(key)
        except ValueError:
            report(setting, "must name one stage, such as dpo:harmlessness")
            continue
        if objective not in space.data.preferences:
            known = space.data.known_objectives(objective)
            report(setting, f"unknown objective {objective!r}; data.preferences has {known}")
        if space.training.method(method) is None:
            report(setting, f"changes training.{method}, which is absent; give its settings, or leave the override out")


def _check_resources(space: Space, report: Report) -> None:
    if space.resources.optimizer_offload and space.resources.sharding != "zero3":
        report(
            ("resources", "optimizer_offload"),
            f"is true, but resources.sharding is {space.resources.sharding}, and only DeepSpeed's zero3 offloads; set "
            "resources.sharding: zero3, or leave optimizer_offload out",
        )


def _check_batches(space: Space, report: Report) -> None:
    training = space.training
    settings: list[tuple[Setting, Training | None]] = [
        (("training", name), training.method(name)) for name in METHODS if name in type(training).model_fields
    ]
    settings += [(("training", "overrides", key), value) for key, value in training.merged_overrides().items()]
    for setting, judge in judges(space):
        if isinstance(judge, TrainedJudge):
            settings.append(((*setting, "training"), judge.training))
    for setting, value in settings:
        if value is not None:
            _check_batch(setting, value, space.resources.workers, report)


def _check_batch(setting: Setting, training: Training, workers: int, report: Report) -> None:
    if training.batch_size % workers:
        report((*setting, "batch_size"), f"{training.batch_size} is not a multiple of resources.workers ({workers})")
    if isinstance(training, KTOTraining):
        kl_batch = training.resolved().kl_batch_size
        assert kl_batch is not None, "resolved() fills the number in"
        if training.batch_size % kl_batch or kl_batch % workers or kl_batch // workers < 2:
            report(
                (*setting, "kl_batch_size"),
                f"{kl_batch} must divide batch_size ({training.batch_size}) and give each of the {workers} workers "
                "2 or more examples",
            )


def _check_preview(space: Space, report: Report) -> None:
    if space.preview is None:
        return
    generation = space.evaluation.generation
    for name, value in (("temperature", generation.temperature), ("top_p", generation.top_p)):
        if value != 1:
            report(
                ("evaluation", "generation", name),
                f"is {value:g}, but `preview` needs plain samples, whose probabilities the policy itself gives; "
                f"set evaluation.generation.{name} to 1, or leave `preview` out",
            )
    if generation.samples < 2:
        report(
            ("evaluation", "generation", "samples"),
            f"is {generation.samples}, but `preview` weighs the answers of a prompt against each other; give 2 or more "
            "(8 is a good number), or leave `preview` out",
        )


def _check_search(space: Space, report: Report) -> None:
    search = space.search
    if search is None:
        if not space.chains:
            report(("chains",), "is empty; give a chain, or a `search` that chooses the policies")
        return

    def report_chain(_: Setting, text: str) -> None:
        report(("search", "chains"), text)

    smallest, largest = search.beta_over_lambda
    for chain in search.chains:
        if len(parse_chain(chain)) != 2:
            report_chain((), f"{chain} must have two stages, such as dpo:helpfulness>dpo:harmlessness")
        else:
            grid = ChainGrid(chain=chain, beta=search.beta, beta_over_lambda=[search.beta_over_lambda])
            _check_chain(space, (), grid, report_chain)
    if smallest >= largest:
        report(
            ("search", "beta_over_lambda"),
            f"is [{smallest:g}, {largest:g}]; give the smallest value first, and a larger one after it",
        )
    if search.method == "bridge":
        if not space.constraint:
            report(
                ("search", "method"),
                "is bridge, which looks for the policy that satisfies the space's constraint, but there is none; give "
                "constraint: {criterion: harmlessness, at_least: 0.6} with your own bound, or method: optuna",
            )
        if space.preview is None:
            report(("search", "method"), "is bridge, which reads the preview; give preview: {}, or method: optuna")
    elif space.preview is not None and space.preview.stones:
        report(
            ("preview", "stones"),
            "belong to the most conservative policy of a chain, which changes while optuna searches; leave them out, "
            "or give search.method: bridge",
        )
    first = {*stages(search.chains[0], (search.beta[0], smallest))} - grid_stages(space)
    if search.trainings < len(first):
        report(
            ("search", "trainings"),
            f"is {search.trainings}, but the first policy takes {len(first)}: both stages of {search.chains[0]}",
        )
