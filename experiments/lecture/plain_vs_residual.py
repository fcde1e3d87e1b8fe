"""Degradation of plain deep networks: python -m experiments.lecture.plain_vs_residual --workdir=W

The training error of plain and residual networks of 20 and 56 layers with batch norm (He, Zhang, Ren & Sun 2016, "Deep
residual learning for image recognition", section 4.2 and figure 6), with narrow layers and on downsampled images.
"""

import functools
from typing import Any

import jax
import numpy as np

import data
from data import store
from data.dataset import Dataset, default_dir
from experiments.cli import app
from experiments.lecture import narrow_nets, topic

DATASETS = ("auto", "cifar10", "mnist5k")
OPTIONS = {
    "dataset": ("auto", "cifar10, mnist5k or auto; auto is cifar10 if it was prepared, else mnist5k."),
    "steps": (700, "Number of training steps per network, at least 20."),
    "maps": (8, "Number of maps in the first third of the layers, doubled in each following third; the paper uses 16."),
    "pool": (4, "Window in pixels for average-pooling the images, 1 to 4; the paper uses 1."),
}


def choose(dataset: str) -> Dataset:
    """Loads the data set; "auto" means cifar10 if a store of it exists, even a damaged one, else mnist5k. Raises
    DataError if cifar10 is missing or damaged."""
    if dataset == "auto":
        dataset = "cifar10" if store.exists(default_dir("cifar10"), "cifar10") else "mnist5k"
    return data.load(dataset)


def gap(deep: np.ndarray, shallow: np.ndarray, images: int) -> dict[str, float]:
    """The mean difference of the errors [seeds] of the deep and the shallow networks, and its standard error: from the
    deviation over seeds or, if larger, from the binomial deviation of error rates on `images` images, because three
    seeds may agree by chance."""
    of_seeds = topic.mean_and_std(deep - shallow)
    counted = sum((share * (1 - share)).mean() for share in (deep, shallow)) / images
    return of_seeds | {"standard_error": float(np.sqrt(max(of_seeds["std"] ** 2, counted) / len(deep)))}


def experiment(this_topic: topic.Topic) -> topic.TopicResult:
    steps, maps, pool, wanted = (this_topic.options[name] for name in ("steps", "maps", "pool", "dataset"))
    app.require(wanted in DATASETS, f"--dataset={wanted}: must be one of {', '.join(DATASETS)}")
    app.require(steps >= 20, f"--steps={steps}: must be at least 20")
    app.require(pool <= 4, f"--pool={pool}: must be between 1 and 4")
    dataset = choose(wanted)
    images, labels = dataset.splits["train"]
    window = steps // 10
    errors: dict[str, Any] = {}
    for net in narrow_nets.NETS:
        task = narrow_nets.create_task(dataset, net, maps=maps, pool=pool, steps=steps)
        train = functools.partial(
            narrow_nets.training_errors, jax.jit(task.init), jax.jit(task.train_step), images, labels
        )
        errors[net] = [
            this_topic.cached(f"{dataset.name}_{net}_seed{seed}", functools.partial(train, steps=steps, seed=seed))
            for seed in this_topic.seeds
        ]
    curves = {net: 100 * narrow_nets.moving_average(values, window) for net, values in errors.items()}
    final = {net: values[:, -1] / 100 for net, values in curves.items()}
    gaps = {
        kind: gap(final[f"{kind}-56"], final[f"{kind}-20"], window * narrow_nets.BATCH_SIZE)
        for kind in ("plain", "residual")
    }
    side = images.shape[1] // pool
    numbers: dict[str, Any] = {"dataset": dataset.name, "pixels_a_side": side, "maps": maps, "steps": steps}
    numbers["window_steps"] = window
    numbers["training_error"] = {net: topic.mean_and_std(values) for net, values in final.items()}
    numbers["56_minus_20_layers"] = gaps

    said = {net: f"{100 * values.mean():.1f}\N{NO-BREAK SPACE}%" for net, values in final.items()}
    title = (
        f"Training error with 20 and 56 layers: plain {said['plain-20']} and {said['plain-56']}, "
        f"residual {said['residual-20']} and {said['residual-56']}"
    )
    caption = (
        f"wrong predictions on the training batches, averaged over the last {window} steps; line and band: "
        + this_topic.over_seeds("mean and standard deviation")
    )
    this_topic.figure(
        "training_error", narrow_nets.draw(curves, window, title), title="Training error", caption=caption
    )
    found = {kind: "a higher" if gap["mean"] > 2 * gap["standard_error"] else "no higher" for kind, gap in gaps.items()}
    estimates = (
        "estimates how much the mean difference would vary if all seeds were replaced by others."
        if len(this_topic.seeds) > 1
        else "for one seed estimates only how much it would vary with other images."
    )
    there = "there, too," if found["plain"] == "a higher" else "there,"
    text = [
        f"After {steps} steps, the deeper network has {found['plain']} training error without shortcuts and "
        f"{found['residual']} one with them. An error counts as higher if the difference is more than twice its "
        f"standard error, which {estimates}",
        f"Errors in the table: {this_topic.over_seeds()}. Differences are in percentage points, with their standard "
        "error.",
        f"To run in minutes, the experiment uses the {len(images):,} training images of {dataset.name}, averaged to "
        f"{side}x{side} pixels, {maps}, {2 * maps} and {4 * maps} maps, and few steps. So it shows how slowly a deep "
        "plain network learns, not its final error, and not whether depth pays off with shortcuts. He et al. trained "
        f"on CIFAR-10 at 32x32 pixels with 16, 32 and 64 maps for 64,000 steps; {there} the plain network of 56 "
        "layers ended with a higher training error than that of 20.",
    ]
    rows = []
    for kind, name in (("plain", "without shortcuts"), ("residual", "with shortcuts")):
        errors_of = [numbers["training_error"][f"{kind}-{depth}"] for depth in (20, 56)]
        difference, error = (100 * gaps[kind][key] for key in ("mean", "standard_error"))
        each = [this_topic.percent(one, places=2) for one in errors_of]
        rows.append([name, *each, f"{difference:.2f} ± {error:.2f} points"])
    tables = [("Training error", ["network", "20 layers", "56 layers", "difference"], rows)]
    guess = topic.Guess(
        "training_error",
        f"Without shortcuts, 20 layers end with a training error of {said['plain-20']}. How many percent do 56 layers "
        "end with?",
        "%",
        0,
        100,
        100 * numbers["training_error"]["plain-56"]["mean"],
    )
    return topic.TopicResult(text, numbers, tables, [guess])


if __name__ == "__main__":
    topic.main("plain_vs_residual", experiment, OPTIONS)
