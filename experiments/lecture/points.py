"""Two-dimensional data sets and their classifiers: Rosenblatt's rule, logistic regression and a hidden layer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.lines import Line2D

import models
from train.tasks import losses

DATA = {"separable": "separable", "xor": "XOR", "moons": "two moons"}
LINE, GAP = np.array([0.6, 0.8, -0.4]), 0.2  # The line between the separable classes (unit normal), half the gap.
CLASSES = ("#0072B2", "o"), ("#D55E00", "^")
OUTPUTS = LinearSegmentedColormap.from_list("outputs", ["#bcdcf2", "#ffffff", "#f9d5b9"])  # From class 0 to class 1.


def class_handles() -> list[Line2D]:
    """The entries of a legend for the two classes."""
    return [
        Line2D([], [], color=colour, marker=marker, linestyle="", label=f"class {label}")
        for label, (colour, marker) in enumerate(CLASSES)
    ]


def _separable(random, count: int):
    x = random.uniform(-2, 2, (4 * count + 100, 2))
    height = x @ LINE[:2] + LINE[2]
    far = np.abs(height) > GAP
    return x[far][:count], height[far][:count] > 0


def _xor(random, count: int, *, noise: float = 0.3):
    corners = random.integers(0, 2, (count, 2))
    return 2 * corners - 1 + noise * random.standard_normal((count, 2)), corners[:, 0] != corners[:, 1]


def moons(random, count: int, *, noise: float = 0.15):
    """Two interleaving half circles, as in scikit-learn's make_moons; the outer one is first."""
    outer, inner = np.linspace(0, np.pi, count // 2), np.linspace(0, np.pi, count - count // 2)
    x = np.concatenate([np.cos(outer), 1 - np.cos(inner)]), np.concatenate([np.sin(outer), 0.5 - np.sin(inner)])
    return np.stack(x, 1) + noise * random.standard_normal((count, 2)), np.arange(count) >= count // 2


def draw(name: str, count: int, *, seed: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Points [N, 2] in random order and their classes [N], 0.0 or 1.0; the splits are drawn independently."""
    random = np.random.default_rng((seed, ("train", "test").index(split), list(DATA).index(name)))
    x, y = {"separable": _separable, "xor": _xor, "moons": moons}[name](random, count)
    order = random.permutation(count)
    return x[order].astype(np.float32), y[order].astype(np.float32)


def step(z):
    """The threshold unit: 1 where z > 0, else 0."""
    return (z > 0).astype(z.dtype)


def network(hidden: int):
    """The project's mlp with one hidden layer of tanh units and one output."""
    return models.create("mlp", 1, hidden=(hidden,), activation="tanh")


@jax.jit
def score(params, x):
    """The pre-activation of the output unit, [..., 2] -> [...], positive for class 1: x w + b; for the network
    (x [N, 2]), x is replaced by its hidden units."""
    if "w" in params:
        return x @ params["w"] + params["b"]
    return network(len(params["dense1"]["bias"])).apply({"params": params}, x)[:, 0]


def correct(params, x, y):
    """The parameters after one example x [2] of class y: w += eta (y - step(w x + b)) x with eta = 1 (Rosenblatt 1958,
    "The perceptron"). Starting from zero weights, a different eta only scales them; the boundary stays the same."""
    error = y - step(score(params, x))
    return {"w": params["w"] + error * x, "b": params["b"] + error}


def descend(params, x_N2, y_N, *, rate: float = 1.0):
    """The parameters after one step of gradient descent on the mean cross-entropy of logistic regression. The explicit
    gradient is the perceptron rule averaged over all points, with a sigmoid instead of the step."""
    error = y_N - jax.nn.sigmoid(score(params, x_N2))
    w = params["w"] + rate * error @ x_N2 / len(y_N)
    return {"w": w, "b": params["b"] + rate * error.mean()}


@functools.partial(jax.jit, static_argnames=("method", "steps", "hidden"))
def fit(key, x_N2, y_N, *, method: str, steps: int, hidden: int):
    """The parameters after `steps` passes over the points. The perceptron processes them one at a time, in a new random
    order in each pass; for the other methods a pass is one full-batch step."""
    zero = {"w": jnp.zeros(2), "b": jnp.zeros(())}
    if method == "perceptron":
        order = jax.vmap(lambda key: jax.random.permutation(key, len(y_N)))(jax.random.split(key, steps)).reshape(-1)
        return jax.lax.scan(lambda params, i: (correct(params, x_N2[i], y_N[i]), None), zero, order)[0]
    if method == "logistic":
        return jax.lax.fori_loop(0, steps, lambda _, params: descend(params, x_N2, y_N), zero)
    optimizer = optax.adam(0.05)
    params, labels = network(hidden).init(key, x_N2)["params"], y_N.astype(jnp.int32)

    def one_step(_, carry):
        params, state = carry
        gradients = jax.grad(lambda params: losses.cross_entropy(score(params, x_N2)[:, None], labels).mean())(params)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(0, steps, one_step, (params, optimizer.init(params)))[0]
