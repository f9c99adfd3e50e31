"""The system: a main model M, what adapts it, what one pass leaves behind, and the folders that hold them."""
