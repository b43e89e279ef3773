"""One DPO stage under Ray Train and ZeRO-3, against the same TRL script under `accelerate launch` and ZeRO-3.

Both sides train in turns on two CPU workers over gloo, with the same policy, examples, batches and settings, and a live
reference. The figures are the time of an update, and the time before the first one, ours by part. After each of our
stages a second one trains on the same worker group, as in a sweep: its time before the first update is
`later_stage_start_seconds`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sacpo.cluster import executor, tuner
from sacpo.cluster.worker_groups import GROUPS, RunningStep
from sacpo.execution import in_process
from sacpo.execution.runner import Runner
from sacpo.planning.payloads import DPOPayload
from sacpo.planning.planner import make_plan
from sacpo.store.step_store import Store
from tests.benchmarks._options import parse
from tests.spaces import ROOT, space
from tests.stages import train_metrics

BATCH, RATE = 64, 1e-3
ZERO_3 = {
    "zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True},
    "bf16": {"enabled": False},
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "train_batch_size": "auto",
    "gradient_clipping": "auto",
    "zero_allow_untested_optimizer": True,
}


def launch(workers: int, out: Path, **values: Any) -> float:
    """Run `tests.plain_trl train` under `accelerate launch` and ZeRO-3; returns the time of its start."""
    out.mkdir(parents=True)
    bin_folder = Path(sys.executable).parent
    environment = os.environ | {
        "DS_ACCELERATOR": "cpu", "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    command = [bin_folder / "accelerate", "launch", "--use_deepspeed", "--zero_stage", "3",
               "--zero3_save_16bit_model", "true", "--zero3_init_flag", "true", "--gradient_accumulation_steps", "1",
               "--gradient_clipping", "1.0", "--mixed_precision", "no", "--num_machines", "1",
               "--num_processes", str(workers), "--main_process_port", "0", "-m", "tests.plain_trl"]  # fmt: skip
    started = time.time()
    done = subprocess.run(
        [*map(str, command), "train", json.dumps({"out": str(out), **values})],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-20000:])
    return started


def settings(workers: int, epochs: int) -> dict[str, Any]:
    """The stage's settings under TRL's names."""
    return {
        "learning_rate": RATE, "num_train_epochs": epochs, "per_device_train_batch_size": BATCH // workers,
        "lr_scheduler_type": "constant", "max_length": 16, "bf16": False, "gradient_checkpointing": False,
        "model_init_kwargs": {"dtype": "float32"}, "deepspeed": ZERO_3,
    }  # fmt: skip


def main() -> None:
    """Train the stages on both sides and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--width", type=int, default=128, help="hidden size of the policy")
    arguments = parse(parser, repeats=1, epochs=1, width=16)
    dpo = {"learning_rate": RATE, "epochs": arguments.epochs, "batch_size": BATCH, "lr_scheduler": "constant",
           "warmup_ratio": 0.0}  # fmt: skip
    ours: dict[str, list[float]] = {"update": [], "start": []}
    accelerate: dict[str, list[float]] = {"update": [], "start": []}
    parts: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as temporary, tuner.cluster("local", num_cpus=2):
        root = Path(temporary)
        chain = [{"chain": "dpo:helpfulness", "beta": [round(2 + 0.1 * i, 1) for i in range(2 * arguments.repeats)]}]
        variant = space(chains=chain, merges=[], training__dpo=dpo, model__hidden_size=arguments.width, model__layers=4,
                      resources__workers=2, resources__reference="live")  # fmt: skip
        plan, store = make_plan(variant), Store(root / "store")
        runner = Runner(plan, store, "run", executor.execute)
        inputs = Runner(plan, store, "run", in_process.execute)
        stages = [trial.policy["policy"] for trial in plan.trials if trial.method == "one-step"]
        for stage in stages:
            for parent in plan.steps[stage].parents.values():
                inputs.ensure(parent)
        later_starts = []
        for stage, later in zip(stages[::2], stages[1::2], strict=True):
            GROUPS.follow([RunningStep(stage, 2, is_stage=True), RunningStep(later, 2, is_stage=True)], slots=2)
            started = time.time()
            record = runner.ensure(stage)
            later_started = time.time()
            later_starts.append(runner.ensure(later).first_update_at - later_started)
            GROUPS.follow(None, slots=0)
            print(f"ours, on the same group: first update after {later_starts[-1]:.1f} s", flush=True)
            metrics = train_metrics(record)
            ours["start"].append(record.first_update_at - started)
            ours["update"].append(metrics.throughput.training_seconds / metrics.updates)
            parts.append({"processes": record.started_at - started} | metrics.start_seconds)
            out = root / stage
            parents = {role: str(store.verified_output_dir(step)) for role, step in plan.steps[stage].parents.items()}
            payload = plan.steps[stage].payload
            assert isinstance(payload, DPOPayload)
            started = launch(2, out, policy=parents["policy"], data=parents["data"], kl_parameter=payload.kl_parameter,
                             settings=settings(2, arguments.epochs))  # fmt: skip
            clock = json.loads((out / "clock.json").read_text())
            accelerate["start"].append(clock["first"] - started)
            accelerate["update"].append((clock["ends"][-1] - clock["first"]) / len(clock["ends"]))
            print(f"ours {ours['update'][-1]:.3f} s per update after {ours['start'][-1]:.1f} s", flush=True)
            print(f"accelerate {accelerate['update'][-1]:.3f} s after {accelerate['start'][-1]:.1f} s", flush=True)
    profile = {name: round(statistics.median(part[name] for part in parts), 1) for name in parts[0]}
    print("ours before the first update, seconds:", profile)
    median = {name: (statistics.median(ours[name]), statistics.median(accelerate[name])) for name in ours}
    figures = {
        "step_time_ratio": round(median["update"][0] / median["update"][1], 3),
        "start_seconds": round(median["start"][0], 1),
        "accelerate_start_seconds": round(median["start"][1], 1),
        "later_stage_start_seconds": round(statistics.median(later_starts), 1),
        **{f"start_{name}_seconds": value for name, value in profile.items()},
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
