"""The settings of a sweep.

Modules: the strict models of a space (`space`, `grid`, `training`, `evaluation`, `endpoint`, built from `base`), the
table of training methods (`methods`), reading from YAML (`document`, `loading`, `model_folder`), the lines about
problems (`problems`, `other_tools`), and checks that involve several settings (`validation`, `judge_checks`,
`choice_checks`).
The package may import pydantic, PyYAML and `sacpo.errors`.
"""
