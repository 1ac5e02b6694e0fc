"""The steps of `bench/gpu/first.sh`: everything that needs no server. The most valuable come
first.
"""

from __future__ import annotations

import sys

from bench.gpu.runner import main, module_step

SECONDS = 400.0
"""For all steps, the making of the environment included; the script has 7 minutes."""
STEPS = (
    module_step("machine", 40, "machine", title="Machine"),
    module_step("tests", 110, "gpu_tests", title="tests/gpu"),
    module_step("dense-sdxl", 60, "dense", "--variant=sdxl", title="SDXL: one dense step"),
    module_step("sparse-sdxl", 70, "sparse", "--variant=sdxl", title="SDXL: one sparse step"),
    module_step("loras-sdxl", 70, "loras", "--variant=sdxl", title="SDXL: change of LoRA, rank 32"),
    module_step("controls-sdxl", 50, "controls", "--variant=sdxl", title="SDXL: ControlNets"),
    module_step("dense-sd15", 40, "dense", "--variant=sd15", title="SD1.5: one dense step"),
    module_step("vae", 30, "vae", title="VAE decode"),
    module_step("side-sd15", 45, "side_path", "--variant=sd15", title="SD1.5: side path"),
    module_step("compiled-sd15", 80, "compiled", "--variant=sd15", title="SD1.5: compiled step"),
    module_step("sparse-sd15", 45, "sparse", "--variant=sd15", title="SD1.5: one sparse step"),
    module_step("compiled-sdxl", 140, "compiled", "--variant=sdxl", title="SDXL: compiled step"),
)

if __name__ == "__main__":
    sys.exit(main("first", STEPS, SECONDS, sys.argv[1:]))
