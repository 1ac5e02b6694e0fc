"""The running batch: requests, a tick of them all, samplers, the dense UNet, the canvas of an edit.

Knows neither Triton nor ControlNets, adapters or templates: they come in by `tick`'s protocols.
"""
