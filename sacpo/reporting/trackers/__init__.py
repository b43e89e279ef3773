"""Reports a sweep to trackers through their own clients.

`runs` describes what a tracker gets, `feed` sends it in the background, and there is one module for each tracker:
`wandb_tracker`, `mlflow_tracker`, `tensorboard_tracker`, `trackio_tracker`. Like all of `reporting`, it imports
`results` and packages below.
"""
