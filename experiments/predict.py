"""Predicts the labels of image files, or of all images below a folder:
python -m experiments.predict --workdir=W image.png ... [--top=3]"""

import csv
import dataclasses
import os
import pathlib
import sys

from experiments.cli import app
from experiments.cli.app import require
from experiments.cli.config import SEEDS
from experiments.cli.options import option

MOST = 100_000  # Maximum number of samples per call.
NAMED = 20  # Maximum number of unreadable files, or of warnings, reported by name; the rest are only counted.
PART, BYTES = 512, 1 << 28  # Images are predicted in parts of at most PART images or, if they are large, BYTES bytes.
MANY = 32  # More files than this are read in threads, with a progress bar on a terminal.


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """Prediction"""

    workdir: str = option(None, "Folder of the run.", needed="the folder of the run", path=True)
    top: int = option(1, "Most probable labels printed for each file.", "[1, inf)")
    samples: int | None = option(None, "Runs of generate: number of images to generate.", f"[1, {MOST}]")
    seed: int = option(0, "Runs of generate: seed of the latent vectors.", SEEDS)
    out: str | None = option(None, "Runs of generate: output folder; default W/predictions.", path=True)
    checkpoint: str = option("latest", "Checkpoint to use.", choices=("latest", "best"))
    invert: bool = option(False, "Invert the images first, such as dark digits on white for a run of mnist5k.")


def main(config: PredictConfig, files: list[str]) -> int:
    from experiments.setup import saved_run

    run = saved_run.read(config.workdir)
    if run.task == "generation":
        return write_samples(config, run, files)
    for name, value in (("samples", config.samples), ("seed", config.seed or None), ("out", config.out)):
        require(value is None, f"--{name}={value} is supported only for runs of generate")
    require(bool(files), "no image given: predict --workdir=W FILE_OR_FOLDER ...")
    labels, classes = run.task == "classification", len(run.info.class_names)
    require(labels or config.top == 1, "--top is supported only for runs of classify")
    require(config.top <= classes, f"--top={config.top}: must be between 1 and {classes}, the number of classes")
    start()
    found = image_files(files)
    if not labels:
        check_not_outputs(run, found)
    failed: list[str] = []
    write = {"segmentation": write_masks, "reconstruction": write_images}.get(run.task, write_labels)
    write(config, run, read_parts(config, run, found, failed))
    return 1 if failed else 0


def image_files(given: list[str]) -> list[str]:
    """The given files; a folder is replaced by all images below it, in the order of their paths."""
    from data import DataError, folder

    found = []
    for file in given:
        below = folder.images_below(file) if os.path.isdir(file) else [file]
        if not below:
            raise DataError(f"{file} contains no images ({', '.join(folder.SUFFIXES)})")
        found += below
    return found


def read_parts(config: PredictConfig, run, files: list[str], failed: list[str]):
    """Yields (readable files, images uint8 [N, H, W, C]) in parts. Files that can't be read are reported and added to
    `failed`; images unlike the training images are reported."""
    import numpy as np

    from data import DataError
    from data import image_files as encoded
    from experiments.setup import evaluation_data, image_statistics
    from train.messages import say

    def read(example):
        try:
            image = evaluation_data.read_image(files[example], run)
        except DataError as error:
            return error
        return 255 - image if config.invert else image

    threads = len(files) > MANY  # For a few files, importing grain would take longer than reading them.
    images = encoded.each(read, len(files), title="images") if threads else map(read, range(len(files)))
    names, part, unlike = [], [], 0
    for file, image in zip(files, images, strict=True):
        if isinstance(image, DataError):
            failed.append(file)
            if len(failed) <= NAMED:
                say(f"error: {image}")
            continue
        warning = image_statistics.warning(image, run.info, inverted=config.invert)
        if warning:
            unlike += 1
            if unlike <= NAMED:
                say(f"warning: {file}: {warning}")
        names.append(file)
        part.append(image)
        if len(part) == PART or len(part) * image.nbytes >= BYTES:
            yield names, np.stack(part)
            names, part = [], []
    if len(failed) > NAMED:
        say(f"error: {len(failed) - NAMED:,} more of the {len(files):,} files can't be read")
    if unlike > NAMED:
        many = f"{unlike - NAMED:,} more of the {len(files):,} images"
        say(f"warning: {many} differ in brightness from the training images")
    if part:
        yield names, np.stack(part)


