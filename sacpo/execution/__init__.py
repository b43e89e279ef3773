"""One step from claim to record, the same for every executor.

`runner` claims a step, has it carried out and commits the record; `job` is a step with its inputs and folders; `report`
is what a step function returns; `in_process` carries steps out in the calling process; `artifacts` names the files of
outputs, `resources` sizes a worker, and `output_capture` writes a step's output to its log.
The package may import `store`, `planning` and everything below them; it imports no step function and no Ray, and torch
only inside functions.
"""
