"""Benchmarks, and the demo of `make demo`."""
