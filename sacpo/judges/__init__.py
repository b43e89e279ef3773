"""Judges: functions that compare a policy's answers with the baseline's answers.

Modules: the types that judges share (`verdicts`); LLM judges (`chat`, `llm`), with their batches of calls
(`call_batch`), HTTP client (`endpoint`), its key (`keys`), reading of its errors (`refusals`), bodies (`completions`)
and token log-probabilities (`token_probabilities`), stored replies and limits (`ledger`), prompts (`rubric`), reading
of verdicts (`replies`) without thoughts (`thoughts`), and detection of prompts that were cut (`truncation`); judges
by scores (`scalar`); and a judge with errors of known size (`noisy`). The package may import `sacpo.data`,
`sacpo.synthetic`, `sacpo.spaces`, `sacpo.hashing` and `sacpo.errors`; only `endpoint` imports openai, and `scalar`
imports torch and transformers inside a function.
"""
