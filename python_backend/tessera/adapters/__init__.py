"""LoRAs: reading their files, merging them into a network's weights, and taking turns with them.

    formats   one file -> low-rank updates by weight name
    targets   the weights of a bundle's networks that an update may change
    library   the files of some folders, by name; hot
    store     parsed files in memory, within a byte budget; read ahead
    merge     base weights + updates -> weights, into an engine and out again
    turns     which of several adapter sets the engine works for

None of it knows Triton.
"""
