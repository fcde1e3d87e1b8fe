"""The zoo's plain, denoising and sparse autoencoders; the variational autoencoder is in variational.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lecture.topic import mean_and_std
from experiments.lecture.zoo import pixels
from experiments.lecture.zoo.card import Card, Findings
from experiments.lecture.zoo.drawing import Diagram, Layer
from experiments.reporting.figures_rows import Row, image_rows
from models.autoencoder import Autoencoder, DenoisingAutoencoder, SparseAutoencoder
from models.layers import row_keys
from train.tasks import reconstruction

CODE, RATE = 32, 0.5  # Units of the plain autoencoder's code; probability of masking a pixel for the denoising one.
UNITS, PENALTY = 256, 0.3  # Units of the other codes; weight of the L1 penalty on the sparse code.
SHOWN = 20  # Filters per figure.


def _task(model, loss, steps: int, terms: tuple[str, ...] = ()):
    optimizer = pixels.annealed_adam(2e-3, steps)
    terms = ("squared_error", "psnr", *terms)
    return reconstruction.create(model=model, optimizer=optimizer, image_shape=pixels.SHAPE, loss=loss, terms=terms)


def _outputs(task, state, images: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(task.predict_step)(state, {"image": images}))


def _spread(results, name: str, key: str) -> dict[str, float]:
    return mean_and_std([result[name][key] for result in results])


def pca_errors(digits: pixels.Digits, components: int) -> dict:
    """The errors of the test digits' projections onto the training digits' principal components; `images` are the
    reconstructions of one test digit per class."""
    from sklearn.decomposition import PCA

    train, test = pixels.flat(digits.train), pixels.flat(digits.test)
    found = PCA(components, svd_solver="covariance_eigh").fit(train)
    output = found.inverse_transform(found.transform(test))
    shown = output[pixels.one_of_each(digits.test_labels)]
    return pixels.errors(output, test) | {"images": pixels.as_lists(shown)}


# --- Autoencoder


def run_autoencoder(seed: int, *, steps: int = 3000, code: int = CODE, hidden: int = 256) -> dict:
    digits = pixels.digits()
    task = _task(Autoencoder(code=code, hidden=(hidden,)), reconstruction.squared_loss, steps)
    state = pixels.fit(task, digits.train, digits.train_labels, steps=steps, seed=seed)
    shown = digits.test[pixels.one_of_each(digits.test_labels)]
    return {
        "code": code,
        "network": pixels.evaluated(task, state, digits.test),
        "training": pixels.evaluated(task, state, digits.train),
        "pca": pca_errors(digits, code),
        "digits": pixels.as_lists(shown / 255),
        "images": pixels.as_lists(_outputs(task, state, shown)),
    }


def report_autoencoder(results: list[dict]) -> Findings:
    keys, first, code = ("squared_error", "psnr"), results[0], results[0]["code"]
    numbers = {key: _spread(results, "network", key) for key in keys}
    numbers["training_squared_error"] = _spread(results, "training", "squared_error")
    baseline = {key: _spread(results, "pca", key) for key in keys}
    error, linear = numbers["squared_error"]["mean"], baseline["squared_error"]["mean"]
    gain = numbers["psnr"]["mean"] - baseline["psnr"]["mean"]
    relation = "less than" if error < linear else "not less than"
    text = (
        f"It reconstructs test digits from {code} numbers with a mean squared error of {error:.4f} per pixel, "
        f"{relation} the {linear:.4f} of PCA with {code} components ({gain:+.1f} dB). On the training digits the "
        f"error is {numbers['training_squared_error']['mean']:.4f}."
    )
    title = f"{code} numbers per digit: error {error:.4f}, PCA's {linear:.4f}"
    rows = [
        Row("test digits", first["digits"]),
        Row(f"autoencoder, code of {code} units", first["images"]),
        Row(f"PCA, {code} components", first["pca"]["images"]),
    ]
    caption = "Test digits and their reconstructions by the autoencoder and by PCA from codes of the same size; seed 0"
    return Findings(text, numbers, baseline, image_rows(title, rows), caption, f"PCA, {code} components")


# --- Denoising autoencoder


def _adjacent_correlation(filters: np.ndarray) -> float:
    """The mean correlation of horizontally and vertically adjacent weights in filters [N, 28, 28]: 0 for noise."""
    pairs = ((f[:, :-1], f[:, 1:]) for one in filters for f in (one, one.T))
    return float(np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs]))


def _linear_denoiser(digits: pixels.Digits, noisy_train: np.ndarray, noisy_test: np.ndarray) -> np.ndarray:
    """Denoises test digits uint8 [N, 28, 28, 1] with a linear map fitted to the training digits; returns [N, 784]."""
    from sklearn.linear_model import Ridge

    return Ridge(alpha=10.0).fit(pixels.flat(noisy_train), pixels.flat(digits.train)).predict(pixels.flat(noisy_test))


def run_denoising(seed: int, *, steps: int = 1500, code: int = UNITS, rate: float = RATE) -> dict:
    digits = pixels.digits()
    mask = jax.jit(functools.partial(reconstruction.masked, rate=rate))

    def noisy(images, key):
        return np.asarray(mask(images, row_keys(key, jnp.arange(len(images)))))

    clean, masked = pixels.flat(digits.test), noisy(digits.test, jax.random.key(reconstruction.EVAL_SEED))
    linear = _linear_denoiser(digits, noisy(digits.train, jax.random.key(seed)), masked)
    chosen = pixels.one_of_each(digits.test_labels)
    found: dict = {
        "rate": rate,
        "noisy": pixels.errors(pixels.flat(masked), clean),
        "linear": pixels.errors(linear, clean) | {"images": pixels.as_lists(linear[chosen])},
        "digits": pixels.as_lists(clean[chosen]),
        "noisy_images": pixels.as_lists(masked[chosen] / 255),
    }
    losses = {
        "denoising": functools.partial(reconstruction.denoising_loss, rate=rate),
        "plain": reconstruction.squared_loss,
    }
    for name, loss in losses.items():
        task = _task(DenoisingAutoencoder(code=code), loss, steps)
        state = pixels.fit(task, digits.train, digits.train_labels, steps=steps, seed=seed)
        output = _outputs(task, state, masked).reshape(clean.shape)
        filters = np.asarray(state.params["encoder_0"]["kernel"]).T.reshape(-1, 28, 28)
        strongest = np.argsort(-np.linalg.norm(filters, axis=(1, 2)))[:SHOWN]
        found[name] = pixels.errors(output, clean) | {
            "adjacent_correlation": _adjacent_correlation(filters),
            "images": pixels.as_lists(output[chosen]),
            "filters": pixels.as_lists(filters[strongest], signed=True),
        }
    return found


def report_denoising(results: list[dict]) -> Findings:
    keys, first = ("squared_error", "psnr"), results[0]
    numbers = {key: _spread(results, "denoising", key) for key in (*keys, "adjacent_correlation")}
    numbers["psnr_gain"] = mean_and_std([r["denoising"]["psnr"] - r["noisy"]["psnr"] for r in results])
    baseline = {key: _spread(results, "linear", key) for key in keys}
    baseline |= {
        f"{key}_trained_without_noise": _spread(results, "plain", key) for key in (*keys, "adjacent_correlation")
    }
    baseline["psnr_of_noisy_digits"] = _spread(results, "noisy", "psnr")
    gain, own, linear = numbers["psnr_gain"]["mean"], numbers["psnr"]["mean"], baseline["psnr"]["mean"]
    plain, smooth = baseline["psnr_trained_without_noise"]["mean"], numbers["adjacent_correlation"]["mean"]
    rough, share = baseline["adjacent_correlation_trained_without_noise"]["mean"], f"{100 * first['rate']:.0f} %"
    smoother = "smoother" if smooth > rough else "not smoother"
    text = (
        f"With {share} of the pixels set to 0 it increases the peak signal-to-noise ratio (PSNR) of test digits by "
        f"{gain:.1f} dB to {own:.1f} dB; the best linear map reaches {linear:.1f} dB, and the same network trained "
        f"without noise {plain:.1f} dB. Its filters are {smoother} than without noise: the correlation of adjacent "
        f"weights is {smooth:.2f} instead of {rough:.2f}."
    )
    rows = [
        Row("test digits", first["digits"]),
        Row(f"{share} of the pixels masked", first["noisy_images"]),
        Row("denoising autoencoder", first["denoising"]["images"]),
        Row("best linear map", first["linear"]["images"]),
        Row("the same network, trained without noise", first["plain"]["images"]),
        Row("the strongest filters, trained with noise", first["denoising"]["filters"], signed=True),
        Row("the strongest filters, trained without noise", first["plain"]["filters"], signed=True),
    ]
    caption = "Test digits with masked pixels and their reconstructions; encoder weights, each on its own scale"
    figure = image_rows(f"Denoising: {gain:+.1f} dB; best linear map: {gain + linear - own:+.1f} dB", rows)
    return Findings(text, numbers, baseline, figure, caption, "best linear map")


# --- Sparse autoencoder


def run_sparse(seed: int, *, steps: int = 1500, code: int = UNITS, penalty: float = PENALTY) -> dict:
    digits = pixels.digits()
    chosen = pixels.one_of_each(digits.test_labels)
    found: dict = {"units": code, "digits": pixels.as_lists(digits.test[chosen] / 255)}
    for name, weight in {"sparse": penalty, "plain": 0.0}.items():
        model = SparseAutoencoder(code=code)
        task = _task(model, functools.partial(reconstruction.sparse_loss, penalty=weight), steps, ("active",))
        state = pixels.fit(task, digits.train, digits.train_labels, steps=steps, seed=seed)
        variables = {"params": state.params}
        codes = np.asarray(model.apply(variables, reconstruction.pixels(digits.test), method="encode"))
        parts = np.asarray(model.apply(variables, method="parts"))
        busiest = np.argsort(-(codes > 0).mean(0), kind="stable")[: 2 * SHOWN]
        found[name] = pixels.evaluated(task, state, digits.test) | {
            "unused": float((codes == 0).all(0).mean()),
            "images": pixels.as_lists(_outputs(task, state, digits.test[chosen])),
            "parts": pixels.as_lists(parts[busiest], signed=True),
        }
    count = max(1, round(code * found["sparse"]["active"]))
    return found | {"pca": pca_errors(digits, count) | {"components": count}}


def report_sparse(results: list[dict]) -> Findings:
    keys, first = ("active", "unused", "squared_error", "psnr"), results[0]
    numbers = {key: _spread(results, "sparse", key) for key in keys}
    baseline = {key: _spread(results, "plain", key) for key in keys}
    baseline["pca_components"] = _spread(results, "pca", "components")
    baseline["pca_squared_error"] = _spread(results, "pca", "squared_error")
    active, without = (100 * values["active"]["mean"] for values in (numbers, baseline))
    error, linear = numbers["squared_error"]["mean"], baseline["pca_squared_error"]["mean"]
    count = first["units"] * active / 100
    relation = "less than" if error < linear else "not less than"
    text = (
        f"A test digit activates {active:.1f} % of the {first['units']} units, about {count:.0f}; without the penalty "
        f"{without:.0f} %. {100 * numbers['unused']['mean']:.0f} % of the units are never active. "
        f"The mean squared error is {error:.4f} per pixel, {relation} the {linear:.4f} of PCA with the same number of "
        "components as active units."
    )
    rows = [
        Row("test digits", first["digits"]),
        Row(f"sparse autoencoder, {active:.1f} % of the units active", first["sparse"]["images"]),
        Row(f"PCA, {first['pca']['components']} components", first["pca"]["images"]),
        Row("decoder weights of the most frequently active units", first["sparse"]["parts"], signed=True),
        Row("the same without penalty", first["plain"]["parts"][:SHOWN], signed=True),
    ]
    caption = "Reconstructions of test digits; contribution of a unit to the image (red: brighter, blue: darker)"
    title = f"{active:.1f} % of the units are active with a penalty, {without:.0f} % without"
    return Findings(text, numbers, baseline, image_rows(title, rows), caption, "without penalty")


ERROR = r"\min_\theta \sum_x \frac{1}{2} \lVert x - d(c(x)) \rVert^2"

CARDS = (
    Card(
        name="autoencoder",
        title="Autoencoder (AE)",
        diagram=Diagram((Layer("input", 4), Layer("hidden", 2), Layer("match", 4))),
        idea="The network has to reproduce its input, but all information passes through a layer with few units. So it "
        "learns a short code that keeps the important information about the images.",
        formula=ERROR,
        rule="Gradient descent (Adam) on the squared error between each image and its reconstruction.",
        reference="Bourlard & Kamp, 1988, “Auto-association by multilayer perceptrons and singular value "
        "decomposition”; Hinton & Salakhutdinov, 2006, “Reducing the dimensionality of data with neural networks”",
        run=run_autoencoder,
        report=report_autoencoder,
        command="python -m experiments.reconstruct --model=autoencoder --workdir=NEW",
    ),
    Card(
        name="denoising",
        title="Denoising autoencoder (DAE)",
        diagram=Diagram((Layer("noisy", 4), Layer("hidden", 2), Layer("match", 4))),
        idea="The network sees an image with missing pixels and has to output the complete one. Copying does not help, "
        "so it has to learn how pixels depend on each other.",
        formula=ERROR.replace("c(x)", r"c(\tilde{x})"),
        rule="Gradient descent (Adam) on the squared error between the clean image and the reconstruction of a noisy "
        "one; new noise is drawn in each step.",
        reference="Vincent, Larochelle, Bengio & Manzagol, 2008, “Extracting and composing robust features with "
        "denoising autoencoders”",
        run=run_denoising,
        report=report_denoising,
        command="python -m experiments.reconstruct --model=denoising --workdir=NEW",
    ),
    Card(
        name="sparse",
        title="Sparse autoencoder (SAE)",
        diagram=Diagram((Layer("input", 2), Layer("hidden", 5), Layer("match", 2))),
        idea="The code has many units, but each active unit adds a penalty to the loss. So each image is composed of a "
        "few parts out of a large learned dictionary.",
        formula=ERROR + r" + \lambda \sum_j c_j(x)",
        rule="Gradient descent (Adam) on the squared reconstruction error plus λ times the sum of the code's "
        "nonnegative values.",
        reference="Ranzato, Poultney, Chopra & LeCun, 2007, “Efficient learning of sparse representations with an "
        "energy-based model”",
        run=run_sparse,
        report=report_sparse,
        command="python -m experiments.reconstruct --model=sparse --workdir=NEW",
    ),
)
