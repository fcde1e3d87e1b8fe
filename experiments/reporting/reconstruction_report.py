"""What a finished reconstruction's report shows: images and what the network makes of them, what it has learned to see,
and of a variational autoencoder samples."""

import pathlib
from typing import Any

import jax
import numpy as np
from PIL import Image

from experiments.cli.config import ReconstructConfig
from experiments.reporting import figures as draw
from experiments.reporting import run_page
from experiments.reporting.figures_rows import Row, image_rows
from experiments.setup import prediction
from experiments.setup.experiment import Experiment
from experiments.setup.reconstruction import noise
from models import summary as layer_summary
from models.layers import row_keys
from train.tasks import reconstruction

HEADLINE = (
    *("test_loss", "test_psnr", "loss", "squared_error", "psnr", "active", "reconstruction", "kl"),
    *("examples", "step", "seconds"),
)
SKIP = ("seconds", "images_per_second")
SHOWN = 20  # Images in the report.
FILTERS = 64  # Filters or parts.
SAMPLE = 1000  # Images by which the parts are ordered.
SIDE = 12  # Of the picture of two latent variables, in images.
SEED = 1  # Of the samples.
LOSSES = {
    "autoencoder": "half the squared error of an image, summed over its pixels",
    "denoising": "half the squared error of an image reconstructed from a masked one, summed over its pixels",
    "sparse": "half the squared error of an image, summed over its pixels, and the penalty on its code",
    "variational": "the negative ELBO in nats per image",
}
CAPTIONS = {
    "squared_error": "by pixel, the mean over images; pixels lie in 0 .. 1",
    "psnr": "in dB, the mean over images",
    "active": "the share of the code's units that are not zero",
    "reconstruction": "-log p(x | z) in nats per image",
    "kl": "KL(q(z | x) || p(z)) in nats per image",
}


def manifold(side: int) -> np.ndarray:
    """Latent vectors [side * side, 2] at equally spaced quantiles of N(0, 1), the first from left to right and the
    second from bottom to top (Kingma & Welling 2013, appendix A)."""
    from scipy.special import ndtri

    places = ndtri((np.arange(side) + 0.5) / side)
    return np.array([(x, y) for y in places[::-1] for x in places], np.float32)


def to_bytes(images) -> np.ndarray:
    """Images with pixels in 0 .. 1 as uint8; what is beyond is cut off."""
    return np.round(255 * np.clip(np.asarray(images), 0, 1)).astype(np.uint8)


def reconstructed(config: ReconstructConfig, experiment: Experiment, state, images: np.ndarray, split: str):
    """Images uint8 [N, H, W, C] of a split, evenly spaced, in the place of which the network may have seen others, and
    its reconstructions."""
    places = np.linspace(0, len(images) - 1, min(SHOWN, len(images))).astype(np.int32)
    shown = seen = images[places]
    rows = [Row(f"{len(places)} of {len(images):,} {split} images", shown)]
    if random := noise(config):
        seen = np.asarray(jax.jit(random)(shown, row_keys(jax.random.key(reconstruction.EVAL_SEED), places)))
        masked = f"{100 * config.noise:g} % of the pixels masked"
        rows.append(
            Row(masked if config.model == "denoising" else "made binary at random, as the network sees them", seen)
        )
    rows.append(Row("reconstructions", to_bytes(prediction.reconstructions(experiment.task, state, seen))))
    return image_rows("Reconstructions", rows)


def features(config: ReconstructConfig, experiment: Experiment, state, images: np.ndarray):
    """(title, caption, weights [N, H, W, C]) of the first layer's filters with the largest weights, or of the parts of
    a sparse code's units that are active most often."""
    model, params = experiment.model, state.params
    if config.model == "sparse":
        codes = jax.jit(lambda x: model.apply({"params": params}, reconstruction.pixels(x), method="encode"))
        weights = np.asarray(model.apply({"params": params}, method="parts"))
        strength, title = np.asarray(codes(images[:SAMPLE]) > 0).mean(0), "Parts"
        caption = "what a unit of the code adds to an image, of those that are active most often"
    else:
        weights = np.asarray(params["encoder_0"]["kernel"]).T
        strength, title = np.linalg.norm(weights, axis=1), "Layer-1 filters"
        caption = "the largest weights of the first layer"
    order = np.argsort(-strength, kind="stable")[:FILTERS]
    return title, f"{caption}, each scaled by its own largest", weights[order].reshape(-1, *experiment.input_shape)


def drawn(experiment: Experiment, state) -> list:
    """The figures of what a variational autoencoder draws, as run_page.write_page takes them."""
    model: Any = experiment.model

    @jax.jit
    def decode(z):
        return jax.nn.sigmoid(model.apply({"params": state.params}, z, method="decode"))

    found = []
    if model.code == 2:
        title, caption = "Two latent variables", "one from left to right, the other from bottom to top"
        grid = draw.image_grid(decode(manifold(SIDE)), title=title, columns=SIDE, normalize=False)
        found.append(("manifold", title, caption, grid))
    z = jax.random.normal(jax.random.key(SEED), (64, model.code))
    grid = draw.image_grid(decode(z), title="Samples", columns=8, normalize=False)
    return [*found, ("samples", "Samples", "not picked: the pixels' probabilities for random latent vectors", grid)]


def write_report(workdir, config, experiment, *, test, result, summary, command: str) -> None:
    """The page of a run of reconstruct."""
    images, state = test[0], result.state
    title, caption, weights = features(config, experiment, state, images)
    shown = reconstructed(config, experiment, state, images, summary["split"])
    figures = (
        ("reconstructions", "Reconstructions", "images, evenly spaced, and what comes out of the network", shown),
        *(drawn(experiment, state) if config.model == "variational" else ()),
        ("layer1", title, caption, draw.image_grid(weights, title=title, columns=8, signed=True)),
    )
    run_page.write_page(
        workdir,
        layers=layer_summary.layers(experiment.model, experiment.input_shape),
        figures=figures,
        tables=[],
        headline=HEADLINE,
        skip=SKIP,
        summary=summary,
        command=command,
        captions=CAPTIONS | {"loss": f"{LOSSES[config.model]}: training, the mean since the row before"},
    )


def write_images(place: pathlib.Path, files: list[str], made: np.ndarray) -> list[tuple[str, str]]:
    """(file, PNG file of its reconstruction) of each image file."""
    rows = [(file, place / f"{name}.png") for file, name in zip(files, run_page.stems(files), strict=True)]
    for (_, path), pixels in zip(rows, to_bytes(made), strict=True):
        run_page.write_png(path, Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))
    return [(file, str(path)) for file, path in rows]


def score_table(sums, class_names) -> tuple[str, list[str], list[list[str]]]:
    """The means of an evaluation."""
    del class_names
    means = reconstruction.compute_metrics(sums)
    return "Scores", ["score", "mean"], [[name, f"{value:.4g}"] for name, value in means.items()]
