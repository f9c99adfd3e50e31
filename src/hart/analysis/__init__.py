"""What is made of trained models and their scores: the report of a study, and the paper's numbers beside it."""
