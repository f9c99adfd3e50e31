"""The Public Pool of Prompts (section 4.2): subsets, their names, their rows."""
