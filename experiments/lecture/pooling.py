"""Invariance through pooling: python -m experiments.lecture.pooling --workdir=W

Measures how much the features of a bank of oriented filters, with max pooling, average pooling or no pooling, change
when a digit is slightly shifted or rotated.
"""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy import ndimage

import data
from experiments.cli import app
from experiments.lecture import topic
from models.layers import avg_pool, max_pool, relu

OPTIONS = {"digits": (500, "Number of test digits over which the changes are averaged.")}
MARGIN = 4  # Black border in pixels that keeps moved digits inside; 36 pixels are divisible by both windows.
FILTERS, WINDOW = 8, 7
SHIFTS = {f"shift_{pixels}": (pixels, 0.0) for pixels in range(5)}
ROTATIONS = {f"rotation_{degrees}": (0, float(degrees)) for degrees in range(0, 31, 5)}
POOLS: dict[str, tuple[str, str, str, Callable]] = {  # Label, color, line style, function.
    "none": ("no pooling", "test", "-", lambda x: x),
    "average_2": ("average of 2x2", "eval", "--", functools.partial(avg_pool, window=2)),
    "average_4": ("average of 4x4", "eval", "-", functools.partial(avg_pool, window=4)),
    "max_2": ("maximum of 2x2", "train", "--", functools.partial(max_pool, window=2)),
    "max_4": ("maximum of 4x4", "train", "-", functools.partial(max_pool, window=4)),
}


def gabor(random: np.random.Generator) -> np.ndarray:
    """A bank [7, 7, 1, 8] of Gabor filters, 22.5 degrees apart, each with mean 0 and norm 1 (Gabor 1946; Daugman 1985).
    The first angle and the phases and wavelengths (4 to 8 pixels) are random."""
    y, x = np.mgrid[:WINDOW, :WINDOW] - (WINDOW - 1) / 2
    angles = (random.uniform() + np.arange(FILTERS)) * np.pi / FILTERS
    along = x[..., None] * np.cos(angles) + y[..., None] * np.sin(angles)
    phases, lengths = random.uniform(0, 2 * np.pi, FILTERS), random.uniform(4, 8, FILTERS)
    bank = np.cos(2 * np.pi * along / lengths + phases) * np.exp(-(x**2 + y**2) / 8)[..., None]
    bank -= bank.mean((0, 1))
    return (bank / np.sqrt((bank**2).sum((0, 1))))[:, :, None].astype(np.float32)


def features(images_BHWC, bank):
    """ReLU of the convolution with the bank, padded to the same size: [B, H, W, filters]."""
    axes = ("NHWC", "HWIO", "NHWC")
    maps = lax.conv_general_dilated(images_BHWC, bank, (1, 1), "SAME", dimension_numbers=axes)
    return relu(maps)


@jax.jit
def moved(images_BHWC, shift_2, degrees):
    """Images rotated clockwise by `degrees` about the center, then shifted by (down, right) pixels, with bilinear
    interpolation and zero padding."""
    height, width = images_BHWC.shape[1:3]
    middle = jnp.array([(height - 1) / 2, (width - 1) / 2]).reshape(2, 1, 1)
    y, x = jnp.mgrid[:height, :width] - middle - jnp.reshape(shift_2, (2, 1, 1))
    cos, sin = jnp.cos(jnp.deg2rad(degrees)), jnp.sin(jnp.deg2rad(degrees))
    places = list(jnp.stack([cos * y - sin * x, sin * y + cos * x]) + middle)
    return jax.vmap(lambda image: ndimage.map_coordinates(image[..., 0], places, order=1))(images_BHWC)[..., None]


def relative_change(before, after):
    """|after - before| / |before| of each example [B], with the Euclidean norm; any arrays [B, ...]."""
    axes = tuple(range(1, before.ndim))
    return jnp.sqrt(((after - before) ** 2).sum(axes) / (before**2).sum(axes))


@jax.jit
def changes(images, others, bank) -> dict[str, jax.Array]:
    """The relative change [B] of the features from `images` to `others`, both [B, H, W, 1], for each pooling."""
    before, after = features(images, bank), features(others, bank)
    return {name: relative_change(pool(before), pool(after)) for name, (_, _, _, pool) in POOLS.items()}


def measure(images, labels, seed: int, *, digits: int) -> dict[str, dict[str, float]]:
    """The mean relative change of the first `digits` by pooling: for each move, and between digits of different
    classes."""
    random = np.random.default_rng(seed)
    bank, few = gabor(random), images[:digits]

    def mean(many):
        parts = [changes(few, others, bank) for others in many]
        return {pool: float(np.mean([part[pool] for part in parts])) for pool in POOLS}

    found = {}
    for name, (pixels, degrees) in {**SHIFTS, **ROTATIONS}.items():
        ways = itertools.product(((0, pixels), (pixels, 0), (0, -pixels), (-pixels, 0)), (degrees, -degrees))
        found[name] = mean(moved(few, np.array(shift, np.float32), turn) for shift, turn in sorted(set(ways)))
    pairs = [random.choice(np.flatnonzero(labels != label)) for label in labels[:digits]]
    found["between_classes"] = mean([images[pairs]])
    return found


