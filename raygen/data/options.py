"""Which images to train on, and how they are prepared: the part `data` of a spec."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Augmentation = Literal["flip", "shift", "crop"]

SMALLEST_SIDE = 8  # pixels


def _as_names(value: Any) -> Any:
    """`flip,shift` and `[flip, shift]` as a list: the names that are typed have no quotes."""
    if not isinstance(value, str):
        return value
    return [name for part in value.strip().removeprefix("[").removesuffix("]").split(",") if (name := part.strip())]


def _in_order(names: tuple[Augmentation, ...]) -> tuple[Augmentation, ...]:
    return tuple(name for name in get_args(Augmentation) if name in names)


class DataOptions(BaseModel):
    """Which images to train on, and how they are prepared."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(
        "digits",
        min_length=1,
        description="a data set's name, a folder of images, or a .npy or .npz file",
    )
    root: Path | None = Field(None, description="folder where downloaded data sets live")
    image_size: int | None = Field(
        None,
        ge=SMALLEST_SIDE,
        description="crop and resize the images to squares of this side, in pixels",
    )
    validation_fraction: float = Field(
        0.1, gt=0, le=0.5, description="part of the images that no training sees: epochs and trials are chosen on it"
    )
    test_fraction: float = Field(
        0.1,
        ge=0,
        lt=0.5,
        description="part of the images that no training or choice sees, of a set without an official test part; "
        "0: no test part",
    )
    normal_class: int | None = Field(
        None, ge=0, description="train on the images of this class only, to find what is none; none: all classes"
    )
    balance: bool = Field(False, description="draw each class equally often, for classes of uneven sizes")
    augment: Annotated[tuple[Augmentation, ...], BeforeValidator(_as_names), AfterValidator(_in_order)] = Field(
        (),
        description="change training images at random, any of flip (left to right), shift and crop; none: as they are",
    )
    augment_shift: float = Field(
        0.1, gt=0, le=0.5, description="part of a side to shift by at most, to the nearest pixel but 0 (augment shift)"
    )
    augment_crop: float = Field(
        0.8, gt=0, lt=1, description="part of a side that a crop has at least, to be enlarged again (augment crop)"
    )
    corruption: Literal["noise", "mask", "downsample"] | None = Field(
        None,
        description="of what is encoded, so that the model learns to restore the clean images; none: clean inputs",
    )
    corruption_std: float = Field(
        0.3,
        gt=0,
        allow_inf_nan=False,
        description="standard deviation of Gaussian noise on pixels in [0, 1] (corruption noise)",
    )
    corruption_mask: float = Field(
        0.5, gt=0, lt=1, description="part of the image under a black block at a random place (corruption mask)"
    )
    corruption_factor: Literal[2, 4] = Field(
        4, description="pixels of a side that become one, and are repeated again (corruption downsample)"
    )

    @property
    def unused_augmentation(self) -> str | None:
        """What is wrong if a strength is set of what is not done; None if all that are set are used."""
        for name in ("shift", "crop"):
            field = f"augment_{name}"
            if name not in self.augment and getattr(self, field) != type(self).model_fields[field].default:
                return f"data.{field}: no image is changed so; add {name} to data.augment"
        return None

    @property
    def corruption_in_words(self) -> str | None:
        """The corruption with its strength; None if there is none."""
        match self.corruption:
            case None:
                return None
            case "noise":
                return f"Gaussian noise of σ {self.corruption_std:g}"
            case "mask":
                return f"a block over {self.corruption_mask:g} of the image"
            case "downsample":
                return f"{self.corruption_factor} × {self.corruption_factor} pixels in one"
