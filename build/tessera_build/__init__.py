"""Turns checkpoints into bundles, and trains the demo model."""
