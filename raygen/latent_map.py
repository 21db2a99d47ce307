"""Latents drawn in the plane: as they are if they are two, else by PCA or t-SNE; and the plane decoded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raygen import pictures, plotting
from raygen.errors import DataError, RunError, SpecError
from raygen.inspection import require_encoder
from raygen.results import TrainedModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Method = Literal["pca", "tsne"]

LEAST_IMAGES = 5
TSNE_SEED = 0
TSNE_PERPLEXITY = 30.0
TILES = 16
"""Decoded images along each side of the plane."""

MARGIN = 0.04
"""Of the axes beyond the outermost latents, as a part of their range."""

PANEL_INCHES = (7.0, 7.0)
MOST_NAMED_CLASSES = 20
LINE_COLOUR = "#868e96"

THUMBNAIL_POINTS = 20.0
"""The longer side of an image on top of its point, in points of 1/72 inch."""

THUMBNAIL_DISTANCE = 0.09
"""Between the middles of two of them, at least, as a part of an axis."""


@dataclass(frozen=True, kw_only=True)
class Plane:
    """Points [N, 2] for latents [N, D], the names of the two axes, and in a few words where they come from."""

    points: NDArray[np.float64]
    axes: tuple[str, str]
    origin: str

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top of what is drawn."""
        low, high = self.points.min(axis=0), self.points.max(axis=0)
        margin = MARGIN * np.where(high > low, high - low, 1)
        (left, bottom), (right, top) = (low - margin).tolist(), (high + margin).tolist()
        return left, right, bottom, top


def check(trained: TrainedModel, method: Method | None, *, decoded: bool) -> None:
    """Raise RunError for a model that has no latents to draw, SpecError if its plane cannot be decoded."""
    require_encoder(trained)
    latent_dim = trained.model.latent_dim
    if latent_dim == 1:
        raise RunError("a model of one latent has no plane to draw: train one with --latent-dim 2")
    if decoded and latent_dim != 2:
        raise SpecError(f"--decoded is for a model of two latents, not {latent_dim}: train one with --latent-dim 2")
    if decoded and method is not None:
        raise SpecError("--decoded draws the two latents as they are: leave out --method")


def project(latents: Tensor, method: Method | None) -> Plane:
    """The plane of latents [N, D]: without a method two as they are, more by PCA.

    t-SNE is that of van der Maaten & Hinton 2008, "Visualizing data using t-SNE", begun from PCA, with a perplexity of
    30 or, for fewer than 91 images, a third of the others. Raises DataError for fewer than five images, RunError for
    latents that are not finite or all the same.
    """
    values = latents.double().numpy()
    if len(values) < LEAST_IMAGES:
        raise DataError(f"a map takes {LEAST_IMAGES} images or more, not {len(values)}: add --split all")
    if not np.isfinite(values).all():
        raise RunError("latents that are not finite cannot be drawn: train with a lower --lr")
    if (values == values[0]).all():
        raise RunError("all images have the same latents, so there is nothing to draw: train for more --epochs")
    if method is None and values.shape[1] == 2:
        return Plane(points=values, axes=("latent 0", "latent 1"), origin="the two latents as they are")
    return _by_tsne(values) if method == "tsne" else _by_pca(values)


def _by_pca(values: NDArray[np.float64]) -> Plane:
    from sklearn.decomposition import PCA

    found = PCA(n_components=2, svd_solver="full").fit(values)
    first, second = (float(part) for part in found.explained_variance_ratio_)
    return Plane(
        points=found.transform(values),
        axes=(
            f"first principal component, {first:.0%} of the variance",
            f"second principal component, {second:.0%} of the variance",
        ),
        origin=f"PCA, with {first + second:.0%} of the variance",
    )


def _by_tsne(values: NDArray[np.float64]) -> Plane:
    from sklearn.manifold import TSNE

    perplexity = min(TSNE_PERPLEXITY, (len(values) - 1) / 3)
    found = TSNE(n_components=2, perplexity=perplexity, init="pca", random_state=TSNE_SEED).fit_transform(values)
    return Plane(
        points=found.astype(np.float64),
        axes=("t-SNE, first dimension", "t-SNE, second dimension"),
        origin=f"t-SNE, perplexity {perplexity:.3g}",
    )


