"""Files that sweeps share, on a path or in a bucket: records and outputs of steps, claims, and the list of sweeps.

`step_store` and `claim` are the store of steps, `sweep_registry` lists sweeps, `results_location` finds results
folders, `backends` opens a path or a bucket (`local_backend`, `bucket_backend`; `bucket_services` knows their URIs and
credentials, `bucket_errors` classifies their errors), `folder_transfer` copies folders, `past_steps` reads durations,
`local_cache` holds a bucket's outputs on this machine, `heartbeat` tells whether a holder is alive, and `maintenance`
measures, verifies and cleans a store, for the command `sacpo store` (`__main__`).
The package may import `planning` and everything below it, but neither ray nor torch; obstore is imported
inside functions.
"""
