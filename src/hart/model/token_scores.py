"""Log-probabilities of generated tokens, noted while they are generated.

They are those of the model itself, in nats: before temperature, top_p and all else that sampling does to them, and so
the ones that teacher forcing of the same tokens gives (`hart.model.scoring`).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor


@dataclass(frozen=True)
class TokenScore:
    """What the model said where one token was generated.

    Attributes:
        logprob: of the token that was generated, in nats.
        top: the likeliest tokens there and their log-probabilities, the likeliest first.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


class TokenScores(LogitsProcessor):
    """Takes note of one call of `generate` without beams, in which it changes nothing.

    transformers runs it before temperature and top_p, and behind the rules of a generation configuration, of which
    a main model has none. Of all steps but the newest only what is asked for is kept: whole distributions of 512 tokens
    would take gigabytes.

    Args:
        top: how many of the likeliest tokens to keep at each step.
    """

    def __init__(self, top: int) -> None:
        self._top = top
        self._newest: Tensor | None = None
        self._chosen: list[Tensor] = []
        self._likeliest: list[tuple[Tensor, Tensor]] = []

    def __call__(self, input_ids: Int[Tensor, "b t"], scores: Float[Tensor, "b v"]) -> Float[Tensor, "b v"]:
        if self._newest is not None:
            self._chosen.append(self._newest.gather(1, input_ids[:, -1:]))
        self._newest = scores.float().log_softmax(dim=-1)
        found = self._newest.topk(min(self._top, scores.shape[1]), dim=1)
        self._likeliest.append((found.values, found.indices))
        return scores

    def read(self, tokens: Int[Tensor, "b u"]) -> list[list[TokenScore]]:
        """A score for each of the tokens that the call generated, also of those behind the end of a row."""
        assert self._newest is not None
        chosen = torch.cat([*self._chosen, self._newest.gather(1, tokens[:, -1:])], dim=1).tolist()
        logprobs, ids = (torch.stack(each, dim=1).tolist() for each in zip(*self._likeliest, strict=True))
        return [
            [
                TokenScore(logprob, tuple(zip(likeliest, said, strict=True)))
                for logprob, likeliest, said in zip(*row, strict=True)
            ]
            for row in zip(chosen, ids, logprobs, strict=True)
        ]
