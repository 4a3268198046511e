"""Settings of the sub-commands that train and judge heads. Every default is the published value where there is one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Plane = Literal["sagittal", "coronal", "axial"]
Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]


class _Strict(BaseModel):
    """An unknown key is a typing error, not a wish to be ignored."""

    model_config = ConfigDict(extra="forbid")


class HeadConfig(_Strict):
    """Adam on fixed features, cosine per epoch. ``batch`` None takes all rows at once."""

    epochs: Annotated[int, Field(ge=0)] = 10
    batch: Positive | None = 10
    learning_rate: Rate = 5e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    standardise: bool = False  # features to mean 0 and deviation 1 first, folded into the layers afterwards


class FusionConfig(_Strict):
    """Three planes to one, by the publication's recipe.

    ``keep`` says which is written: one mode, or the best on validation data.
    """

    modes: tuple[Literal["simple_concat", "linear_concat", "linear_add", "crossattn", "gating"], ...] = (
        "simple_concat", "linear_concat", "linear_add", "crossattn", "gating",
    )  # fmt: skip
    keep: Literal["best", "simple_concat", "linear_concat", "linear_add", "crossattn", "gating"] = "best"
    head: HeadConfig = HeadConfig(epochs=5, batch=10, learning_rate=5e-5)
    gate: HeadConfig = HeadConfig(epochs=40, batch=None, learning_rate=1e-3, weight_decay=1e-4)
    hidden: bool = False
    out_width: Positive = 512
    folds: Annotated[int, Field(ge=2)] = 5
    stacking: bool = False
