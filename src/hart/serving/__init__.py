"""The HTTP server, its store of adaptations, and its client.

`hart.serving.app.create_app` creates an ASGI application for a model; `hart serve` runs it with uvicorn, but any ASGI
server can run it. The server needs the extra `serve`.
"""
