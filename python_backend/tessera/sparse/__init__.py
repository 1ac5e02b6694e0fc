"""Token-sparse denoising: a UNet step that computes the tokens of a mask only.

`tables` turns a mask into index tables, `program` lists a UNet's operations and its sites,
`network` is the UNet on rows of tokens, `record` fills the sites with a dense pass, `batch` makes
the inputs of one engine call, `unet` puts them together. See docs/internals/sparse.md.
"""