def widget(images, labels) -> dict[str, list]:
    """The data of widgets/pooling.js: the first digit of each class, and the filter bank of seed 0."""
    first = [images[np.flatnonzero(labels == label)[0], :, :, 0] for label in range(10)]
    filters = gabor(np.random.default_rng(0))[:, :, 0].transpose(2, 0, 1)
    return {"digits": np.round(first, 3).tolist(), "filters": np.round(filters, 5).tolist()}


def experiment(this_topic: topic.Topic) -> topic.TopicResult:
    images, labels = data.load("mnist5k").splits["test"]
    order, digits = np.random.default_rng(0).permutation(len(images)), this_topic.options["digits"]
    app.require(digits <= len(images), f"--digits={digits}: must be between 1 and {len(images)}, all test digits")
    padded = np.pad(images[order], ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0))) / np.float32(255)
    make = functools.partial(measure, padded, labels[order], digits=digits)
    found = [this_topic.cached(f"seed_{seed}", functools.partial(make, seed)) for seed in this_topic.seeds]
    change = {
        move: {pool: topic.mean_and_std([one[move][pool] for one in found]) for pool in POOLS} for move in found[0]
    }
    said = {m: {p: f"{100 * x['mean']:.0f} %" for p, x in by_pool.items()} for m, by_pool in change.items()}
    for moves, xlabel, at, what in (
        (SHIFTS, "shift, pixels", "shift_1", "A shift by 1 pixel"),
        (ROTATIONS, "rotation, degrees", "rotation_15", "A rotation by 15 degrees"),
    ):
        title = f"{what} changes features by {said[at]['none']}, by {said[at]['max_4']} after 4x4 max pooling"
        places = [int(move.split("_")[1]) for move in moves]
        series = {label: ([change[m][p] for m in moves], *look) for p, (label, *look, _) in POOLS.items()}
        drawn = topic.lines(
            series, places, title, xlabel=xlabel, ylabel="relative change of the features, %", xticks=places
        )
        caption = f"|f(Tx) - f(x)| / |f(x)| over {digits} test digits; mean and standard deviation over filter banks"
        this_topic.figure(
            f"change_by_{at.split('_')[0]}", drawn, title=f"Change by {xlabel.split(',')[0]}", caption=caption
        )

    def holds(move):
        """Whether all pooled changes are below the unpooled one by more than the sum of the standard deviations."""
        none, *pooled = change[move].values()
        return all(none["mean"] - x["mean"] > none["std"] + x["std"] for x in pooled)

    steadier = min(("max_4", "average_4"), key=lambda pool: change["shift_1"][pool]["mean"])
    kept = {p: change["shift_1"][p]["mean"] / change["between_classes"][p]["mean"] for p in POOLS}
    seen = [what for move, what in (("shift_1", "the shift"), ("rotation_15", "the rotation")) if holds(move)]
    text = [
        f"All kinds of pooling reduce the change under {' and '.join(seen)}; of the 4x4 windows, the "
        f"{POOLS[steadier][0].split()[0]} reduces it more under the shift. The features of a shifted digit become more "
        f"similar, not equal: their relative change is still {said['shift_1'][steadier]}."
        if seen
        else "The claim is not confirmed: pooling does not reduce the change.",
        'For the column "another digit", the features of a digit are compared with those of a digit of another class. '
        "Pooling brings these closer together, too, so the change under the shift has to be compared with this "
        f"distance. Their ratio is {kept['none']:.2f} without pooling, {kept['average_4']:.2f} with the 4x4 average "
        f"and {kept['max_4']:.2f} with the 4x4 maximum; the smaller, the better.",
    ]
    columns = {"shift_1": "shift by 1 pixel", "rotation_15": "rotation by 15°", "between_classes": "another digit"}
    rows = [[label, *(said[move][pool] for move in columns)] for pool, (label, *_) in POOLS.items()]
    table = ("Relative change of the features", ["pooling", *columns.values()], rows)
    numbers = {"digits": digits, **{move: change[move] for move in columns}, "shift_1_of_between_classes": kept}
    guess = "A digit moves by one pixel. By how many percent do its features change after max pooling over 4x4 windows?"
    return topic.TopicResult(
        text,
        numbers,
        [table],
        [topic.Guess("change_by_shift", guess, "%", 0, 100, 100 * change["shift_1"]["max_4"]["mean"])],
        {"pooling": widget(padded, labels[order])},
    )


if __name__ == "__main__":
    topic.main("pooling", experiment, OPTIONS)
