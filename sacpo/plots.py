"""The plots of a sweep for notebooks and papers: each draws on the axes that it is given, or in a figure of its own.

```python
from sacpo import plots, results

sweep = results.load("results/quickstart")
axes = plots.plot_front(sweep)
plots.save(axes, "front.pdf")
```

The commands' own pictures (`pareto`, `curves`) are made of the same functions.
"""

from sacpo.reporting.curves import plot_training
from sacpo.reporting.difference_plot import plot_difference
from sacpo.reporting.judges_plot import plot_judges
from sacpo.reporting.path_plot import plot_path
from sacpo.reporting.plots import plot_exact, plot_front, plot_trials, save

__all__ = [
    "plot_difference",
    "plot_exact",
    "plot_front",
    "plot_judges",
    "plot_path",
    "plot_training",
    "plot_trials",
    "save",
]
