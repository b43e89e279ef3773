"""What users of other tools read who write a space as they know it: what is allowed, and the way out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from sacpo.errors import SpaceError
from sacpo.spaces.loading import load_space, parse_space
from sacpo.spaces.other_tools import _HINTS, RANGE_HINT
from sacpo.spaces.space import Space
from tests.spaces import quickstart, small

WANDB = """
method: bayes
metric: {name: harmlessness, goal: maximize}
parameters:
  beta: {values: [0.1, 0.5]}
"""
AXOLOTL = """
base_model: HuggingFaceTB/SmolLM2-135M
datasets:
  - {path: PKU-Alignment/PKU-SafeRLHF, type: chat_template.default}
rl: dpo
micro_batch_size: 2
gradient_accumulation_steps: 4
"""


def problems(text: str, tmp_path: Path) -> list[str]:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(SpaceError) as caught:
        load_space(path)
    return caught.value.problems


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (WANDB, "line 4: parameters: unknown setting; what varies is a list in `chains`"),
        (WANDB, "line 2: method: unknown setting; a method of search is `search.method`"),
        (AXOLOTL, "line 5: rl: unknown setting; methods and their order are `chains`"),
        (AXOLOTL, "line 6: micro_batch_size: unknown setting; it is `resources.per_device_batch`"),
        (AXOLOTL, "line 7: gradient_accumulation_steps: unknown setting; it follows from `training.METHOD.batch_size`"),
    ],
)
def test_a_setting_of_another_tool_is_told_what_it_is_here(text: str, expected: str, tmp_path: Path) -> None:
    assert any(line.startswith(expected) for line in problems(text, tmp_path))


def test_the_settings_of_a_mapping_are_listed_once(tmp_path: Path) -> None:
    assert "\n".join(problems(AXOLOTL, tmp_path)).count("known settings: chains, constraint, data,") == 1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": "My Sweep!"}, "name: got 'My Sweep!'; should have lower-case letters, digits, - and _ only, "),
        ({"model": "SmolLM2"}, "model: got 'SmolLM2'; should be a mapping with kind: synthetic or pretrained"),
        ({"model": {"path": "SmolLM2"}}, "model: kind is required: synthetic or pretrained"),
        ({"model": {"kind": "hf"}}, "model: kind: got 'hf'; should be synthetic or pretrained"),
        ({"chains": ["dpo:helpfulness"]}, "chains.0: got 'dpo:helpfulness'; should be a mapping with the settings"),
        ({"resources": 4}, "resources: got 4; should be a mapping with the settings checkpoint_steps, "),
        ({"merges": None}, "merges: has no value; give one, or leave the setting out for its default"),
        ({"constraint": None}, "constraint: has no value; give one, or leave the setting out"),
        ({"report": {"to": "wandb"}}, "report.to: got 'wandb'; should be a list; write [wandb]"),
        ({"chains": [{"chain": "dpo:helpfulness", "beta": {"values": [1, 2]}}]}, f"chains.0.beta: {RANGE_HINT}"),
        (
            {"search": {"method": "optuna", "beta_over_lambda": {"low": 0.1, "high": 1}}},
            f"search.beta_over_lambda: {RANGE_HINT}",
        ),
        ({"search": {"sampler": "tpe", "n_trials": 9}}, "search: method is required: bridge or optuna"),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_form_is_told_the_right_one(
    changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    lines = problems(yaml.safe_dump(quickstart() | changes), tmp_path)
    assert [line for line in lines if re.sub(r"^line \d+: ", "", line).startswith(expected)], lines


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("chains.beta=0.1", "chains has items 0 to 0, not 'beta'; write for example chains.0.beta=0.1"),
        ("chains.7.beta=0.1", "chains has items 0 to 0, not '7'; write for example chains.0.beta=0.1"),
    ],
)
def test_an_item_of_a_list_is_named_by_its_number(override: str, expected: str) -> None:
    with pytest.raises(SpaceError) as caught:
        parse_space(small(), [override])
    assert expected in caught.value.problems[0]


def test_a_file_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "first.yaml").touch()
    with pytest.raises(SpaceError, match=rf"there is no such file; known files: {tmp_path}/first\.yaml"):
        load_space(tmp_path / "first.yml")
    with pytest.raises(SpaceError, match=r"there is no such file; a setting is given by --set chains\.0\.beta=2"):
        load_space(Path("chains.0.beta=2"))


@pytest.mark.parametrize("name", sorted(_HINTS))
def test_a_hint_names_settings_that_exist(name: str) -> None:
    for text in re.findall(r"`([a-z_.METHOD]+)[:`]", _HINTS[name]):
        setting = text.replace("METHOD", "dpo").split(".")
        owners = _models(Space) if setting[0] in Space.model_fields else _all_models(Space)
        for key in setting:
            owners = [owner for owner in owners if key in owner.model_fields]
            assert owners, f"{text}: no setting {key}"
            owners = [model for owner in owners for model in _models(owner.model_fields[key].annotation)]


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _all_models(model: type[BaseModel]) -> list[type[BaseModel]]:
    inner = [part for field in model.model_fields.values() for part in _models(field.annotation)]
    return [model, *(deep for part in inner for deep in _all_models(part))]
