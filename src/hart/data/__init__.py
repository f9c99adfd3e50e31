"""Tasks, their text and tokens, and the random examples to train on."""
