"""The Public Pool of Prompts (§4.2): subsets, their names, their rows."""
