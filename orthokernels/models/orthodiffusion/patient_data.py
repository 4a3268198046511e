"""Late fusion of MRI and patient data: age, height, weight, sex, patient type and the event that led to the scan."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _tabular_network(width: int, hidden: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.LayerNorm(hidden), nn.Dropout(dropout))


class TabularNet(nn.Module):
    """Logits from patient data alone.

    Args:
        continuous: standardised numbers (age, height, weight), missing ones 0.
        sexes, patient_types: classes of the two one-hot columns, "unknown" included.
        events: classes of the event, "unknown" included, each with a learned vector of ``event_width``.
    """

    def __init__(
        self,
        labels: int = 8,
        *,
        continuous: int = 3,
        sexes: int = 3,
        patient_types: int = 3,
        events: int = 20,
        event_width: int = 8,
        hidden: int = 64,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.event_embed = nn.Embedding(events, event_width)
        self.mlp = _tabular_network(continuous + sexes + patient_types + event_width, hidden, dropout)
        self.out = nn.Linear(hidden, labels)

    def forward(self, continuous: Tensor, sex: Tensor, patient_type: Tensor, event: Tensor) -> Tensor:
        """[batch, continuous], one-hot [batch, sexes], one-hot [batch, types], classes [batch] -> [batch, labels]."""
        columns = torch.cat([continuous, sex, patient_type, self.event_embed(event)], dim=1)
        return self.out(self.mlp(columns))


class LateFusion(nn.Module):
    """MRI logits and patient-data logits mixed with one learned weight per label.

    Forward gives ``fused``, ``mri`` and ``tabular`` logits [batch, labels] and ``alpha`` [labels], the MRI's share.
    """

    def __init__(
        self,
        mri_width: int = 1536,
        labels: int = 8,
        *,
        continuous: int = 3,
        sexes: int = 3,
        patient_types: int = 3,
        events: int = 20,
        event_width: int = 8,
        hidden: int = 64,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.mri_head = nn.Linear(mri_width, labels)
        self.event_embed = nn.Embedding(events, event_width)
        self.tab_proj = _tabular_network(continuous + sexes + patient_types + event_width, hidden, dropout)
        self.tab_head = nn.Linear(hidden, labels)
        self.alpha_param = nn.Parameter(torch.zeros(labels))  # sigmoid(0) = 0.5: both count alike at first

    def forward(
        self, mri: Tensor, continuous: Tensor, sex: Tensor, patient_type: Tensor, event: Tensor
    ) -> dict[str, Tensor]:
        columns = torch.cat([continuous, sex, patient_type, self.event_embed(event)], dim=1)
        mri_logits, tabular = self.mri_head(mri), self.tab_head(self.tab_proj(columns))
        alpha = self.alpha_param.sigmoid()
        fused = alpha * mri_logits + (1 - alpha) * tabular
        return {"fused": fused, "mri": mri_logits, "tabular": tabular, "alpha": alpha}
