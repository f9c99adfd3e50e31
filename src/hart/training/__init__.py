"""Training runs: configuration, losses, the loop, checkpoints, layouts, cost estimates, sweeps."""
