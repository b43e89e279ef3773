"""Statistics of verdicts and scores: estimates with intervals, and comparisons of policies and of judges.

Modules: win rates and their differences (`win_rate`), training seeds (`variance`), win rates at equal length
(`length`), strengths from all pairs (`bradley_terry`), agreement of judges (`agreement`), calibration of reward models
(`calibration`), the front (`pareto`) and how sure it is (`front`), chances to reach it
(`racing`), bounds without assumptions (`certificate`), and the
difference that a number of prompts can detect (`power`). The package may import numpy, scipy and scikit-learn, and
nothing of sacpo.
"""
