"""Looking closely at a trained model: `raygen sample`, `reconstruct`, `encode`, `score` and others like them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli import console, judging_options, options
from raygen import files
from raygen.api import looking
from raygen.api.loading import load, select_images

if TYPE_CHECKING:
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
    count: Samples = looking.SAMPLES,
    output: ImageOutput = Path("samples.png"),
    seed: Seed = 0,
    prior: judging_options.Prior = None,
    components: judging_options.Components = None,
    device: judging_options.Device = "auto",
    storage: options.Storage = None,
) -> None:
    """Draw images from a model's prior, or from a mixture fitted over its latents, as a grid, an array or files.

    An array and a folder are read by `--data`.
    """
    from raygen import image_files

    image_files.check(output, count)
    trained = load(model, prior=prior, components=components, device=device, storage=storage)
    image_files.write(output, trained.samples(count, seed=seed), (count, *trained.model.shape))
    source = f" (prior: {trained.prior.name})" if trained.fitted and trained.prior else ""
    console.say(f"{count} samples of {_about(trained)}{source} in {output}")


def reconstruct(
    model: options.ModelPlace,
    count: Images = looking.RECONSTRUCTIONS,
    columns: Columns = 16,
    output: Picture = Path("reconstructions.png"),
    data: options.OtherData = None,
    data_root: options.DataRoot = None,
    image_size: options.ImageSize = None,
    device: judging_options.Device = "auto",
    storage: options.Storage = None,
) -> None:
    """Draw validation images above what the model makes of them, as one PNG."""
    files.check_writable(output)
    trained = load(model, device=device, storage=storage)
    from raygen import pictures

    images, rebuilt, name = looking.reconstruct(trained, count, data=data, data_root=data_root, image_size=image_size)
    pictures.save(pictures.pairs(images, rebuilt, min(columns, len(images))), output)
    console.say(f"{len(images)} validation images of {name} above reconstructions by {_about(trained)} in {output}")


def restore(
    model: options.ModelPlace,
    data: Damaged,
    output: RestoredFolder,
    clean: Clean = None,
    device: judging_options.Device = "auto",
    storage: options.Storage = None,
) -> None:
    """Write what a model trained with data.corruption makes of damaged images, as PNG files of the same names."""
    files.check_folder_writable(output)
    trained = load(model, device=device, storage=storage)
    restored = looking.restore(trained, data, clean=clean)
    restored.write(output)
    for each in restored.qualities:
        console.show(f"{each.name:10} PSNR {each.psnr_db:.2f} dB  SSIM {each.ssim:.3f}")
    console.say(f"{len(restored.names)} images restored by {_about(trained)} in {output}")


def interpolate(
    model: options.ModelPlace,
    steps: Steps = looking.STEPS,
    rows: Rows = looking.ROWS,
    output: Picture = Path("interpolation.png"),
    seed: Seed = 0,
    device: judging_options.Device = "auto",
    storage: options.Storage = None,
) -> None:
    """Draw rows that lead from sample to sample, or from image to image for a model without a prior, as one PNG."""
    files.check_writable(output)
    trained = load(model, device=device, storage=storage)
    from raygen import pictures

    images = looking.interpolate(trained, rows=rows, steps=steps, seed=seed)
    pictures.save(pictures.grid(images.flatten(0, 1), columns=steps), output)
    ends = "samples, on great circles" if trained.prior else "encodings of validation images, in straight lines"
    console.say(f"{rows} rows between {ends}, of {_about(trained)} in {output}")


def encode(
    model: options.ModelPlace,
    output: Latents = Path("latents.npz"),
    split: SplitOption = None,
    data: options.OtherData = None,
    data_root: options.DataRoot = None,
    image_size: options.ImageSize = None,
    device: judging_options.Device = "auto",
    storage: options.Storage = None,
) -> None:
    """Write the latents of images, with their labels where there are any, as NPZ, and say what decoding them loses."""
    files.check_writable(output)
    trained = load(model, device=device, storage=storage)
    from raygen import latents

    encoded = looking.encode(trained, split=split, data=data, data_root=data_root, image_size=image_size)
    encoded.save(output)
    shape, chosen = list(encoded.values.shape), encoded.chosen
    console.say(f"latents {shape} of {chosen.source} by {_about(trained)} in {output}; {latents.ORDER}")
    console.say(_about_sizes(latents.sizes(trained, len(chosen.images))))
    found = latents.round_trip(trained, chosen)
    console.say(
        f"decoded again: PSNR {found.psnr_db:.2f} dB, SSIM {found.ssim:.3f}, means over {found.images} of the images"
    )


def decode(
    model: options.ModelPlace,
    source: LatentFile,
    output: ImageOutput = Path("images.npz"),
    device: judging_options.Device = "auto",
    storage: options.Storage = None,
) -> None:
    """Turn the latents that `raygen encode` wrote into images again, as an array, files or a grid.

    An array keeps the labels; it and a folder are read by `--data`.
    """
    from raygen import image_files, latents

    image_files.check(output, 0)
    trained = load(model, device=device, storage=storage)
    encoded = latents.read(trained, source)
    count, images = len(encoded.values), latents.decode(trained, encoded.values)
    shape = (count, *trained.model.shape)
    image_files.write(output, images, shape, labels=encoded.labels, names=encoded.names)
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
    device: judging_options.Device = "auto",
    storage: options.Storage = None,
) -> None:
    """Draw the latents of images in the plane, coloured by class where there are labels, as one PNG."""
    files.check_writable(output)
    trained = load(model, device=device, storage=storage)
    from raygen import inspection, latent_map

    latent_map.check(trained, method, decoded=decoded)
    chosen = select_images(trained, split, data=data, data_root=data_root, image_size=image_size)
    drawn = inspection.some(chosen, images)
    plane = latent_map.project(inspection.encode(trained, drawn.images), method)
    sheet = latent_map.decode(trained, plane) if decoded else None
    title = f"latents of {len(drawn.images)} images of {drawn.source}"
    latent_map.save(plane, drawn.images, drawn.labels, sheet, title, output)
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
    device: judging_options.Device = "auto",
    storage: options.Storage = None,
) -> None:
    """Write how strange each image is to the model, as CSV: its negative ELBO, or its reconstruction error."""
    for path in (output, picture) if picture else (output,):
        files.check_writable(path)
    trained = load(model, device=device, storage=storage)
    from raygen import anomaly, pictures

    scores = looking.score(
        trained,
        split=split,
        data=data,
        data_root=data_root,
        image_size=image_size,
        false_alarms=false_alarms,
        seed=seed,
    )
    scores.save(output)
    count, chosen, limit = len(scores.values), scores.chosen, scores.threshold
    console.say(f"{scores.name} of {count} images of {chosen.source} by {_about(trained)} in {output}")
    if limit is not None:
        beyond = int(scores.beyond_threshold.sum())
        console.say(
            f"threshold {limit.value:.5g}, beyond which {false_alarms:.3g} of normal images are expected at most, "
            f"from {limit.images} validation images: {beyond} of these {count} are beyond it"
        )
    if picture is not None:
        rows = anomaly.worst(scores.values)
        pictures.save(anomaly.picture(trained, chosen.images[rows]), picture)
        console.say(f"the worst {len(rows)} in {picture}, from the left {anomaly.told(chosen.rows(rows))}")


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