def decode(trained: TrainedModel, plane: Plane) -> NDArray[np.uint8]:
    """The images [16 · H, 16 · W, C] that the plane of a model of two latents decodes to, each at its middle's place.

    The second latent grows upwards, the first to the right.
    """
    left, right, bottom, top = plane.bounds
    middles = (torch.arange(TILES, dtype=torch.float64) + 0.5) / TILES
    rows, columns = torch.meshgrid(top - (top - bottom) * middles, left + (right - left) * middles, indexing="ij")
    latents = torch.stack([columns, rows], dim=-1).flatten(0, 1).float()
    decoder = require_encoder(trained)
    with trained.at_work():
        tiles = pictures.in_bytes(decoder.decode(latents.to(trained.device)).cpu()).unflatten(0, (TILES, TILES))
    sheet: NDArray[np.uint8] = tiles.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).numpy()
    return sheet


def save(
    plane: Plane,
    images: Tensor,
    labels: Tensor | None,
    sheet: NDArray[np.uint8] | None,
    title: str,
    path: Path,
) -> None:
    """Write the points as a PNG, coloured by the classes [N] if there are labels, beside them the decoded plane.

    Some of the images, uint8 [N, C, H, W], lie on top of their points, apart from each other. Raises RunError if no
    file can be written.
    """
    figure, axes = plotting.panels(1 if sheet is None else 2, PANEL_INCHES)
    figure.suptitle(plotting.plain(title))
    left, right, bottom, top = plane.bounds
    _draw_points(axes[0], plane, labels)
    _draw_thumbnails(axes[0], plane, images)
    if sheet is not None:
        grey = sheet[..., 0] if sheet.shape[2] == 1 else sheet
        axes[1].imshow(grey, extent=plane.bounds, aspect="auto", cmap="gray", vmin=0, vmax=255)
        axes[1].vlines(np.linspace(left, right, TILES + 1), bottom, top, color=LINE_COLOUR, linewidth=1)
        axes[1].hlines(np.linspace(bottom, top, TILES + 1), left, right, color=LINE_COLOUR, linewidth=1)
        axes[1].set_title("decoded", fontsize=10)
    for each in axes:
        each.set(xlim=(left, right), ylim=(bottom, top), xlabel=plane.axes[0], ylabel=plane.axes[1])
    plotting.save(figure, path)


def _draw_points(axes: Axes, plane: Plane, labels: Tensor | None) -> None:
    """A dot for each image; up to twenty classes have a legend, more a scale."""
    from matplotlib import colormaps

    x, y = plane.points.T
    classes = [] if labels is None else labels.unique().tolist()
    if labels is None:
        axes.scatter(x, y, s=9, alpha=0.7)
    elif len(classes) > MOST_NAMED_CLASSES:
        drawn = axes.scatter(x, y, c=labels.numpy(), s=9, alpha=0.7, cmap="turbo")
        axes.figure.colorbar(drawn, ax=axes, label="class")
    else:
        colours = colormaps["tab10" if len(classes) <= 10 else "tab20"]
        for place, label in enumerate(classes):
            is_here = (labels == label).numpy()
            axes.scatter(x[is_here], y[is_here], s=9, alpha=0.7, color=colours(place), label=str(label))
        axes.legend(title="class", fontsize=8, markerscale=2, framealpha=0.6)


def _draw_thumbnails(axes: Axes, plane: Plane, images: Tensor) -> None:
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    zoom = THUMBNAIL_POINTS / max(images.shape[2:])
    for row in apart(plane):
        pixels = images[row].permute(1, 2, 0).expand(-1, -1, 3).numpy()
        thumbnail = OffsetImage(pixels, zoom=zoom)
        place = tuple(plane.points[row].tolist())
        axes.add_artist(AnnotationBbox(thumbnail, place, pad=0.1, bboxprops={"edgecolor": LINE_COLOUR}))


def apart(plane: Plane) -> list[int]:
    """The first rows of points [N, 2] that lie so far from all taken before that their thumbnails do not touch."""
    left, right, bottom, top = plane.bounds
    places = plane.points / (right - left, top - bottom)
    taken: list[int] = []
    for row, place in enumerate(places):
        if (np.abs(places[taken] - place).max(axis=1) >= THUMBNAIL_DISTANCE).all():
            taken.append(row)
    return taken
