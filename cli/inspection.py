"""Looking closely at a trained model: `raygen sample`, `reconstruct`, `encode`, `score` and others like them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli import console, options
from raygen import api, files
from raygen.errors import SpecError

if TYPE_CHECKING:
    from raygen.inspection import Selection
    from raygen.latents import Sizes
    from raygen.results import TrainedModel

Picture = Annotated[Path, typer.Option("--output", "-o", help="PNG file to write.")]
LatentFile = Annotated[
    Path, typer.Argument(metavar="LATENTS", help="NPZ file that `raygen encode` has written.", show_default=False)
]
Latents = Annotated[Path, typer.Option("--output", "-o", help="NPZ file to write.")]
Scores = Annotated[Path, typer.Option("--output", "-o", help="CSV file to write.")]
ImageOutput = Annotated[
    Path,
    typer.Option("--output", "-o", help="PNG file: one grid; NPZ file: uint8 [N, C, H, W]; folder: PNG files."),
]
Damaged = Annotated[Path, typer.Option("--data", metavar="FOLDER", help="Damaged images.", show_default=False)]
RestoredFolder = Annotated[
    Path, typer.Option("--output", "-o", metavar="FOLDER", help="A new or empty folder for the restored images.")
]
Clean = Annotated[
    Path | None,
    typer.Option("--clean", metavar="FOLDER", help="Their originals, to tell the PSNR and SSIM of the restored."),
]
FalseAlarms = Annotated[
    float | None,
    typer.Option(
        metavar="PART",
        help="Also tell which images lie beyond a threshold that this part of normal validation images exceeds.",
    ),
]
WorstPicture = Annotated[
    Path | None,
    typer.Option("--picture", metavar="PNG", help="Draw the worst, their reconstructions and where these err."),
]
Samples = Annotated[int, typer.Option("--n", "-n", min=1, max=1_000_000, help="Images to draw.")]
Images = Annotated[int, typer.Option("--n", "-n", min=1, max=10_000, help="Validation images, the first ones.")]
Method = Annotated[
    Literal["pca", "tsne"] | None,
    typer.Option("--method", help="How latents come into the plane.", show_default="two as they are, more by pca"),
]
MappedImages = Annotated[int, typer.Option("--images", min=5, help="Images to draw, at most.")]
Decoded = Annotated[bool, typer.Option("--decoded", help="Also draw what the plane of two latents decodes to.")]
Columns = Annotated[int, typer.Option(min=1, max=1000, help="Pairs side by side.")]
Steps = Annotated[int, typer.Option(min=2, max=1000, help="Images of a row, its two ends included.")]
Rows = Annotated[int, typer.Option(min=1, max=1000, help="Pairs of ends.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of the latents.")]
SplitOption = Annotated[
    Literal["train", "validation", "test", "all"] | None,
    typer.Option("--split", help="Which images.", show_default="validation; all of --data"),
]


def sample(
    model: options.ModelPlace,
    count: Samples = 64,
    output: ImageOutput = Path("samples.png"),
    seed: Seed = 0,
    prior: options.Prior = None,
    components: options.Components = None,
    storage: options.Storage = None,
) -> None:
    """Draw images from a model's prior, or from a mixture fitted over its latents, as a grid, an array or files.

    An array and a folder are read by `--data`.
    """
    from raygen import image_files, results

    image_files.check(output, count)
    trained = with_prior(api.load(model, storage=storage), prior, components)
    image_files.write(output, results.samples(trained, count, seed), (count, *trained.model.shape))
    source = f" (prior: {trained.prior.name})" if trained.fitted and trained.prior else ""
    console.say(f"{count} samples of {_about(trained)}{source} in {output}")


def reconstruct(
    model: options.ModelPlace,
    count: Images = 32,
    columns: Columns = 16,
    output: Picture = Path("reconstructions.png"),
    data: options.OtherData = None,
    data_root: options.DataRoot = None,
    image_size: options.ImageSize = None,
    storage: options.Storage = None,
) -> None:
    """Draw validation images above what the model makes of them, as one PNG."""
    files.check_writable(output)
    trained = api.load(model, storage=storage)
    from raygen import inspection, pictures

    inspection.require_encoder(trained)
    dataset = api.load_images(trained, source=data, root=data_root, image_size=image_size)
    images, rebuilt = inspection.reconstruct(trained, dataset.validation.images[:count])
    pictures.save(pictures.pairs(images, rebuilt, min(columns, len(images))), output)
    console.say(
        f"{len(images)} validation images of {dataset.name} above reconstructions by {_about(trained)} in {output}"
    )


def restore(
    model: options.ModelPlace,
    data: Damaged,
    output: RestoredFolder,
    clean: Clean = None,
    storage: options.Storage = None,
) -> None:
    """Write what a model trained with data.corruption makes of damaged images, as PNG files of the same names."""
    files.check_folder_writable(output)
    trained = api.load(model, storage=storage)
    from raygen import restoration

    restoration.check(trained)
    names, damaged = restoration.read(trained, data)
    originals = None if clean is None else restoration.read_clean(trained, clean, names)
    restored = restoration.restore(trained, damaged)
    restoration.write(output, names, restored)
    if originals is not None:
        for each in restoration.compare(trained.spec.data, originals, damaged, restored):
            console.show(f"{each.name:10} PSNR {each.psnr_db:.2f} dB  SSIM {each.ssim:.3f}")
    console.say(f"{len(names)} images restored by {_about(trained)} in {output}")


def interpolate(
    model: options.ModelPlace,
    steps: Steps = 10,
    rows: Rows = 8,
    output: Picture = Path("interpolation.png"),
    seed: Seed = 0,
    storage: options.Storage = None,
) -> None:
    """Draw rows that lead from sample to sample, or from image to image for a model without a prior, as one PNG."""
    files.check_writable(output)
    trained = api.load(model, storage=storage)
    from raygen import inspection, pictures

    between = api.load_images(trained).validation.images if trained.prior is None else None
    images = inspection.interpolate(trained, between, steps, rows, seed)
    pictures.save(pictures.grid(images, columns=steps), output)
    ends = "samples, on great circles" if between is None else "encodings of validation images, in straight lines"
    console.say(f"{rows} rows between {ends}, of {_about(trained)} in {output}")


def encode(
    model: options.ModelPlace,
    output: Latents = Path("latents.npz"),
    split: SplitOption = None,
    data: options.OtherData = None,
    data_root: options.DataRoot = None,
    image_size: options.ImageSize = None,
    storage: options.Storage = None,
) -> None:
    """Write the latents of images, with their labels where there are any, as NPZ, and say what decoding them loses."""
    files.check_writable(output)
    trained = api.load(model, storage=storage)
    from raygen import inspection, latents

    inspection.require_encoder(trained)
    name, chosen = _chosen(trained, split, data, data_root, image_size)
    latents.save(trained, chosen, output)
    shape = [len(chosen.images), trained.model.latent_dim]
    console.say(f"latents {shape} of {name} by {_about(trained)} in {output}; {latents.ORDER}")
    console.say(_about_sizes(latents.sizes(trained, len(chosen.images))))
    found = latents.round_trip(trained, chosen)
    console.say(
        f"decoded again: PSNR {found.psnr_db:.2f} dB, SSIM {found.ssim:.3f}, means over {found.images} of the images"
    )


def decode(
    model: options.ModelPlace,
    source: LatentFile,
    output: ImageOutput = Path("images.npz"),
    storage: options.Storage = None,
) -> None:
    """Turn the latents that `raygen encode` wrote into images again, as an array, files or a grid.

    An array keeps the labels; it and a folder are read by `--data`.
    """
    from raygen import image_files, latents

    image_files.check(output, 0)
    trained = api.load(model, storage=storage)
    count = latents.decode(trained, source, output)
    console.say(f"{count} images decoded by {_about(trained)} in {output}")
    console.say(_about_sizes(latents.sizes(trained, count)))


def draw_map(
    model: options.ModelPlace,
    output: Picture = Path("map.png"),
    split: SplitOption = None,
    images: MappedImages = 2000,
    method: Method = None,
    decoded: Decoded = False,
    data: options.OtherData = None,
    data_root: options.DataRoot = None,
    image_size: options.ImageSize = None,
    storage: options.Storage = None,
) -> None:
    """Draw the latents of images in the plane, coloured by class where there are labels, as one PNG."""
    files.check_writable(output)
    trained = api.load(model, storage=storage)
    from raygen import inspection, latent_map

    latent_map.check(trained, method, decoded=decoded)
    name, chosen = _chosen(trained, split, data, data_root, image_size)
    drawn = inspection.some(chosen, images)
    plane = latent_map.project(inspection.encode(trained, drawn.images), method)
    sheet = latent_map.decode(trained, plane) if decoded else None
    title = f"latents of {len(drawn.images)} images of {name}"
    latent_map.save(plane, drawn.labels, sheet, title, output)
    console.say(f"{title} by {_about(trained)} in {output}: {plane.origin}")


def score(
    model: options.ModelPlace,
    output: Scores = Path("scores.csv"),
    split: SplitOption = None,
    false_alarms: FalseAlarms = None,
    picture: WorstPicture = None,
    seed: Seed = 0,
    data: options.OtherData = None,
    data_root: options.DataRoot = None,
    image_size: options.ImageSize = None,
    storage: options.Storage = None,
) -> None:
    """Write how strange each image is to the model, as CSV: its negative ELBO, or its reconstruction error."""
    for path in (output, picture) if picture else (output,):
        files.check_writable(path)
    trained = api.load(model, storage=storage)
    from raygen import anomaly, inspection, pictures

    inspection.require_encoder(trained)
    source, chosen = _chosen(trained, split, data, data_root, image_size)
    name, scores = inspection.score(trained, chosen.images, seed)
    limit = None
    if false_alarms is not None:
        limit = anomaly.calibrate(trained, api.load_images(trained, root=data_root), false_alarms, seed)
    anomaly.save(chosen, name, scores, limit, output)
    console.say(f"{name} of {len(scores)} images of {source} by {_about(trained)} in {output}")
    if limit is not None:
        beyond = int(limit.is_exceeded(scores).sum())
        console.say(
            f"threshold {limit.value:.5g}, beyond which {false_alarms:.3g} of normal images are expected at most, "
            f"from {limit.images} validation images: {beyond} of these {len(scores)} are beyond it"
        )
    if picture is not None:
        rows = anomaly.worst(scores)
        pictures.save(anomaly.picture(trained, chosen.images[rows]), picture)
        console.say(f"the worst {len(rows)} in {picture}, from the left {anomaly.told(chosen.rows(rows))}")


def _chosen(
    trained: TrainedModel,
    split: Literal["train", "validation", "test", "all"] | None,
    data: str | None,
    data_root: Path | None,
    image_size: int | None,
) -> tuple[str, Selection]:
    """The name of the data set, and its images in `split`: the validation images unless another set was named."""
    from raygen import inspection, results

    dataset = api.load_images(trained, source=data, root=data_root, image_size=image_size, all_classes=True)
    if split == "test":
        results.held_out_part(trained, dataset, split)
    return dataset.name, inspection.select(dataset, split or ("all" if data else "validation"))


def with_prior(trained: TrainedModel, prior: Literal["gmm"] | None, components: int | None) -> TrainedModel:
    """The model with the prior that the options ask for; raises SpecError for components without a mixture."""
    if prior is None:
        if components is not None:
            raise SpecError("--components is for a mixture: add --prior gmm")
        return trained
    from raygen import inspection
    from raygen import prior as priors

    inspection.require_encoder(trained, "leave out --prior gmm")
    return priors.with_mixture(trained, api.load_images(trained), components or priors.COMPONENTS)


def _about_sizes(sizes: Sizes) -> str:
    """The bytes of images and of their latents, and their ratio."""
    return (
        f"{sizes.pixel_bytes:,} bytes of pixels in 8 bits, {sizes.latent_bytes:,} bytes of latents in float32: "
        f"compression ratio {sizes.ratio:.3g}"
    )


def _about(trained: TrainedModel) -> str:
    """The model in a few words: its trial and value where it comes from a run, else its family."""
    if not trained.metrics:
        return f"this {trained.spec.model.name}"
    return "trial {trial} ({objective} {value:.5g})".format(**trained.metrics)
