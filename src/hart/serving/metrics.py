"""The Prometheus metrics of /metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The metrics of one application, in a separate registry.

    Args:
        model, base: names of the served model and its base, as labels.
    """

    def __init__(self, model: str = "", base: str = "") -> None:
        self.registry = registry = CollectorRegistry()
        Info("hart_model", "What is served", registry=registry).info({"model": model, "base": base})
        tokens = Counter(
            "hart_tokens",
            "Tokens read and generated of answers that came to their end",
            ["model", "direction"],
            registry=registry,
        )
        self.tokens_in, self.tokens_out = tokens.labels(model, "in"), tokens.labels(model, "out")
        self.requests = Counter("hart_requests_total", "Requests answered", ["route", "status"], registry=registry)
        self.request_seconds = Histogram(
            "hart_request_seconds", "From request to reply", ["route"], buckets=_SECONDS, registry=registry
        )
        self.batch_rows = Histogram("hart_batch_rows", "Rows of a batch", ["kind"], buckets=_ROWS, registry=registry)
        self.batch_tasks = Histogram(
            "hart_batch_tasks", "Different tasks in a batch", ["kind"], buckets=_ROWS, registry=registry
        )
        self.batch_seconds = Histogram(
            "hart_batch_seconds", "One batch in the model", ["kind"], buckets=_SECONDS, registry=registry
        )
        self.waiting = Gauge("hart_waiting_rows", "Rows that wait for the model", registry=registry)
        self.refused = Counter("hart_refused_total", "Requests refused because the queue was full", registry=registry)
        self.abandoned = Counter("hart_abandoned_rows_total", "Rows whose client left or ran late", registry=registry)
        self.adapted = Counter("hart_adapted_total", "Tasks that the hypernetwork read", registry=registry)
        self.stored = Gauge("hart_store_adaptations", "Adaptations in the store", registry=registry)
        self.stored_bytes = Gauge("hart_store_bytes", "Their size", registry=registry)

    def text(self) -> bytes:
        return generate_latest(self.registry)
