"""The zoo's inverse graphics network: a latent variable that rotates a digit."""

import functools

import jax
import matplotlib
import numpy as np

from experiments.lecture.topic import mean_and_std
from experiments.lecture.zoo import pixels
from experiments.lecture.zoo.card import Card, Findings
from experiments.lecture.zoo.drawing import Diagram, Layer
from experiments.reporting import figures
from experiments.reporting.figures_rows import Row, image_rows
from models.inverse_graphics import InverseGraphics
from train.tasks import inverse_graphics, reconstruction

LATENT, PULL, SIZE = 10, 0.1, 10  # Latent variables; gradient weight and mini-batch size in inverse_graphics.
CLASS = 3  # All digits are threes, just as all of the paper's images are faces.
ANGLES = np.linspace(-inverse_graphics.LIMIT, inverse_graphics.LIMIT, 9)  # Rotations of the test digits.
DRAWN = 2  # Rotated digits in the figure.


def responses(means: np.ndarray) -> dict:
    """The response of latent variables to rotations, from their means [N, A, L] for N digits at A angles.

    `share` [L] is a latent variable's fraction of the variance that rotations cause in all latent variables;
    `explained` [L] is the fraction of its own variance that rotations cause; `correlation` [L] is its correlation with
    the angle.
    """
    within, total = means.var(1).mean(0), means.reshape(-1, means.shape[-1]).var(0)
    angles = np.tile(np.arange(means.shape[1]), len(means))
    flat = means.reshape(len(angles), -1)
    centered, turned = flat - flat.mean(0), angles - angles.mean()
    norms = np.maximum(np.linalg.norm(centered, axis=0), 1e-12) * np.linalg.norm(turned)
    return {
        "share": (within / within.sum()).tolist(),
        "explained": (within / np.maximum(total, 1e-12)).tolist(),
        "correlation": (turned @ centered / norms).tolist(),
    }


