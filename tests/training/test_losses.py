"""The prediction loss against an explicit implementation of its definition."""

import math

import torch

from hart.training.losses import prediction_loss


def test_prediction_loss_is_the_negative_log_probability_of_the_targets():
    logits = torch.randn(2, 3, 5)
    labels = torch.tensor([[4, 0, -100], [2, -100, -100]])
    total, count = prediction_loss(logits, labels)
    log_p = logits.log_softmax(-1)
    assert count == 3
    torch.testing.assert_close(total, -(log_p[0, 0, 4] + log_p[0, 1, 0] + log_p[1, 0, 2]))


def test_prediction_loss_of_uniform_bf16_logits_is_log_of_the_vocabulary():
    total, count = prediction_loss(torch.zeros(2, 3, 7, dtype=torch.bfloat16), torch.ones(2, 3, dtype=torch.int64))
    assert total.dtype == torch.float32
    torch.testing.assert_close(total / count, torch.tensor(math.log(7)))


def test_prediction_loss_takes_labels_that_are_not_contiguous():
    logits, labels = torch.randn(2, 3, 5), torch.randint(5, (3, 2)).T
    expected, _ = prediction_loss(logits, labels.contiguous())
    assert torch.equal(prediction_loss(logits, labels)[0], expected)
