"""Users' own tasks: making task files from tables, and checking a folder of them before training."""
