"""Tasks of a user's own: task files made of tables, and a folder of them checked before anything is trained on it."""
