"""`/sdapi/v1`, the API of stable-diffusion-webui, as far as its front ends need it.

::

    routes    the endpoints
    fields    what requests may say: what has an effect, what is refused, what is left out
    prompts   <lora:name:weight>
    samplers  names of samplers and schedulers
    scripts   ControlNet units
    edits     img2img: what is sent to the server, and what its picture is pasted into
    masks, resizing   pixels of edits
    orders    a request as drawings
    answers   pictures and `info`
    tasks     what runs: progress, interrupt
    lists     options, models, samplers, LoRAs

Errors have FastAPI's form: `{"detail": "a sentence"}`.
"""
