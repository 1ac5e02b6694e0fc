"""The gateway: one ASGI application in front of a Tessera server.

It speaks what image clients already speak, lets nobody reach anything of Triton but the public
models, and cancels a job whose caller has gone. Towards Triton it uses the SDK. `app.create_app`
makes the application; each API is a folder or module with a router of its own.
"""
