"""Token-sparse denoising: a UNet step that computes the tokens of a mask only.

`tables` turns a mask into index tables. `record` fills a template's sites with a dense pass.
`batch` makes the inputs of one engine call, and `engines` runs it. The UNet's program and the
network on rows of tokens are in `tessera.networks`. See docs/internals/sparse.md.

Knows no requests and no template store.
"""
