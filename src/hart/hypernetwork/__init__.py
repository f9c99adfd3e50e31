"""The hypernetwork H (sections 2.2 and 3.1): encoder, truncated decoder, generation schemes, heads."""
