"""The HTTP server, its store of adaptations, and its client.

`hart.serving.app.create_app` makes an ASGI application of a model; `hart serve` runs it with uvicorn, and any ASGI
server can. The server needs the extra `serve`.
"""