def start() -> None:
    from experiments.cli.compilation_cache import start_cache
    from train.parallel.devices import start_devices

    start_devices(None)
    start_cache()


def write_samples(config: PredictConfig, run, files: list[str]) -> int:
    """Writes samples and a grid of them as PNG files; prints the file names as CSV."""
    require(not files, f"a run of generate takes no image files; given: {' '.join(files)!r}")
    require(config.top == 1, "--top is supported only for runs of classify")
    require(not config.invert, "--invert is not supported for runs of generate")
    if config.samples is None:
        raise app.UsageError("--samples=N must be given: the number of images to generate")
    start()
    from experiments.reporting import generation_report
    from experiments.setup import generation, stored_network

    experiment = stored_network.experiment_from_run(run)
    state = stored_network.restore(experiment, run, config.checkpoint)
    classes, conditional = run.info.class_names, run.config.conditional
    latents = generation.latents(run.config)
    batch = generation_report.latent_batch(config.samples, config.seed, latents=latents, classes=len(classes))
    images = generation_report.samples(experiment.task.predict_step, state, batch)
    folder = pathlib.Path(config.out) if config.out else run.workdir / "predictions"
    columns = generation_report.columns_of(len(classes), conditional=conditional)
    names = generation_report.write_samples(folder, images, columns=columns)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["file", "class"] if conditional else ["file"])
    for i, name in enumerate(names):
        writer.writerow([name, classes[i % len(classes)]] if conditional else [name])
    return 0


def print_rows(header: list[str], parts, rows) -> None:
    """Prints as CSV the `rows(files, images)` of each part of `read_parts`, after the header unless there is none."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    for number, (files, images) in enumerate(parts):
        writer.writerows([] if number else [header])
        writer.writerows(rows(files, images))
        sys.stdout.flush()


def write_labels(config: PredictConfig, run, parts) -> None:
    """Prints the most probable classes as CSV."""
    import numpy as np

    from experiments.setup import prediction, stored_network

    experiment = stored_network.experiment_from_run(run)
    state = stored_network.restore(experiment, run, config.checkpoint)

    def rows(files, images):
        for file, row in zip(files, prediction.probabilities(experiment.task, state, images, 32), strict=True):
            for i in np.argsort(-row, kind="stable")[: config.top]:
                yield file, run.info.class_names[i], f"{row[i]:.6f}"

    print_rows(["file", "label", "probability"], parts, rows)


def output_folder(run) -> pathlib.Path:
    return run.workdir / "predictions"


def check_not_outputs(run, files: list[str]) -> None:
    """Raises UsageError if one of the `files` is in the folder that image files are written to."""
    folder = output_folder(run)
    for file in files:
        inside = pathlib.Path(file).resolve().parent == folder.resolve()
        require(not inside, f"{file} is in the output folder {folder}; copy it to another folder")


def write_images(config: PredictConfig, run, parts) -> None:
    """Writes reconstructions as PNG files into the workdir; prints the file names as CSV."""
    from experiments.reporting import reconstruction_report
    from experiments.setup import prediction, stored_network

    experiment = stored_network.experiment_from_run(run)
    state = stored_network.restore(experiment, run, config.checkpoint)
    names: set[str] = set()

    def rows(files, images):
        made = prediction.reconstructions(experiment.task, state, images)
        return reconstruction_report.write_images(output_folder(run), files, made, names)

    print_rows(["file", "reconstruction"], parts, rows)


def write_masks(config: PredictConfig, run, parts) -> None:
    """Writes masks, overlays and a legend as PNG files into the workdir; prints the file names as CSV."""
    from experiments.reporting import segmentation_report
    from experiments.setup import prediction, stored_network

    experiment = stored_network.experiment_from_run(run)
    state = stored_network.restore(experiment, run, config.checkpoint)
    names: set[str] = set()

    def rows(files, images):
        if not names:
            segmentation_report.write_legend(output_folder(run), run.info)
        found = prediction.masks(experiment.task, state, images)
        return segmentation_report.write_masks(output_folder(run), files, found, run.info, names)

    print_rows(["file", "mask", "overlay"], parts, rows)


if __name__ == "__main__":
    app.run(main, PredictConfig, positional=True)
