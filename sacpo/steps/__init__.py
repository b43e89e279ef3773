"""The work of each kind of step: one module per kind with a function `run(job) -> StepReport`, and shared parts.

The kinds are `model`, `data` (with `sample` for preferences), `inspection`, `reference`, `train`, `probabilities`,
`generate`, `judge` (with `canary`) and `race`; shared are trainers, batches, checkpoints, divergence, throughput,
effective settings, generation engines, merges and model checks.
The package may import `execution`, `judges`, `data`, `compat` and everything below them, and torch, transformers and
TRL, but not Ray: every step runs in any process.
"""
