"""Sweeps of SACPO (Stepwise Alignment for Constrained Policy Optimization, NeurIPS 2024) on Ray.

Commands: ``python -m sacpo.sweep``, ``python -m sacpo.report``, ``python -m sacpo.export``.
From a notebook: ``sacpo.results.load(folder)``.
"""

__version__ = "0.1.0"
