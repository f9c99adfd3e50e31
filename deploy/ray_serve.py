"""Several replicas of the server behind Ray Serve, each with a model and a batching queue of its own.

    pip install 'hart-hypernet[serve]' 'ray[serve]'
    HART_MODEL=mini HART_REPLICAS=2 serve run deploy.ray_serve:app

From the root of the repository. The replicas share the store (HART_CACHE, a folder that all of them see), so what one
adapts all can use. HART_MODEL is a folder, a hub name or mini, HART_TOKEN the bearer token, HART_GPUS the GPUs
of each replica, 0 by default.
"""

import os

from ray import serve

from hart import HartModel
from hart.serving.app import create_app
from hart.serving.settings import Settings
from hart.serving.store import Store


def build() -> object:
    """The application of one replica; called in the replica, so the model is loaded there."""
    gpu = float(os.environ.get("HART_GPUS", "0")) > 0
    model = HartModel.from_pretrained(os.environ.get("HART_MODEL", "mini"), device="cuda" if gpu else "cpu")
    # Ray's proxy is what clients connect to, and it is where hosts are decided.
    return create_app(model, Store(), Settings(token=os.environ.get("HART_TOKEN"), loopback=False))


@serve.deployment(
    num_replicas=int(os.environ.get("HART_REPLICAS", "2")),
    ray_actor_options={"num_gpus": float(os.environ.get("HART_GPUS", "0"))},
    max_ongoing_requests=1024,
)
@serve.ingress(build)
class Replica:
    """Nothing of its own: the application answers."""


app = Replica.bind()
