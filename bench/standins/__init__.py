"""Triton models that stand in for ControlNets of a known duration or size."""
