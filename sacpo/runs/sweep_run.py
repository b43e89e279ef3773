"""Runs a sweep to its end: on a Ray cluster, or in the calling process."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec

from rich.console import Console

from sacpo.errors import SacpoError, StoreError
from sacpo.execution import in_process
from sacpo.execution.output_capture import output_to
from sacpo.execution.processor import number_format_note
from sacpo.execution.runner import Runner
from sacpo.planning.judge_payloads import JudgePayload
from sacpo.planning.metrics import JudgeMetrics
from sacpo.planning.plan import Plan, Trial
from sacpo.reporting.live import Progress, trial_table
from sacpo.reporting.trackers.feed import Trackers, trackers_of
from sacpo.reporting.write import write_report
from sacpo.results.collect import complete
from sacpo.results.kept_plan import PLAN_FILE, KeptSweep, write_plan
from sacpo.results.load import Results, load_folder
from sacpo.results.stopped import stopped_lines
from sacpo.results.sweep_facts import SWEEP_FILE, RunFacts, SweepFacts
from sacpo.results.write import MissingStepsError, write_facts, write_results
from sacpo.runs.judge_warnings import judge_warnings
from sacpo.spaces.document import dotted
from sacpo.spaces.judge_checks import endpoints
from sacpo.spaces.merging import LINEAR
from sacpo.spaces.model_loading import Loading
from sacpo.spaces.space import Space
from sacpo.store.backends import check_writable
from sacpo.store.results_location import ResultsLocation
from sacpo.store.step_store import CorruptOutput, Store
from sacpo.store.sweep_registry import Registration
from sacpo.versions import PACKAGES, version

IN_PROCESS = "in-process"
"""The address that stands for the calling process."""
_OUTPUTS = ("report.html", "pareto.png", "trials.csv")


@dataclass(frozen=True)
class SweepRun:
    """A sweep with the place where it runs.

    Attributes:
        plan: The plan.
        store: The store.
        location: The results folder.
        kept: The sweep that the results folder has; None if it is new. Its plan has the same id.
        address: `local`, `in-process`, or an address of Ray.
        command: The command line, for the facts.
        max_workers: Workers that a cluster with an autoscaler can grow to.
    """

    plan: Plan
    store: Store
    location: ResultsLocation
    kept: KeptSweep | None
    address: str
    command: Sequence[str]
    max_workers: int = 0

    def run(self) -> int:
        """Carry out all steps that are not done, and write tables and report.

        Returns:
            0 if all trials are done, else 1.

        Raises:
            SacpoError: the results folder or the store cannot be written, a key is missing, or the cluster cannot be
                reached or cannot run the plan.
        """
        self._check()
        with _console(self.address) as console:
            for line in retract_unusable(self.plan, self.store):
                console.print(f"computed again: {line}", markup=False)
            kept = None if self.kept is None else self.kept.facts
            facts = SweepFacts.of(self.plan, self.location.relative(self.store.uri), kept)
            records = self.store.records(self.plan.steps)
            trials = [t for t in self.plan.trials if any(s not in records for s in self.plan.target_steps(t))]
            run = RunFacts.start(self.command, self.address)
            is_stopped = False
            if trials:
                facts = facts.with_run(run)
                write_plan(self.plan, self.location.folder)
                write_facts(facts, self.location.folder)
                self.location.publish()
                try:
                    facts, is_stopped = self._carry_out(facts, run, trials, records.keys(), console)
                except SacpoError:  # no step was started
                    self._restore_facts()
                    raise
            return self._finish(facts, run, console, is_stopped)

    def _restore_facts(self) -> None:
        """Put the results folder back into the state before the run, so that another space can still use a new one."""
        folder = self.location.folder
        if self.kept is None:
            for name in (PLAN_FILE, SWEEP_FILE):
                self.location.remove(name)
        else:
            write_plan(self.kept.plan, folder)
            if self.kept.facts is not None:
                write_facts(self.kept.facts, folder)
            self.location.publish()

    @cached_property
    def _trackers(self) -> Trackers:
        return Trackers(trackers_of(self.plan.space), self.plan, self.store, self.location.folder)

    def _check(self) -> None:
        trackers_of(self.plan.space)
        if _needs_mergekit(self.plan) and find_spec("mergekit") is None:
            raise SacpoError(
                "merges.combination is not linear, which mergekit computes, and mergekit is not installed: pip install "
                "'sacpo[mergekit]', or leave combination out"
            )
        if self.address in ("local", IN_PROCESS):
            check_keys(self.plan.space)
        if self.address == IN_PROCESS and self.plan.space.model.loading != Loading():
            from sacpo.steps.model_loading import missing_support  # imports torch

            if problems := missing_support(self.plan.space.model.loading):
                raise SacpoError("this machine cannot run this sweep:\n  " + "\n  ".join(problems))
        for option, files in (("--results", self.location.files), ("--store", self.store.files)):
            try:
                check_writable(files)
            except StoreError as error:
                raise SacpoError(f"{error}; give another place with {option}") from None

    def _carry_out(
        self, facts: SweepFacts, run: RunFacts, trials: list[Trial], done: Collection[str], console: Console
    ) -> tuple[SweepFacts, bool]:
        """Carry out the steps of these trials.

        Returns:
            The facts with notes of the cluster, and whether the run was interrupted.
        """
        plan = self.plan
        console.print(
            f"{plan.space.name}: {len(plan.trials)} trials, {len(plan.steps)} steps; results in {self.location.uri}"
        )
        try:
            with Registration(plan, self.store, self.location, run.run, run.command, run.started_at):
                if self.address == IN_PROCESS:
                    given_up = self._run_here(facts, run, trials, console)
                else:
                    facts, given_up = self._run_on_ray(facts, run, trials, done, console)
        except KeyboardInterrupt:
            return facts, True
        for step_id, reason in given_up.items():
            console.print(f"GIVEN UP {plan.steps[step_id].label}: {reason}", markup=False)
        return facts, False

    def _run_here(self, facts: SweepFacts, run: RunFacts, trials: list[Trial], console: Console) -> dict[str, str]:
        """Carry out all steps in this process, whose terminal stays free for a debugger."""
        targets = [step for trial in trials for step in self.plan.target_steps(trial)]
        if note := number_format_note(self.plan.space):
            console.print(f"note: {note}", markup=False)
        steps = in_process.InProcessRun(Runner(self.plan, self.store, run.run, in_process.execute), targets)
        with self._progress(facts, run, steps.resolved, console):
            return steps.run()

    def _run_on_ray(
        self, facts: SweepFacts, run: RunFacts, trials: list[Trial], done: Collection[str], console: Console
    ) -> tuple[SweepFacts, dict[str, str]]:
        """Carry out all steps on a cluster. Output of libraries goes to `sweep.log`."""
        from sacpo.cluster import preflight, tuner

        folder = self.location.folder
        with output_to(folder / "sweep.log"), tuner.cluster(self.address):
            expected = {name: run.versions[name] for name in PACKAGES}
            if _needs_mergekit(self.plan):
                expected["mergekit"] = version("mergekit")
            notes = preflight.check_cluster(self.plan, self.store, expected, done)
            for note in notes:
                console.print(f"note: {note}", markup=False)
            facts = facts.model_copy(update={"notes": (*facts.notes, *notes)})
            with self._progress(facts, run, lambda: tuner.resolved(run.run), console):
                given_up = tuner.run_trials(
                    self.plan,
                    self.store,
                    run.run,
                    folder / ".tune",
                    max_workers=self.max_workers,
                    trial_ids=[trial.trial_id for trial in trials],
                )
        return facts, given_up

    def _progress(
        self, facts: SweepFacts, run: RunFacts, resolved: Callable[[], Collection[str]], console: Console
    ) -> Progress:
        is_live = self.address != IN_PROCESS
        return Progress(self.plan, self.store, facts, run.run, resolved, self._write_partial, console, is_live)

    def _write_partial(self, results: Results) -> None:
        """Write the tables while the sweep runs, unless this would lose numbers that an earlier run wrote."""
        try:
            write_results(results, self.plan, self.location.folder)
        except MissingStepsError:
            return
        self._trackers.update(results)
        self.location.publish()

    def _finish(self, facts: SweepFacts, run: RunFacts, console: Console, is_stopped: bool) -> int:
        """Write tables and report, and print a summary; returns the exit status."""
        folder = self.location.folder
        results = complete(self.plan, self.store, facts)
        run = next((known for known in results.sweep.runs if known.run == run.run), run)  # with its number of steps
        if run.run in results.sweep.run_ids:
            did_work = run.steps_run or results.sweep.counts.steps_failed
            facts = results.sweep.with_run(run.ended()) if did_work else results.sweep.without_run(run.run)
            results = replace(results, sweep=facts)
        try:
            write_results(results, self.plan, folder)
            written = results
        except MissingStepsError as error:
            console.print(str(error), markup=False)
            counts = {} if self.kept is None or self.kept.facts is None else {"counts": self.kept.facts.counts}
            write_facts(results.sweep.model_copy(update=counts), folder)  # the counts stay those of the tables
            written = load_folder(folder)
        write_report(written, folder)
        tracker_warnings = self._trackers.close(written)
        self.location.publish()
        self._print_summary(results, run, console)
        for warning in tracker_warnings:
            console.print(f"WARNING {warning}", markup=False)
        if is_stopped:
            console.print("stopped; the same command goes on from here", markup=False)
        return 0 if (results.trials["status"] == "done").all() else 1

    def _print_summary(self, results: Results, run: RunFacts, console: Console) -> None:
        counts, location = results.sweep.counts, self.location
        console.print(trial_table(results.trials))
        console.print("* on the front; win rates against the SFT policy with 95 % intervals", markup=False)
        for line in stopped_lines(results.trials):
            console.print(f"not judged further: {line}", markup=False)
        for reason, trials in results.trials[results.trials["status"] == "failed"].groupby("error", sort=False):
            console.print(f"FAILED {', '.join(trials['label'])}: {reason}", markup=False)
        for warnings, trials in results.trials[results.trials["warnings"] != ""].groupby("warnings", sort=False):
            console.print(f"WARNING {', '.join(trials['label'])}: {warnings}", markup=False)
        for warning in judge_warnings(results):
            console.print(f"WARNING {warning}", markup=False)
        done_before = counts.steps_run + counts.steps_reused - run.steps_run
        console.print(
            f"{counts.trials_done} of {counts.trials} trials done; {run.steps_run} steps run, {done_before} done "
            f"before, {counts.steps_failed} failed; {run.ended().seconds:.0f} s",
            markup=False,
        )
        for name in _OUTPUTS:
            console.print(f"  {os.path.relpath(location.folder / name)}", markup=False)
        if location.uri != str(location.folder):
            console.print(f"  and in {location.uri}", markup=False)


def _needs_mergekit(plan: Plan) -> bool:
    return any(trial.combination != LINEAR for trial in plan.trials)


def check_keys(space: Space) -> None:
    """Check that this process has the API keys of all LLM judges and served policies.

    Raises:
        SacpoError: the environment variable of a key is not set.
    """
    for setting, owner in endpoints(space):
        if owner.api_key_env is not None and not os.environ.get(owner.api_key_env):
            raise SacpoError(
                f"{dotted(setting)}.api_key_env: the environment variable {owner.api_key_env} is not set; put the "
                "endpoint's key in it, or set api_key_env to null for an endpoint that needs none"
            )


def retract_unusable(plan: Plan, store: Store) -> list[str]:
    """Retract the records of steps that tables are made of and whose output is damaged or has undecided verdicts.

    The steps are then computed again. Decided verdicts are in the ledger and cost nothing.

    Returns:
        One line for each of these steps, with the reason.
    """
    lines = []
    for step_id in dict.fromkeys(s for trial in plan.trials for s in trial.steps if s not in trial.policy.values()):
        step, record = plan.steps[step_id], store.record(step_id)
        if record is None:
            continue
        try:
            store.verified_output_dir(step_id, record)
        except CorruptOutput as error:
            lines.append(f"{step.label}: {error}")
            continue
        metrics = record.metrics
        undecided = metrics.undecided - metrics.unanswered if isinstance(metrics, JudgeMetrics) else 0
        if undecided and isinstance(step.payload, JudgePayload) and step.payload.judge.calls_endpoint:
            reason = f"{undecided} verdicts are missing"
            store.retract(step_id, reason)
            lines.append(f"{step.label}: {reason}")
    return lines


@contextmanager
def _console(address: str) -> Iterator[Console]:
    """The console of the run, with Ctrl-C and SIGTERM as KeyboardInterrupt.

    On a cluster the output of libraries is redirected later, so the console has a copy of the real output.
    """
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts background jobs with SIGINT ignored
            signal.signal(number, signal.default_int_handler)
    if address == IN_PROCESS:
        yield Console(width=None if sys.stdout.isatty() else 160)
        return
    with os.fdopen(os.dup(1), "w") as terminal:
        yield Console(file=terminal, width=None if terminal.isatty() else 160)
