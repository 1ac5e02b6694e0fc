"""ControlNets: run beside the UNet's encoder half, joined before its decoder half."""
