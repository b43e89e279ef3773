"""From a space to a plan: trials, steps with content ids, typed payloads and records, and the table of step kinds.

`planner` makes the plan with `training_steps`, `evaluation_steps` and `graph`; `plan`, `payloads`, `judge_payloads`,
`metrics` and `records` are the typed models; `kinds` declares each kind of step once; `racing` and `preview` add steps
that look at several trials; `prompt_parts` divides prompts; `schedule` orders steps; `cost_estimate` serves
`--dry-run`, and `durations` expects how long steps take.
The package may import `spaces`, `data`, `judges.rubric`, `statistics`, `synthetic`, `hashing` and `errors`, but neither
ray nor torch.
"""
