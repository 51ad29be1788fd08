"""What ships: bundles, and networks run on pictures."""
