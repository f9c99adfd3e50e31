"""Log-probabilities of generated tokens, recorded during generation.

They are the model's own, in nats, before temperature, top_p and other sampling options. Teacher forcing of the same
tokens (`hart.model.scoring`) gives the same values.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor


@dataclass(frozen=True)
class TokenScore:
    """The model's log-probabilities at one generated token.

    Attributes:
        logprob: log-probability of the generated token, in nats.
        top: the likeliest tokens at this position with their log-probabilities, the likeliest first.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


class TokenScores(LogitsProcessor):
    """Logits processor that records one call of `generate` without beams and changes no logits.

    transformers runs it before temperature and top_p, and after the rules of a generation configuration, of which a
    main model has none. Only the newest step keeps its whole distribution, as those of 512 steps would take gigabytes.

    Args:
        top: number of likeliest tokens to record at each step.
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
        """The score of each generated token, including those after the end of a row."""
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
