"""Inspects a space: shows and checks what the model will see, and trains nothing."""

from __future__ import annotations

import json
import logging
import uuid

from sacpo.errors import StepError
from sacpo.execution.artifacts import INSPECTION
from sacpo.execution.in_process import execute
from sacpo.execution.output_capture import quiet_libraries
from sacpo.execution.processor import number_format_note
from sacpo.execution.runner import Runner
from sacpo.hashing import content_id
from sacpo.planning.payloads import InspectionPayload, hashed
from sacpo.planning.plan import Plan, Step
from sacpo.reporting.inspection import inspection_text
from sacpo.store.step_store import Store


def inspect(plan: Plan, store: Store) -> tuple[str, int]:
    """Carry out the inspection in the calling process: it reads the model and all data, and the store keeps both.

    Every data source is tried, so that the problems of all of them come at once.

    Args:
        plan: The plan.
        store: The sweep's store; the sweep does not repeat what the inspection did.

    Returns:
        The inspection or the problems as text, and the exit status: 0, or 2 if there are problems.
    """
    if plan.inspection is None:
        return "the synthetic world's texts are known to fit; there is nothing to inspect", 0
    quiet_libraries()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    runner = Runner(plan, store, uuid.uuid4().hex, execute)
    problems: list[str] = []
    *inputs, inspection = plan.ancestors(plan.inspection)
    usable = {step_id for step_id in inputs if _ensure(runner, step_id, problems)}
    if problems:
        # What could be read is inspected all the same, so that its problems come at once with these.
        rest = _without_parents(plan.steps[inspection], usable)
        if rest.parents.get("model") is not None:
            plan = plan.model_copy(update={"steps": plan.steps | {rest.id: rest}})
            _ensure(Runner(plan, store, runner.run, execute), rest.id, problems)
    else:
        _ensure(runner, inspection, problems)
    if problems:
        return "\n".join(problems), 2
    assert plan.inspection is not None
    content = json.loads((store.verified_output_dir(plan.inspection) / INSPECTION).read_text(encoding="utf-8"))
    slow = number_format_note(plan.space)
    return inspection_text(content, plan.space) + (f"\n\nnote: {slow}" if slow else ""), 0


def _ensure(runner: Runner, step_id: str, problems: list[str]) -> bool:
    """Carry out a step unless it is done; adds the reason to the problems and returns False if it fails."""
    try:
        runner.ensure(step_id)
    except StepError as error:
        failure = runner.store.failure(step_id, runner.run)
        if failure is not None:  # else a parent failed, which is named already
            label = runner.plan.steps[step_id].label
            problems.append("\n".join(f"{label}: {line}" for line in failure.error.splitlines()))
        elif not problems:
            problems.append(str(error))
        return False
    return True


def _without_parents(inspection: Step, usable: set[str]) -> Step:
    """An inspection of the usable inputs alone."""
    payload = inspection.payload
    assert isinstance(payload, InspectionPayload)
    parents = {role: step_id for role, step_id in inspection.parents.items() if step_id in usable}
    batch_sizes = {role: sizes for role, sizes in payload.batch_sizes.items() if role in parents}
    payload = payload.model_copy(update={"batch_sizes": batch_sizes})
    content = {"recipe": inspection.recipe, "payload": hashed(payload), "parents": parents}
    step_id = content_id(inspection.kind, content)
    return inspection.model_copy(update={"id": step_id, "payload": payload, "parents": parents})
