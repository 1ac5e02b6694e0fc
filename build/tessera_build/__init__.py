"""Builds bundles from checkpoints, compiles and verifies them, and trains the demo model."""
