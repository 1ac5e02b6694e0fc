"""Sparse edits in the running batch: their steps, and the choice between dense and sparse steps.

Knows engines and the template store, nothing of Triton.
"""
