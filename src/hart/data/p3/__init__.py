"""The Public Pool of Prompts (§4.2): its subsets, their names and their rows."""
