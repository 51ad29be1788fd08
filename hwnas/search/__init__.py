"""Search: gradient-based search over a supernet, and the derivation of networks from what it found."""
