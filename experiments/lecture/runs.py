"""The text of the lecture page about finished training runs: segment and generate, and the runs of --use."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from experiments.lecture.guess import Guess

ONE_SEED = "Only one seed was run, so the variation is unknown."


class Described(NamedTuple):
    """What the page says about a run. Tables are as in page.Section."""

    title: str
    text: list[str]
    tables: list[tuple[str, list[str], list[list[str]]]] = []
    guesses: list[Guess] = []


class Run(NamedTuple):
    """A training command: its `Described` from a run's summary.json, and its figures as (file, heading, caption)."""

    describe: Callable[[Mapping[str, Any]], Described]
    figures: tuple[tuple[str, str, str], ...]


def _segment(summary: Mapping[str, Any]) -> Described:
    title = f"SegNet: a class for every pixel ({summary['step']:,} steps)"
    accuracy, iou = 100 * summary["global_accuracy"], 100 * summary["mean_iou"]
    text = [
        f"After {summary['step']:,} steps, the network predicts the right class for {accuracy:.1f} % of the pixels of "
        f"{summary['examples']:,} images of {summary['dataset']} that it was not trained on. Its mean IoU "
        f"(intersection over union, averaged over the classes) is {iou:.1f} %. {ONE_SEED}"
    ]
    rows = [[name, "none" if value is None else f"{100 * value:.0f} %"] for name, value in summary["iou"].items()]
    question = "How many percent is the mean IoU on images that the network was not trained on?"
    guess = Guess("predictions", question, "%", 0, 100, iou)
    return Described(title, text, [("Intersection over union", ["class", "IoU"], rows)], [guess])


def _generate(summary: Mapping[str, Any]) -> Described:
    step, split = summary["step"], summary["split"]
    floor, score, ceiling = (summary[name] for name in ("floor", "classifier_fid", "ceiling"))
    title = f"Generative adversarial networks: images from transposed convolutions ({step:,} steps)"
    text = [
        f"After {step:,} steps on {summary['dataset']}, the Fréchet distance of samples to {split} images, in the "
        f"feature space of a classifier, is {score:.1f}. The classifier assigns {100 * summary['coverage_min']:.0f} % "
        f"of the samples to the rarest class and {100 * summary['coverage_max']:.0f} % to the most frequent one. The "
        f"discriminator still recognizes {100 * summary['accuracy_fake']:.0f} % of the samples. {ONE_SEED}"
    ]
    rows = [
        ["real training images (a perfect generator)", f"{floor:.2f}"],
        [f"samples after {step:,} steps", f"{score:.2f}"],
        ["samples before training", f"{ceiling:.2f}"],
    ]
    question = (
        f"The distance of real training images is {floor:.1f}, that of samples before training {ceiling:.0f}. "
        f"What is that of samples after {step:,} steps?"
    )
    guess = Guess("samples", question, "", 0, math.ceil(max(ceiling, score)), score)
    return Described(title, text, [(f"Fréchet distance to {split} images", ["images", "distance"], rows)], [guess])


def _classify(summary: Mapping[str, Any]) -> Described:
    text = f"Its accuracy on {summary['examples']:,} images is {summary['accuracy']:.2%}."
    return Described("A classifier: {model} on {dataset}".format(**summary), [text])


def _reconstruct(summary: Mapping[str, Any]) -> Described:
    text = f"Its loss on {summary['examples']:,} images is {summary['loss']:.4g}."
    return Described("An autoencoder: {model} on {dataset}".format(**summary), [text])


RUNS = {
    "segment": Run(_segment, (("predictions", "Predictions", "images, true classes and predicted classes"),)),
    "generate": Run(
        _generate,
        (
            ("samples", "Samples", "not selected: the first latent vectors of a fixed seed"),
            ("samples_over_time", "Samples over time", "samples from the same latent vectors at different steps"),
        ),
    ),
    "classify": Run(
        _classify,
        (("layer1", "Layer-1 filters", "weights of the first layer, each image scaled by its largest magnitude"),),
    ),
    "reconstruct": Run(_reconstruct, (("reconstructions", "Reconstructions", "images and their reconstructions"),)),
}
