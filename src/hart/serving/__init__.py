"""The HTTP server: adapt by definition and demonstrations, answer with requests of different tasks in one batch.

`create_app` makes an ASGI application of a model. `hart serve` runs it with uvicorn; any ASGI server can.
Needs the extra `serve`.
"""

from hart.errors import HartError

try:
    import fastapi as _fastapi  # noqa: F401
    import fastapi_offline as _fastapi_offline  # noqa: F401
    import prometheus_client as _prometheus_client  # noqa: F401
    import uvicorn as _uvicorn  # noqa: F401
except ImportError as error:
    raise HartError(f"the server needs {error.name}: pip install 'hart-hypernet[serve]'") from None

from hart.serving.app import create_app as create_app
from hart.serving.settings import Settings as Settings
