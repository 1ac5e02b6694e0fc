"""The steps of `bench/gpu/second.sh`: the real server against diffusers on one GPU."""

from __future__ import annotations

import sys

from bench.gpu.runner import main, module_step

SECONDS = 345.0
"""For all steps, the making of the environment included; the script has 6 minutes."""
STEPS = (
    module_step("machine", 40, "machine", title="Machine"),
    module_step("serve-sdxl", 200, "serve", "--variant=sdxl", title="SDXL: the server"),
    module_step("serve-sd15", 150, "serve", "--variant=sd15", title="SD1.5: the server"),
)

if __name__ == "__main__":
    sys.exit(main("second", STEPS, SECONDS, sys.argv[1:]))