def probe(apply, images, *, best: int | None = None) -> dict:
    """Analyzes latent variable `best`, by default the one that responds most to rotations: its response to rotated
    images [N, H, W, 1], and the decoded digits if only this variable is set to its mean at each angle."""
    count, angles = len(images), len(ANGLES)
    turned = inverse_graphics.rotated(np.repeat(images, angles, 0), np.tile(ANGLES, count).astype(np.float32))
    means = np.asarray(apply(turned, method="encode")[0]).reshape(count, angles, -1)
    found = responses(means)
    best = int(np.argmax(found["share"])) if best is None else best
    moved = np.repeat(means[:, [angles // 2]], angles, 1)
    still = apply(moved.reshape(count * angles, -1), method="decode")
    moved[..., best] = means[..., best].mean(0)[None]
    shown = apply(moved.reshape(count * angles, -1), method="decode")
    whole = apply(means.reshape(count * angles, -1), method="decode")
    outputs = {"moved": shown, "still": still, "whole": whole}
    outputs = {name: np.asarray(jax.nn.sigmoid(logits)) for name, logits in outputs.items()}
    found |= {f"{name}_error": pixels.errors(output, turned)["squared_error"] for name, output in outputs.items()}
    drawn = outputs["moved"].reshape(count, angles, -1)[:DRAWN].reshape(DRAWN * angles, -1)
    return found | {
        "best": best,
        "images": pixels.as_lists(drawn),
        "rotated": pixels.as_lists(turned[: DRAWN * angles]),
    }


def run(seed: int, *, steps=600, latent=LATENT, width=16, hidden=64) -> dict:
    digits = pixels.digits()
    train, test = (digits.train_labels == CLASS, digits.test_labels == CLASS)
    images = reconstruction.pixels(digits.test[test])
    losses = {
        "clamped": (functools.partial(inverse_graphics.one_factor_loss, pull=PULL, size=SIZE), 0),
        "plain": (inverse_graphics.variational_loss, None),
    }
    found = {}
    for name, (loss, best) in losses.items():
        model = InverseGraphics(latent=latent, width=width, hidden=hidden)
        optimizer = pixels.annealed_adam(2e-3, steps)
        task = reconstruction.create(model=model, optimizer=optimizer, image_shape=pixels.SHAPE, loss=loss)
        state = pixels.fit(task, digits.train[train], digits.train_labels[train], steps=steps, seed=seed)
        found[name] = probe(functools.partial(model.apply, {"params": state.params}), images, best=best)
    return found


def report(results: list[dict]) -> Findings:
    def spread(name, key):
        return mean_and_std([result[name][key][result[name]["best"]] for result in results])

    def error(name, key):
        return mean_and_std([result[name][key] for result in results])

    keys = ("share", "explained", "correlation")

    def numbers_of(name):
        """All numbers of one network; correlations are absolute, because their sign is arbitrary."""
        found = {f"rotation_{key}": spread(name, key) for key in keys[:2]}
        strength = [abs(result[name]["correlation"][result[name]["best"]]) for result in results]
        found["rotation_correlation"] = mean_and_std(strength)
        return found | {f"{key}_error": error(name, f"{key}_error") for key in ("moved", "still", "whole")}

    numbers, first = numbers_of("clamped"), results[0]
    baseline = numbers_of("plain")
    own, other = (100 * values["rotation_share"]["mean"] for values in (numbers, baseline))
    turned, still = numbers["moved_error"]["mean"], numbers["still_error"]["mean"]
    rest = numbers["whole_error"]["mean"]
    turns = "rotates digits" if turned < 0.5 * (still + rest) else "rotates digits little"
    seen = "more than" if own > other else "not more than"
    text = (
        f"The first latent variable has {own:.0f} % of the variance that rotations cause in the code, {seen} the "
        f"{other:.0f} % of the best one without clamping; its absolute correlation with the angle is "
        f"{numbers['rotation_correlation']['mean']:.2f}, without clamping "
        f"{baseline['rotation_correlation']['mean']:.2f}. Changing only this variable {turns}: the squared error "
        f"from the rotated digits is {turned:.4f}, compared with {still:.4f} if it is fixed and {rest:.4f} if the "
        "whole code changes."
    )
    count = len(ANGLES)
    names = {"clamped": "first latent variable changed", "plain": "without clamping: best latent variable changed"}
    rows = []
    for digit in range(DRAWN):
        part = slice(digit * count, (digit + 1) * count)
        rows.append(Row(f"{'a' if digit == 0 else 'another'} test digit, rotated", first["clamped"]["rotated"][part]))
        rows += [Row(label, first[name]["images"][part]) for name, label in names.items()]
    title = f"{own:.0f} % of the response to rotation in one latent variable, {other:.0f} % without clamping"
    figure = image_rows(title, rows, columns=count, below=2.0)
    draw_responses(figure, {name: np.sort([r[name]["share"] for r in results], 1)[:, ::-1].mean(0) for name in names})
    caption = "Digits decoded while one latent variable changes; below: fraction of the response per latent variable"
    return Findings(text, numbers, baseline, figure, caption, "without clamping")


def draw_responses(figure, shares: dict[str, np.ndarray]) -> None:
    """Plots bars of the sorted shares [L] by network in the empty space at the bottom of the figure."""
    height = figure.get_size_inches()[1]
    with matplotlib.rc_context(figures.STYLE):
        axes = figure.add_axes((0.12, 0.45 / height, 0.86, 1.45 / height))
        colours, labels = {"clamped": "train", "plain": "eval"}, {"clamped": "clamped", "plain": "not clamped"}
        for offset, (name, values) in zip((-0.2, 0.2), shares.items(), strict=True):
            places = np.arange(1, len(values) + 1) + offset
            axes.bar(places, 100 * values, 0.4, color=figures.COLOURS[colours[name]], label=labels[name])
        axes.set(xlabel="latent variable, sorted", ylabel="response, %", xlim=(0.3, len(values) + 0.7))
        axes.legend(frameon=False)


FORMULA = (
    r"z_j \leftarrow \bar{z}_j, \quad \frac{\partial L}{\partial z_j} \leftarrow \lambda (z_j - \bar{z}_j) "
    r"\quad \text{for each inactive } j"
)

CARDS = (
    Card(
        name="inverse_graphics",
        title="Deep convolutional inverse graphics network (DCIGN)",
        diagram=Diagram(
            (
                Layer("input", 5),
                Layer("kernel", 4, "near"),
                Layer("pool", 3, "near"),
                Layer("probabilistic", 2),
                Layer("pool", 3),
                Layer("kernel", 4, "near"),
                Layer("match", 5, "near"),
            )
        ),
        idea="An autoencoder whose latent variables should be like the parameters of a graphics program. In each "
        "mini-batch only one factor of the images varies, and only the latent variable for this factor may change.",
        formula=FORMULA,
        rule="Gradient descent (Adam) on L, the negative lower bound of a variational autoencoder; in each mini-batch "
        "the latent variables of all other factors are clamped to their mean, and gradients move them towards it.",
        reference="Kulkarni, Whitney, Kohli & Tenenbaum, 2015, “Deep convolutional inverse graphics network”",
        run=run,
        report=report,
    ),
)
