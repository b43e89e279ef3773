"""The `probabilities` step: a policy's exact probability of every answer of the synthetic world."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from sacpo.execution.artifacts import PROBABILITIES
from sacpo.execution.job import Job
from sacpo.execution.report import StepReport
from sacpo.planning.payloads import ProbabilitiesPayload
from sacpo.steps.policies import load_policy
from sacpo.synthetic.world import ANSWERS, PROMPTS, SLOTS, Array


def run(job: Job[ProbabilitiesPayload]) -> StepReport:
    """Write the probabilities, float64 of shape (prompts, answers), in the order of `PROMPTS` and `ANSWERS`."""
    report, payload = StepReport(), job.payload
    model, tokenizer = load_policy(job.parents, payload.q, payload.combination, payload.loading, share_base=True)
    report.first_update_at = time.time()
    save_file({"probabilities": answer_probabilities(model, tokenizer)}, job.folder / PROBABILITIES)
    return report


@torch.no_grad()
def answer_probabilities(model: Any, tokenizer: Any) -> Array:
    """Probability of every answer, its end-of-sequence token included; shape (prompts, answers)."""
    ids = [[tokenizer.convert_tokens_to_ids(text) for text in slot] for slot in SLOTS]
    answers = torch.tensor([[ids[i][k] for i, k in enumerate(answer)] + [tokenizer.eos_token_id] for answer in ANSWERS])
    rows = []
    for text, _ in PROMPTS:
        prompt = torch.tensor(tokenizer(text)["input_ids"])
        sequences = torch.cat([prompt.expand(len(answers), -1), answers], dim=1).to(model.device)
        logits = model(input_ids=sequences).logits[:, len(prompt) - 1 : -1].double()
        log_probabilities = logits.log_softmax(-1).gather(-1, sequences[:, len(prompt) :, None])
        rows.append(log_probabilities.squeeze(-1).sum(-1).exp().cpu().numpy())
    return np.stack(rows)
