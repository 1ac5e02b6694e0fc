"""Prompts and pixels into the latents' world and back: text encoders, VAE, masks."""
