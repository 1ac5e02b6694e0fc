"""The running batch: requests, ticks, samplers, the dense UNet, the canvas of an edit.

Knows nothing of Triton, ControlNets, adapters or templates. `tick` uses those through protocols.
"""
