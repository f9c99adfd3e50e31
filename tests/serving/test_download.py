"""The zip file of a download has the whole adaptation."""

import pytest
import torch

from hart.errors import HartError
from hart.model.hart_model import HartModel
from hart.serving.download import bundle, unbundle

from .conftest import task


def test_one_file_holds_everything(model: HartModel) -> None:
    adaptation = model.adapt(task(1))
    back = unbundle(bundle(adaptation))
    assert back.tasks == adaptation.tasks and back.created == adaptation.created
    for name, rows in adaptation._tensors().items():
        assert torch.equal(back._tensors()[name], rows)
    for damaged in (b"", b"PK", bundle(adaptation)[:-30]):
        with pytest.raises(HartError, match="zip"):
            unbundle(damaged)
