"""Options that say how trained models are judged, and what they are sampled from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from raygen import protocol

_JUDGING = "Judging and sampling"

Metrics = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,...", help="Such as frechet,ssim.", show_default="all that suit", rich_help_panel=_JUDGING
    ),
]
RankingMetrics = Annotated[
    str, typer.Option("--metrics", metavar="NAME,...", help="The first decides.", rich_help_panel=_JUDGING)
]
Network = Annotated[
    protocol.Network,
    typer.Option("--network", help="Whose features samples are compared by.", rich_help_panel=_JUDGING),
]
JudgedImages = Annotated[
    int | None,
    typer.Option(
        "--images", help="Images to judge on, at most.", show_default="all of --split", rich_help_panel=_JUDGING
    ),
]
JudgedSplit = Annotated[
    Literal["validation", "test"],
    typer.Option(
        "--split",
        help="validation: images that chose epochs and trials; test: those that chose nothing.",
        rich_help_panel=_JUDGING,
    ),
]
JudgedSamples = Annotated[
    int | None,
    typer.Option(
        "--samples",
        help="Samples to compare with images.",
        show_default="as many as images",
        rich_help_panel=_JUDGING,
    ),
]
Reference = Annotated[
    Literal["train", "validation", "test"] | None,
    typer.Option(
        "--reference",
        help="Compare samples with all images of this part.",
        show_default="the --images of --split",
        rich_help_panel=_JUDGING,
    ),
]
JudgingSeed = Annotated[
    int, typer.Option("--seed", min=0, help="Of the samples and latents drawn.", rich_help_panel=_JUDGING)
]
FidWeights = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Weights of the inception network.", rich_help_panel=_JUDGING)
]
Prior = Annotated[
    protocol.FittedPrior | None,
    typer.Option(
        "--prior", help="gmm: a Gaussian mixture over the latents of training images.", rich_help_panel=_JUDGING
    ),
]
Components = Annotated[
    int | None,
    typer.Option(min=1, help="Of --prior gmm.", show_default=str(protocol.COMPONENTS), rich_help_panel=_JUDGING),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAME",
        help="What models run on: auto (a GPU if there is one), cpu, cuda or cuda:1.",
        rich_help_panel=_JUDGING,
    ),
]
