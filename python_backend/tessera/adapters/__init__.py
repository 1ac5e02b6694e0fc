"""LoRAs: reading their files, merging them into weights, sharing an engine between adapter sets.

    formats   one file -> updates by weight name
    names     what files call the modules of a bundle's networks
    kinds     the tensors of a module in a file -> updates, by kind of adapter
    updates   what one adapter does to one weight
    targets   the weights of a bundle's networks that an update may change
    library   adapter files in some folders, by name; scanned for every request
    store     parsed adapters in memory, within a byte budget; read ahead
    merge     base weights + updates -> weights, put into an engine and replaced again
    turns     which of several adapter sets has the engine
    side      the low-rank side path, on which different adapter sets share a call
    switch    chooses requests, path and adapter set for every tick

None of these modules knows Triton.
"""
