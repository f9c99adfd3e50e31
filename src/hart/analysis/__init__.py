"""Analysis of trained models and their scores: figures, the report of a study, and the paper's numbers."""
