"""Whatever kernels are given to write on is poisoned first."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Fresh memory is NaN: an element that nobody wrote is found."""
    # At the first such call PyTorch lists what a device's context redirects; not the functions below, or no later test
    # could make anything on "meta".
    with torch.device("meta"):
        torch.empty(0)
    plain, new, strided = torch.empty, torch.Tensor.new_empty, torch.empty_strided

    def nan(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.fill_(float("nan")) if tensor.is_floating_point() and type(tensor) is torch.Tensor else tensor

    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: nan(plain(*args, **kwargs)))
    monkeypatch.setattr(torch, "empty_strided", lambda *args, **kwargs: nan(strided(*args, **kwargs)))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *args, **kwargs: nan(new(self, *args, **kwargs)))
