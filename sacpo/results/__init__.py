"""Tables of a sweep: built from the records in a store, written to a results folder, and read again (`load`).

Here are the facts of a sweep (`sweep_facts`), the kept plan (`kept_plan`), the columns of trials and steps, the
comparisons over all trials, and the rules by which tables are overwritten (`write`). The package may import
`statistics`, `synthetic`, `store`, `planning`, `spaces`, `execution.artifacts`, and of `judges` the modules `verdicts`,
`thoughts` and `judge_directed`, but neither ray nor torch.
"""

from sacpo.results.load import Results, load

__all__ = ["Results", "load"]
