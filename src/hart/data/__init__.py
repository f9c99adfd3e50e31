"""Tasks, their texts and tokens, and the sampled training examples."""
