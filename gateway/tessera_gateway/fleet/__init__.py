"""A fleet: many workers behind one address, each request sent where it will be done first.

A worker is one `tessera-serve`.

::

    wire     protobuf's wire format: what of a gRPC request has to be known, without parsing it
    peek     what a request asks for: steps, size, template, mask, LoRAs, ControlNets
    load     what a worker tells of itself
    score    when a request would be done on a worker
    learning how far predictions are off
    scaling  how many workers there should be
    book     what this router knows of every worker; the choice
    hot      which templates are worth a copy

None of these does input or output: the same score chooses in the fleet, in the simulation
(`bench/fleet_sim.py`) and in the tests. The others do::

    pool       connections to the workers; what a failure means
    counts     statistics of several workers as those of one
    metrics    what Prometheus is told
    addresses  where the workers are
    scaler     starts, drains and stops workers
    copies     templates on several workers
    several    jobs stick to their worker; templates are listed and evicted everywhere
    grpc_front, upstream   KServe over gRPC and over HTTP
    front      the fleet's address
    ray_serve  starts and watches workers; the only module that knows Ray
    kuberay    the fleet as a RayService's configuration names it
    settings, cli   fleet.yaml, `tessera-fleet`
"""
