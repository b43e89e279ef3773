"""Stops a training that diverges, and hands checkpoints on."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback

from sacpo.errors import StepError
from sacpo.execution.report import StepReport
from sacpo.steps.worker_context import WorkerContext

_DIVERGED = 10.0  # a loss of so many times its first value (at least ln 2) has diverged


class DivergenceGuard(TrainerCallback):  # type: ignore[misc]
    """Raises on a loss or gradient that is not finite and on a loss that has diverged; passes checkpoints on.

    Args:
        report: Notes when the first update begins.
        updates: Updates of the whole stage.
        context: Receives the checkpoints.
    """

    def __init__(self, report: StepReport, updates: int, context: WorkerContext) -> None:
        self.report, self.updates, self.context = report, updates, context
        self.first_loss: float | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note the start of the first update."""
        if self.report.first_update_at is None:
            self.report.end_start_part("engine")
            self.report.first_update_at = self.report.start_parts[-1][1]

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Check the loss and the gradient norm of an update.

        Raises:
            StepError: the training has diverged.
        """
        loss, norm = (logs or {}).get("loss"), (logs or {}).get("grad_norm") or 0.0
        if loss is None:
            return
        if self.first_loss is None:
            self.first_loss = loss
        limit = _DIVERGED * max(abs(self.first_loss), math.log(2))
        if not math.isfinite(loss) or not math.isfinite(norm) or loss > limit:
            raise StepError(
                f"diverged at update {state.global_step} of {self.updates}: the loss is {loss:g} (first "
                f"{self.first_loss:g}, limit {limit:g}), its gradient's norm {norm:g}; try a smaller learning_rate or "
                "max_grad_norm"
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for a checkpoint before a machine is taken away; none after the last update."""
        if self.context.is_preempted():
            control.should_save = True
        if state.global_step >= self.updates:
            control.should_save = False  # the policy itself is written next

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Pass a written checkpoint on."""
        folder = self.context.workdir / f"checkpoint-{state.global_step}"
        self.context.on_checkpoint(folder, state.global_step)
