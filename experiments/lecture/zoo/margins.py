"""Support-vector machines: one-vs-rest digit classifiers compared with scikit-learn's, and margins in the plane."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jax import lax
from sklearn.datasets import make_moons
from sklearn.svm import SVC, LinearSVC

from data import batches
from experiments.lecture import topic
from experiments.lecture.zoo.card import Card, Findings, rounded
from experiments.lecture.zoo.drawing import Diagram, Layer
from experiments.lecture.zoo.flat_digits import accuracy, flat_digits
from experiments.reporting import figures
from models import support_vector as machines
from train.tasks import support_vector

LINEAR_COST, STEPS, BATCH_SIZE = 0.01, 6000, 64
COST, GAMMA = 5.0, 0.02  # For the Gaussian kernel and pixels in 0 .. 1.
TOLERANCE, CHUNK, CHUNKS = 1e-3, 250, 80  # Dual steps end at this gap, checked after every CHUNK steps.
PLANE_COST, PLANE_GAMMA, POINTS, GRID = 1.0, 1.0, 120, 50  # In two dimensions; GRID x GRID scores are drawn.

KERNEL, SCORES = jax.jit(machines.gaussian_kernel), jax.jit(machines.kernel_scores)
OBJECTIVE = jax.jit(support_vector.primal_objective)

CLASSES = ("#0072B2", "o"), ("#D55E00", "^")  # Colors and markers in two dimensions.


@functools.partial(jax.jit, static_argnames=("cost", "examples"))
def _descend(state, x, y, rows_SB, *, cost: float, examples: int):
    def step(state, rows):
        return support_vector.primal_step(state, {"input": x[rows], "label": y[rows]}, cost=cost, examples=examples)[
            0
        ], None

    return lax.scan(step, state, rows_SB)[0]


def linear(x, y, *, cost: float, steps: int, seed: int) -> np.ndarray:
    """Trains linear machines for labels y [N, K]; returns their weights [D + 1, K], averaged over the steps."""
    size = min(BATCH_SIZE, len(x))
    rows = np.stack([batches.rows(seed, step, batch_size=size, examples=len(x)) for step in range(steps)])
    state = support_vector.primal_init(x.shape[1], y.shape[1])
    return np.asarray(_descend(state, jnp.asarray(x), jnp.asarray(y), rows, cost=cost, examples=len(x)).average)


@jax.jit
def _climb(states, kernel, labels_KN, cost):
    def step(states, _):
        one = functools.partial(support_vector.dual_step, cost=cost)
        batched = jax.vmap(lambda state, label: one(state, {"kernel": kernel, "label": label}))
        states, sums = batched(states, labels_KN)
        return states, sums["gap"]

    states, gaps = lax.scan(step, states, None, length=CHUNK)
    return states, gaps[-1]


def dual(kernel, labels_KN, *, cost: float, tolerance: float = TOLERANCE):
    """Solves the dual problems for labels [K, N]; returns their states, gaps [K] and the number of steps."""
    states, done = jax.vmap(support_vector.dual_init)(labels_KN), 0
    while True:
        states, gaps = _climb(states, kernel, labels_KN, cost)
        done += CHUNK
        if float(gaps.max()) < tolerance or done >= CHUNK * CHUNKS:
            return states, np.asarray(gaps), done


@jax.jit
def _solution(states, labels_KN, cost):
    bias = jax.vmap(functools.partial(support_vector.dual_bias, cost=cost))(states, labels_KN)
    return bias, jax.vmap(support_vector.dual_objective)(states, labels_KN)


def kernel_machine(x, labels_KN, *, cost: float, gamma: float):
    """Returns (the machine, its dual objectives [K], the kernel matrix [N, N], the gaps, the number of steps)."""
    kernel = KERNEL(x, x, gamma)
    states, gaps, steps = dual(kernel, labels_KN, cost=cost)
    bias, objectives = _solution(states, labels_KN, cost)
    machine = machines.KernelMachine(jnp.asarray(x), states.coefficients, bias, jnp.float32(gamma))
    return machine, np.asarray(objectives), np.asarray(kernel), gaps, steps


def primal_objective(weights, x, y, cost) -> np.ndarray:
    return np.asarray(OBJECTIVE(np.asarray(weights, np.float32), x, y, cost), np.float64)


def sklearn_linear(x, y, cost: float) -> np.ndarray:
    """scikit-learn's weights [D + 1, K] for labels y [N, K]; it also penalizes the bias."""
    found = []
    for labels in y.T:
        model = LinearSVC(C=cost, loss="hinge", tol=1e-4, max_iter=20_000, random_state=0).fit(x, labels)
        found.append(np.append(model.coef_[0], model.intercept_))
    return np.stack(found, 1)


