"""Training runs: configuration, losses, the loop, checkpoints, layouts, what a run costs, many runs."""
