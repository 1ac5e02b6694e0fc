"""Prompts to embeddings, pixels to latents and back: text encoders, VAE, masks.

Knows engines and arrays, nothing of requests or Triton.
"""
