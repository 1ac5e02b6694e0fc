"""Checks of TensorRT on a machine that has it: what `deploy/verify-tensorrt.sh` runs inside the
image.
"""
