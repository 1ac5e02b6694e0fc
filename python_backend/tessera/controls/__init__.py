"""ControlNets: they run in parallel with the UNet's encoder half. Their residuals are added before
the decoder half.
"""
