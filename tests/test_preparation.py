"""What is said of a job before it is queued."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raygen.plan import Plan
from raygen.preparation import Prepared, check_data, where_images_lie
from raygen.spec import TrainSpec

DIGITS_BYTES = 1437 * 8 * 8
"""What the training images of digits take."""


@pytest.fixture
def prepared() -> Prepared:
    return Prepared(TrainSpec.create("vae", {"data.source": "digits"}), Plan(1, 1, 1, 4))


def test_the_images_that_train_are_counted(prepared: Prepared) -> None:
    assert 0.8 * DIGITS_BYTES < check_data(prepared) <= DIGITS_BYTES


@pytest.mark.parametrize(
    ("share", "memory_bytes", "where"),
    [
        (1, 2_000_000_000, "lie on the GPU, with 2.0 GB of GPU memory for each process"),
        (0.5, 4_000_000_000, "lie on the GPU, with 2.0 GB of GPU memory for each process"),
        (1, 1_900_000_000, "are likely to stay on the host, with 1.9 GB of GPU memory for each process"),
        (0.25, 4_000_000_000, "are likely to stay on the host, with 1.0 GB of GPU memory for each process"),
        (1, None, "lie on the GPU if they fit beside the model, else on the host"),
    ],
)
def test_a_plan_says_where_images_lie(prepared: Prepared, share: float, memory_bytes: int | None, where: str) -> None:
    """Half of the memory is left to a model that nobody has measured yet."""
    shared = replace(prepared, plan=replace(prepared.plan, gpus_per_worker=share))
    said = where_images_lie(shared, 1_000_000_000, memory_bytes=memory_bytes)
    assert said == f"1.0 GB of training images {where}"


@pytest.mark.parametrize(("wish", "place"), [("device", "GPU"), ("host", "host")])
def test_who_names_the_place_is_not_told_another(prepared: Prepared, wish: str, place: str) -> None:
    asked = replace(prepared, spec=prepared.spec.with_settings({"training.images_on": wish}))
    said = where_images_lie(asked, 1_000_000_000, memory_bytes=1_000)
    assert said == f"1.0 GB of training images lie on the {place}, as asked"
