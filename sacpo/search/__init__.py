"""The search of a space: what to train next, as a pure function of the space and of the results so far.

`observations` holds what is known, `bridge` and `optuna_search` propose the next policy, `rules` has the rule of each.
`sacpo.cluster.searcher` makes a Ray Tune Searcher of them. The package may import `spaces`, `statistics` and `errors`,
but neither ray nor torch.
"""
