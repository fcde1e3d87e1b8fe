"""Sample images of a GAN: during a run, in its report, and as files."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from experiments.cli.config import GenerateConfig
from experiments.reporting import figures as draw
from experiments.reporting import run_page
from experiments.setup.experiment import Experiment
from experiments.setup.generation import latents
from models import summary as layer_summary
from train.parallel import data_parallel, processes
from train.state import State
from train.tasks import gan

HEADLINE = (
    "test_classifier_fid",
    "classifier_fid",
    "floor",
    "ceiling",
    "coverage_min",
    "coverage_max",
    "memorisation",
    "step",
    "seconds",
)
CONSTANT = ("eval_floor", "eval_ceiling", "eval_samples")
# "loss" is the sum of the losses of the generator and the discriminator, which says little.
SKIP = ("seconds", "images_per_second", "train_loss", "eval_loss", *CONSTANT)
CAPTIONS = {
    "classifier_fid": "Fréchet distance of samples to real images, in the feature space of a classifier; floor: "
    "distance of other real images, the best value that samples can be expected to reach; ceiling: of samples before "
    "training",
    "loss_discriminator": "cross-entropy of the discriminator; 2 ln 2 = 1.39 if it can't tell real from generated ones",
    "loss_generator": "cross-entropy of the discriminator's predictions for samples, as if they were real",
}
ROWS, COLUMNS = 8, 8  # The grid of samples; a conditional network has one column per class, up to MOST.
MOST = 12
STRIPS = 12  # Evaluations in the figure of samples over time.
SHOWN_SEED = 1  # Seed of the latent vectors that are sampled at each evaluation.


def latent_batch(count: int, seed: int, *, latents, classes: int) -> dict:
    """Inputs for `count` samples: latent vectors, and the classes in cyclic order."""
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(count))
    return {"latent": latents(keys), "label": jnp.arange(count) % classes}


def columns_of(classes: int, *, conditional: bool) -> int:
    return classes if conditional and classes <= MOST else COLUMNS


def samples(predict, state, batch, size: int = 250) -> np.ndarray:
    """Samples uint8 [N, H, W, C] for a batch of latent vectors and labels, computed on one device."""
    own, step = jax.device_get((gan.sampler(state), state.step))
    here = State({"generator": own["params"]}, {"generator": own["batch_stats"]}, {}, step, jax.random.key(0))
    make, count = _jitted(predict), len(batch["label"])
    size = min(size, count)
    parts = []
    for start in range(0, count, size):
        begin = min(start, count - size)  # The last part overlaps, so that all parts have the same size.
        part = {name: value[begin : begin + size] for name, value in batch.items()}
        parts.append(np.asarray(make(here, part))[start - begin :])
    return np.concatenate(parts)


@functools.cache
def _jitted(predict):
    return data_parallel.parallelize(predict, 1, donate=False)


def tiled(images: np.ndarray, columns: int) -> np.ndarray:
    """Tiles images [N, H, W, C] to uint8 [rows x H, columns x W, C]; unused cells of the last row are black."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    images = np.concatenate([images, np.zeros((rows * columns - count, height, width, channels), images.dtype)])
    images = images.reshape(rows, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    return images.reshape(rows * height, columns * width, channels)


class SampleWriter:
    """A task's `prepare_eval`: writes samples from the same latent vectors at each evaluation, as step_NNNNNNN.png."""

    def __init__(self, folder: pathlib.Path, config: GenerateConfig, experiment: Experiment):
        self._folder, self._predict = folder, experiment.task.predict_step
        classes = len(experiment.info.class_names)
        self._columns = columns_of(classes, conditional=config.conditional)
        self._batch = latent_batch(ROWS * self._columns, SHOWN_SEED, latents=latents(config), classes=classes)

    def __call__(self, state, stopped):
        del stopped
        images = samples(self._predict, state, self._batch)
        if processes.is_main():
            self._folder.mkdir(parents=True, exist_ok=True)
            grid = run_page.as_image(tiled(images, self._columns))
            run_page.write_png(self._folder / f"step_{int(state.step):07d}.png", grid)
        return state


def _is_grid(path: pathlib.Path, width: int) -> bool:
    """Whether the file is an undamaged sample grid of this run; other files are ignored."""
    if not path.stem.removeprefix("step_").isdecimal():
        return False
    try:
        with Image.open(path) as image:
            image.load()
            return image.width == width
    except (OSError, ValueError, SyntaxError):  # Pillow raises SyntaxError for a damaged PNG.
        return False


def strip(paths: list[pathlib.Path], height: int):
    """Plots the first row of each sample grid, over training time."""
    import matplotlib

    picked = [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, min(STRIPS, len(paths))).astype(int))]
    rows = [np.asarray(Image.open(path))[:height] for path in picked]
    with matplotlib.rc_context({**draw.STYLE, "axes.grid": False}):
        inches = 4.6 * height / rows[0].shape[1] + 0.06
        figure = draw.new_figure(height=0.5 + len(rows) * inches)
        for axes, row, path in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows, picked, strict=True):
            axes.imshow(row, "gray", vmin=0, vmax=255, aspect="auto", interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            axes.set_ylabel(f"{int(path.stem.removeprefix('step_')):,}", rotation=0, ha="right", va="center")
        figure.suptitle("Samples of the same latent vectors by step", x=0, ha="left", fontsize=12, weight="bold")
    return figure


def between(batch: dict, rows: int, columns: int) -> dict:
    """Linear interpolation between pairs of consecutive latent vectors of the batch: `columns` points for each of
    `rows` pairs. Row i gets the i-th class of the batch."""
    share = jnp.linspace(0, 1, columns)[None, :, None]
    ends = batch["latent"][: 2 * rows].reshape(rows, 2, 1, -1)
    line = (1 - share) * ends[:, 0] + share * ends[:, 1]
    return {"latent": line.reshape(rows * columns, -1), "label": jnp.repeat(batch["label"][:rows], columns)}


def share_table(sums, class_names) -> tuple[str, list[str], list[list[str]]]:
    """The table of the fraction of samples that the classifier assigns to each class."""
    shares = sums["draws"]["classes"].sum(0)
    shares = shares / shares.sum()
    return "Classes", ["class", "samples"], [[n, f"{100 * s:.1f} %"] for n, s in zip(class_names, shares, strict=True)]


def write_report(workdir, config, experiment, *, test, result, summary, command: str) -> None:
    """Writes the report of a GAN to the workdir."""
    del test
    classes, height = len(experiment.info.class_names), experiment.info.image_shape[0]
    columns = columns_of(classes, conditional=config.conditional)
    batch = latent_batch(ROWS * columns, SHOWN_SEED, latents=latents(config), classes=classes)
    predict = experiment.task.predict_step
    images = samples(predict, result.state, batch) / 255.0
    lines = samples(predict, result.state, between(batch, 4, 8)) / 255.0
    paths = [path for path in sorted((workdir / "samples").glob("step_*.png")) if _is_grid(path, columns * height)]
    figures = [
        (
            "samples",
            "Samples",
            "not selected: the first latent vectors of a fixed seed"
            + (", one column per class" if config.conditional else ""),
            draw.image_grid(images, title="Samples", columns=columns, normalize=False),
        ),
        (
            "interpolation",
            "Interpolation",
            "each row interpolates linearly between two latent vectors",
            draw.image_grid(lines, title="Interpolation between latent vectors", columns=8, normalize=False),
        ),
    ]
    if paths:
        figures.insert(
            1,
            (
                "samples_over_time",
                "Samples over time",
                "samples from the same latent vectors at each evaluation",
                strip(paths, height),
            ),
        )
    run_page.write_page(
        workdir,
        layers=layer_summary.layers(experiment.model, experiment.input_shape),
        figures=figures,
        tables=[share_table(result.sums, experiment.info.class_names)],
        headline=HEADLINE,
        skip=SKIP,
        summary=summary,
        command=command,
        captions=CAPTIONS,
        references={"classifier_fid": {name: summary[name] for name in ("floor", "ceiling") if name in summary}},
        images_first=True,
    )


def write_samples(place: pathlib.Path, images: np.ndarray, *, columns: int) -> list[str]:
    """Writes each sample as a PNG file and all of them as grid.png; removes the samples of an earlier call. Returns the
    file names."""
    place.mkdir(parents=True, exist_ok=True)
    for old in place.glob("sample_[0-9][0-9][0-9][0-9][0-9].png"):
        old.unlink()
    names = [str(place / f"sample_{i:05d}.png") for i in range(len(images))]
    for name, image in zip(names, images, strict=True):
        run_page.write_png(pathlib.Path(name), run_page.as_image(image))
    run_page.write_png(place / "grid.png", run_page.as_image(tiled(images, columns)))
    return names
