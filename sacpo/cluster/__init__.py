"""A sweep on a Ray cluster: checks before it starts, Tune trials, the dispatcher, tasks, and Ray Train worker groups.

`tuner` starts one trial for each policy; `dispatch` decides which step runs next; `executor` carries a step out, with
`trainer` and `worker` for training; `preflight` and `memory` refuse what cannot run; `spot` is a command of its own.
Modules here may import `ray`, `sacpo.compat`, `sacpo.steps` and all packages below it, but no command and no reporting.
"""
