"""The table of step kinds: complete, and stable ids across versions of this package."""

from __future__ import annotations

import importlib
import json
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from sacpo.planning.kinds import KINDS, Holds, holds, read_record, worker_slots
from sacpo.planning.metrics import Metrics
from sacpo.planning.payloads import GeneratePayload, Payload, hashed
from sacpo.planning.plan import Step
from sacpo.planning.planner import make_plan
from tests.spaces import ROOT, space

SNAPSHOT = ROOT / "tests" / "payload_defaults.json"


def models(annotation: Any) -> list[type[BaseModel]]:
    """The models that a type names, directly or inside unions and containers."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models(part)]


def defaults(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Every hashed field of a model with its default (`required` if it has none), nested models included."""
    skipped: frozenset[str] = getattr(model, "not_hashed", frozenset())
    table: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if name in skipped:
            continue
        path = f"{prefix}{model.__name__}.{name}"
        default = "required" if field.is_required() else field.get_default(call_default_factory=True)
        table[path] = hashed(default) if isinstance(default, BaseModel) else default
        for inner in models(field.annotation):
            table |= defaults(inner)
    return table


def current() -> dict[str, Any]:
    """What the snapshot holds: recipe version and defaults of each kind."""
    return {
        name: {
            "recipe": kind.recipe,
            "defaults": {path: value for model in models(kind.payload) for path, value in defaults(model).items()},
        }
        for name, kind in KINDS.items()
    }


def write_snapshot() -> None:
    """For `make schema`."""
    SNAPSHOT.write_text(json.dumps(current(), indent=1) + "\n")


def test_a_changed_default_raises_the_recipe_version() -> None:
    """A payload at its default is hashed without that field, so a new default would reuse outputs of the old one.

    After a field was added or a recipe raised, write the snapshot anew: `make schema`.
    """
    stored, now = json.loads(SNAPSHOT.read_text()), json.loads(json.dumps(current()))
    for name, kind in now.items():
        before = stored.get(name, {"recipe": 0, "defaults": {}})
        changed = {
            path: (before["defaults"][path], value)
            for path, value in kind["defaults"].items()
            if path in before["defaults"] and before["defaults"][path] != value
        }
        assert not changed or kind["recipe"] > before["recipe"], f"raise the recipe of {name}: {changed}"
    assert now == stored, "write the snapshot anew: make schema"


def test_a_setting_that_is_added_later_changes_no_id_while_it_has_its_default() -> None:
    class Later(GeneratePayload):
        speculative_tokens: int = 0

    step = next(s for s in make_plan(space()).steps.values() if isinstance(s.payload, GeneratePayload))
    values = {name: getattr(step.payload, name) for name in GeneratePayload.model_fields}
    assert hashed(Later(**values)) == hashed(step.payload)
    assert hashed(Later(**values, speculative_tokens=4)) != hashed(step.payload)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_has_a_function_that_exists(name: str) -> None:
    module, _, function = KINDS[name].function.partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert issubclass(KINDS[name].metrics, Metrics)


def test_every_planned_step_is_of_a_kind_and_comes_back_from_json_as_it_was() -> None:
    plan = make_plan(space(served={"gpt": {"model": "m", "api_key_env": None}}))
    only_elsewhere = {"inspection", "race"}  # of real models, and of sweeps that race
    assert {step.kind for step in plan.steps.values()} == set(KINDS) - only_elsewhere
    for step in plan.steps.values():
        again = Step.model_validate_json(step.model_dump_json())
        assert (again, type(again.payload)) == (step, type(step.payload))


def test_what_a_step_holds_depends_on_its_payload() -> None:
    gold = make_plan(space(resources__workers=2))
    by_kind = {step.kind: step for step in gold.steps.values()}
    held = {kind: worker_slots(kind, step.payload, gold.space.resources) for kind, step in by_kind.items()}
    assert held == {
        "model": 1, "data": 0, "train": 2, "probabilities": 1, "preferences": 0, "reference": 2, "generate": 1,
        "likelihoods": 1,
        "judge": 0, "canary": 0,
    }  # fmt: skip
    assert holds("judge", by_kind["judge"].payload) is Holds.NOTHING
    model = {"kind": "reward_model", "path": str(ROOT / "README.md"), "higher_is": "better"}
    judged = make_plan(space(resources__workers=2, evaluation__helpfulness__judge=model))
    kinds = {
        step.kind: holds(step.kind, step.payload)
        for step in judged.steps.values()
        if getattr(step.payload, "criterion", "") == "helpfulness"
    }
    assert kinds == {"judge": Holds.WORKER_GROUP, "canary": Holds.WORKER}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"kind": "unknown", "metrics": {}, "effective": {}}'])
def test_a_damaged_record_is_none(content: bytes) -> None:
    assert read_record(content) is None


def test_payloads_are_frozen() -> None:
    payload = next(iter(make_plan(space()).steps.values())).payload
    with pytest.raises(ValueError, match="frozen"):
        payload.seed = 3  # type: ignore[attr-defined]
    assert isinstance(payload, Payload)
