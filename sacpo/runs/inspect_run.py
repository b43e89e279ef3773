"""Inspects a space: shows and checks what the model will see, and trains nothing."""

from __future__ import annotations

import json
import logging
import uuid

from sacpo.errors import StepError
from sacpo.execution.artifacts import INSPECTION
from sacpo.execution.in_process import execute
from sacpo.execution.output_capture import quiet_libraries
from sacpo.execution.runner import Runner
from sacpo.planning.plan import Plan
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
    problems = []
    for step_id in plan.ancestors(plan.inspection):
        step = plan.steps[step_id]
        try:
            runner.ensure(step_id)
        except StepError as error:
            failure = store.failure(step_id, runner.run)
            if failure is not None:  # else a parent failed, which is named already
                problems.append(f"{step.label}: {failure.error}")
            elif not problems:
                problems.append(str(error))
    if problems:
        return "\n".join(problems), 2
    content = json.loads((store.verified_output_dir(plan.inspection) / INSPECTION).read_text(encoding="utf-8"))
    return inspection_text(content, plan.space), 0
