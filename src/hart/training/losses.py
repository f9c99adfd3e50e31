"""The prediction loss (Eq. 5); the other term of L_pred + α·L_cst is in `hart.training.consistency`."""

from torch import Tensor
from torch.nn import functional as F

from hart.data.collate import IGNORED_LABEL


def prediction_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross entropy of the target tokens (Eq. 5), and their number.

    Sum and number are separate, so that accumulated and sharded batches can be divided by the number of tokens of the
    whole batch. The loss is computed in float32 for any type of logits.

    Args:
        logits: `[b, u, v]`.
        labels: `[b, u]` int64, -100 on padding.

    Returns:
        The sum in nats (float32 scalar) and the number of target tokens (int64 scalar).
    """
    total = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="sum")
    return total, (labels != IGNORED_LABEL).sum()
