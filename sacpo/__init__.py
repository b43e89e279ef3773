"""Sweeps of SACPO (Stepwise Alignment for Constrained Policy Optimization, NeurIPS 2024) on Ray.

Commands: `sacpo sweep`, `sacpo judge`, `sacpo report`, `sacpo export` (also `python -m sacpo.sweep` and so on). In
Python: `sacpo.results.load(folder)`. The packages are ordered in layers; each package's docstring describes its
content and the packages that it may import.
"""

__version__ = "0.1.0"
