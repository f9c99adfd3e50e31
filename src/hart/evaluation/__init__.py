"""Scores of systems on tasks: metrics, free answers, choices, pictures."""
