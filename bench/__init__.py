"""Benchmarks, and the tour that `make demo` gives."""