def sklearn_dual(kernel, label, cost: float) -> tuple[float, np.ndarray, float]:
    """scikit-learn's dual objective, coefficients [N] and bias for a kernel matrix and labels [N]."""
    kernel = np.asarray(kernel, np.float64)
    model = SVC(C=cost, kernel="precomputed", tol=1e-3).fit(kernel, label)
    coefficients = np.zeros(len(label))
    coefficients[model.support_] = model.dual_coef_[0]
    objective = np.abs(coefficients).sum() - coefficients @ kernel @ coefficients / 2
    return float(objective), coefficients, float(model.intercept_[0])


def separable(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points [POINTS, 2] on both sides of a line, more than 0.2 from it, and their classes [POINTS], 0 or 1."""
    x = np.random.default_rng(seed).uniform(-2, 2, (4 * POINTS, 2))
    height = x @ [0.6, 0.8] - 0.4
    far = np.abs(height) > 0.2
    return x[far][:POINTS], (height[far][:POINTS] > 0).astype(int)


def plane(seed: int, steps: int) -> list[dict[str, Any]]:
    """A linear machine on separable points and one with a Gaussian kernel on two moons: points, classes, whether each
    point is a support vector, and scores on a grid."""
    found = []
    for name in ("separable", "moons"):
        x, y = separable(seed) if name == "separable" else make_moons(POINTS, noise=0.15, random_state=seed)
        x, labels = x.astype(np.float32), (2 * y - 1).astype(np.float32)
        low, high = x.min(0) - 0.4, x.max(0) + 0.4
        across, down = (np.linspace(a, b, GRID, dtype=np.float32) for a, b in zip(low, high, strict=True))
        grid = np.stack(np.meshgrid(across, down), -1).reshape(-1, 2)
        width = peer = None
        if name == "separable":
            cost = 10 * PLANE_COST
            weights = linear(x, labels[:, None], cost=cost, steps=4 * steps, seed=seed)
            theirs = sklearn_linear(x, labels[:, None], cost)
            width, peer = (2 / float(np.linalg.norm(w[:-1])) for w in (weights, theirs))
            scores, at = (machines.linear_scores(weights, points)[:, 0] for points in (grid, x))
            inside = labels * at <= 1 + 1e-2
        else:
            machine, *_ = kernel_machine(x, labels[None], cost=PLANE_COST, gamma=PLANE_GAMMA)
            scores = np.asarray(SCORES(machine, grid))[:, 0]
            inside = np.asarray(machine.coefficients)[0] != 0
        found.append(
            {
                "x": rounded(x, 4),
                "y": y.tolist(),
                "inside": inside.tolist(),
                "across": across.tolist(),
                "down": down.tolist(),
                "scores": rounded(scores.reshape(GRID, GRID), 4),
                "width": width,
                "sklearn_width": peer,
            }
        )
    return found


def run_support_vector(seed: int, examples: int | None = None, steps: int = STEPS) -> dict[str, Any]:
    digits = flat_digits(examples)
    y = np.where(digits.train_labels[:, None] == np.arange(10), 1, -1).astype(np.float32)
    weights = linear(digits.train, y, cost=LINEAR_COST, steps=steps, seed=seed)
    theirs = sklearn_linear(digits.train, y, LINEAR_COST)
    primal = [primal_objective(w, digits.train, y, LINEAR_COST) for w in (weights, theirs)]
    tested = np.concatenate([digits.test, np.ones((len(digits.test), 1), np.float32)], 1)

    machine, objectives, kernel, gaps, dual_steps = kernel_machine(digits.train, y.T, cost=COST, gamma=GAMMA)
    scores = SCORES(machine, digits.test)
    peers = [sklearn_dual(kernel, label, COST) for label in y.T]
    across = np.asarray(KERNEL(digits.test, machine.examples, GAMMA))
    peer_scores = across @ np.stack([beta for _, beta, _ in peers], 1) + np.array([bias for _, _, bias in peers])
    return {
        "linear": {
            "objective": primal[0].sum(),
            "sklearn_objective": primal[1].sum(),
            "excess": float((primal[0] / primal[1] - 1).max()),
            "accuracy": accuracy(tested @ weights, digits.test_labels),
            "sklearn_accuracy": accuracy(tested @ theirs, digits.test_labels),
        },
        "kernel": {
            "objective": float(objectives.sum()),
            "sklearn_objective": float(sum(objective for objective, _, _ in peers)),
            "excess": float(np.abs(objectives / np.array([objective for objective, _, _ in peers]) - 1).max()),
            "accuracy": accuracy(scores, digits.test_labels),
            "sklearn_accuracy": accuracy(peer_scores, digits.test_labels),
            "support": float((np.asarray(machine.coefficients) != 0).mean()),
            "gap": float(gaps.max()),
            "steps": dual_steps,
        },
        "plane": plane(seed, steps),
    }


def report_support_vector(results: list[dict[str, Any]]) -> Findings:
    def over_seeds(part: str, key: str) -> dict[str, float]:
        return topic.mean_and_std([result[part][key] for result in results])

    excess = {part: max(result[part]["excess"] for result in results) for part in ("linear", "kernel")}
    hits = {part: over_seeds(part, "accuracy") for part in ("linear", "kernel")}
    within = "are" if max(excess.values()) <= 0.01 else "are not all"
    support = over_seeds("kernel", "support")["mean"]
    text = (
        f"The test accuracy is {100 * hits['linear']['mean']:.1f} % with linear machines and "
        f"{100 * hits['kernel']['mean']:.1f} % with Gaussian kernels; the latter each use {100 * support:.0f} % of the "
        f"training digits as support vectors. The objectives {within} within 1 % of scikit-learn's: they differ "
        f"by at most {100 * excess['linear']:.2g} % (linear) and {100 * excess['kernel']:.2g} % (kernel)."
    )
    with matplotlib.rc_context({**figures.STYLE, "axes.grid": False}):
        figure = figures.new_figure(height=6.4)
        panels = figure.subplots(2, 1)
        titles = ("Linear: maximum margin", "Gaussian kernel: nonlinear boundary")
        for axes, found, title in zip(panels, results[0]["plane"], titles, strict=True):
            x, y, inside = np.array(found["x"]), np.array(found["y"]), np.array(found["inside"])
            scores = np.array(found["scores"])
            axes.contourf(found["across"], found["down"], scores, [-1e9, 0, 1e9], colors=["#d8e8f3", "#fbe5d8"])
            axes.contour(
                found["across"],
                found["down"],
                scores,
                [-1, 0, 1],
                colors="#333333",
                linestyles=["--", "-", "--"],
                linewidths=[1, 1.6, 1],
            )
            for value, (colour, marker) in enumerate(CLASSES):
                mine = x[y == value]
                axes.scatter(mine[:, 0], mine[:, 1], s=16, color=colour, marker=marker, zorder=3)
            axes.scatter(*x[inside].T, s=70, facecolors="none", edgecolors="#222222", linewidths=1, zorder=4)
            axes.set_title(title, fontsize=11)
            axes.set(xticks=[], yticks=[])
    planes = [result["plane"][0] for result in results]
    numbers = {
        "test_accuracy_linear": hits["linear"],
        "test_accuracy_kernel": hits["kernel"],
        "objective_linear": over_seeds("linear", "objective"),
        "objective_kernel": over_seeds("kernel", "objective"),
        "largest_relative_difference_linear": excess["linear"],
        "largest_relative_difference_kernel": excess["kernel"],
        "support_vectors": over_seeds("kernel", "support"),
        "margin_width_2d": topic.mean_and_std([found["width"] for found in planes]),
    }
    baseline = {
        "test_accuracy_linear": over_seeds("linear", "sklearn_accuracy"),
        "test_accuracy_kernel": over_seeds("kernel", "sklearn_accuracy"),
        "objective_linear": over_seeds("linear", "sklearn_objective"),
        "objective_kernel": over_seeds("kernel", "sklearn_objective"),
        "margin_width_2d": topic.mean_and_std([found["sklearn_width"] for found in planes]),
    }
    caption = "Decision boundary, margins (dashed) and support vectors (circles) of two classes in two dimensions."
    return Findings(text, numbers, baseline, figure, caption, "scikit-learn")


FORMULA = r"\min_{w,b} \frac{1}{2} \lVert w \rVert^2 + C \sum_n \max(0, 1 - y_n (w \cdot \varphi(x_n) + b))"

CARDS = (
    Card(
        name="support_vector",
        title="Support vector machine (SVM)",
        diagram=Diagram((Layer("input", 3), Layer("hidden", 3), Layer("hidden", 3, "one"), Layer("output", 1))),
        idea="Of all boundaries between two classes it selects the one with the maximum margin, which depends only on "
        "the examples on or inside the margin, the support vectors. A kernel measures the similarity to them, which "
        "allows nonlinear boundaries.",
        formula=FORMULA,
        rule="Linear: stochastic subgradient descent on the hinge loss. Kernel: sequential minimal optimization, which "
        "optimizes one pair of dual coefficients at a time.",
        reference="Cortes & Vapnik, 1995, “Support-vector networks”",
        run=run_support_vector,
        report=report_support_vector,
    ),
)
