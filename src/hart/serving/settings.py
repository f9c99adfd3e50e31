"""Settings of the server, and fixed limits of requests."""

import re
from dataclasses import dataclass

from hart.errors import HartError

MAX_BODY_BYTES = 1024 * 1024
"""Largest body of a request, checked before parsing."""

BODY_SECONDS = 15.0
"""Time limit for the arrival of a request's body."""

MAX_INPUTS, MAX_CHOICES, MAX_DEMONSTRATIONS = 64, 64, 64
MAX_SCORES = 1024
"""Most scores of one request: inputs times choices."""

MAX_CHARACTERS = 50_000
"""Most characters of one text, checked before tokens are counted."""

MAX_NEW_TOKENS, MAX_BEAMS, MAX_LOGPROBS = 512, 8, 20
MAX_STOPS, MAX_STOP_CHARACTERS = 4, 1000
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 2.0

MEMORY_BYTES = 512 * 1024**2
"""Most memory for adaptations that are kept in memory, in addition to the store."""


@dataclass(frozen=True)
class Settings:
    """Settings of the server.

    Attributes:
        max_batch: the most rows that one pass of the model answers.
        max_wait: seconds that an idle model waits for more rows before it begins.
        max_queue: the most rows that may wait; more are refused with 429.
        time_limit: seconds for a request, waiting included; then 504.
        mixing: whether rows of different tasks share a batch. Only comparisons switch it off.
        token: the bearer token required of requests, without white space at its ends; None admits everybody.
        loopback: whether only this machine can connect. Without a token the Host header must then be a name of this
            machine, so that no page of another site can reach the server through a name of its own.
        cors_origins: other sites whose pages may use the server, as `https://name:port`; `*` allows all.
        strict: whether OpenAI-style routes refuse unknown fields instead of ignoring them.
    """

    max_batch: int = 32
    max_wait: float = 0.005
    max_queue: int = 1024
    time_limit: float = 60.0
    mixing: bool = True
    token: str | None = None
    loopback: bool = True
    cors_origins: tuple[str, ...] = ()
    strict: bool = False

    def __post_init__(self) -> None:
        if self.token is not None and (not self.token or self.token != self.token.strip()):
            raise HartError(
                "token: must not be empty or have white space at its ends, which headers drop; give another"
            )
        for origin in self.cors_origins:
            if origin != "*" and not re.fullmatch(r"https?://[^/?#\s]+", origin):
                raise HartError(
                    f"cors_origins: {origin!r} is not an origin; give one such as https://hart.example, or *"
                )
