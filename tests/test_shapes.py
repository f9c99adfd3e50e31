"""Shapes in signatures are checked in this test run (conftest.py): wrong shapes are errors."""

import pytest
import torch
from jaxtyping import TypeCheckError

from hart.hypernetwork.heads import LayerwiseNorm
from hart.hypernetwork.network import HyperOutput
from hart.peft.injection import product


def test_a_tensor_of_another_shape_is_refused() -> None:
    assert LayerwiseNorm(2, 8)(torch.randn(2, 3, 1, 8)).shape == (2, 3, 1, 8)
    with pytest.raises(TypeCheckError):
        LayerwiseNorm(2, 8)(torch.randn(3, 1, 8))


def test_one_symbol_is_one_size() -> None:
    assert product(torch.randn(2, 3, 4), torch.randn(1, 4, 5)).shape == (2, 3, 5), "#b is b or 1"
    with pytest.raises(TypeCheckError):
        product(torch.randn(2, 3, 4), torch.randn(2, 5, 4))
    with pytest.raises(TypeCheckError):
        HyperOutput({}, torch.zeros(2, 2, 0, 1, 8), torch.zeros(2, 7, 8), torch.ones(2, 6))
