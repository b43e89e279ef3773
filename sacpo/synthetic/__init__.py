"""The synthetic world: a small task with exact expectations, for the quickstart and for tests.

The module `world` holds its questions, answers, gold scores, preference data and exact optimum.
The package may import numpy, and nothing of sacpo.
"""
