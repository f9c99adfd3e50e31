"""The hypernetwork H (§2.2, §3.1): encoder, truncated decoder, generation schemes, heads."""
