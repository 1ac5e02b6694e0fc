"""KServe v2 for tritonclient, perf_analyzer and curl: the five public models of Triton, and nothing
else of it.

::

    router   the endpoint: one request from its path to the last byte of its answer
    paths    which paths are passed on
    head     the JSON of an inference: checked, and written anew for Triton
    tensors  the bytes of one input: sizes, texts, numbers that came as JSON
    body     a request's body as it comes in, tensors unparsed
    upstream the connection to Triton

Triton never sees a client's JSON. It gets a head that `head` has written from what it checked, so
the two need not agree about duplicate keys, deep nesting or strange numbers.
"""
