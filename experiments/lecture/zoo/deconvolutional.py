"""The zoo's deconvolutional network: reconstructs images from a trained classifier's features."""

import functools

import flax.linen as nn
import jax
import numpy as np

from experiments.lecture import topic
from experiments.lecture.topic import mean_and_std
from experiments.lecture.zoo import pixels
from experiments.lecture.zoo.card import Card, Findings
from experiments.lecture.zoo.drawing import Diagram, Layer
from experiments.reporting.figures_rows import Row, image_rows
from models.cnn import CNN
from models.deconvolutional import UpConvolutions
from train.tasks import reconstruction

LAYERS = ("conv1", "conv2", "conv3", "dense", "logits")
NEXT = {
    "conv2": "conv1",
    "conv3": "conv2",
    "dense": "conv3",
    "logits": "dense",
}  # Each layer and the layer whose features it reads.


def features(images, *, model, variables):
    """The features of a CNN by layer, as the input of the next layer, after pooling and ReLU; and its logits."""
    found = {}

    def record(call, arguments, keywords, context):
        if context.method_name == "__call__" and context.module.name in NEXT:
            found[NEXT[context.module.name]] = arguments[0]
        return call(*arguments, **keywords)

    with nn.intercept_methods(record):
        logits = model.apply(variables, images, train=False)
    return found | {"logits": logits}


def class_means(digits: pixels.Digits, predicted: np.ndarray) -> np.ndarray:
    """The mean training digit of each of the classes `predicted` [N], as pixels [N, 784]."""
    train = pixels.flat(digits.train)
    return np.stack([train[digits.train_labels == label].mean(0) for label in range(10)])[predicted]


def run(seed: int, *, classifier_steps=300, steps=400, widths=(16, 32, 32), width=32) -> dict:
    digits = pixels.digits()
    classifier = CNN(num_classes=10, widths=widths)
    names = tuple(map(str, range(10)))
    task = topic.create(
        classifier,
        pixels.annealed_adam(2e-3, classifier_steps),
        image_shape=pixels.SHAPE,
        class_names=names,
        prepare=reconstruction.pixels,
    )
    state = pixels.fit(task, digits.train, digits.train_labels, steps=classifier_steps, seed=seed)
    logits = np.asarray(jax.jit(task.predict_step)(state, {"image": digits.test}))
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    network = UpConvolutions(functools.partial(features, model=classifier, variables=variables), width=width)
    inverse = reconstruction.create(
        model=network,
        optimizer=pixels.annealed_adam(2e-3, steps),
        image_shape=pixels.SHAPE,
        loss=reconstruction.inversion_loss,
        terms=tuple(f"{layer}_{name}" for layer in LAYERS for name in ("squared_error", "psnr")),
    )
    trained = pixels.fit(inverse, digits.train, digits.train_labels, steps=steps, seed=seed)
    chosen = pixels.one_of_each(digits.test_labels)
    outputs = jax.jit(inverse.predict_step)(trained, {"image": digits.test[chosen]})
    clean, train = pixels.flat(digits.test), pixels.flat(digits.train)
    shapes = jax.eval_shape(network.features, np.zeros((1, *pixels.SHAPE), np.float32))
    return {
        "accuracy": float((logits.argmax(1) == digits.test_labels).mean()),
        "network": pixels.evaluated(inverse, trained, digits.test),
        "sizes": {layer: int(np.prod(shapes[layer].shape)) for layer in LAYERS},
        "mean": pixels.errors(np.broadcast_to(train.mean(0), clean.shape), clean),
        "class_mean": pixels.errors(class_means(digits, logits.argmax(1)), clean),
        "digits": pixels.as_lists(clean[chosen]),
        "images": {layer: pixels.as_lists(outputs[layer]) for layer in LAYERS},
        "class_mean_images": pixels.as_lists(class_means(digits, logits[chosen].argmax(1))),
    }


def report(results: list[dict]) -> Findings:
    def spread(name, key):
        return mean_and_std([result[name][key] for result in results])

    first = results[0]
    numbers = {f"{layer}_psnr": spread("network", f"{layer}_psnr") for layer in LAYERS}
    numbers |= {f"{layer}_squared_error": spread("network", f"{layer}_squared_error") for layer in LAYERS}
    numbers["classifier_accuracy"] = mean_and_std([result["accuracy"] for result in results])
    baseline = {"logits_psnr": spread("class_mean", "psnr")}
    baseline["logits_squared_error"] = spread("class_mean", "squared_error")
    baseline["psnr_of_mean_digit"] = spread("mean", "psnr")
    psnr = [numbers[f"{layer}_psnr"]["mean"] for layer in LAYERS]
    falls = all(a > b for a, b in zip(psnr, psnr[1:], strict=False))
    class_mean = baseline["logits_psnr"]["mean"]
    keeps = "contain more information than the class" if psnr[-1] > class_mean else "give no more than the class"
    text = (
        f"From the features of a classifier ({100 * numbers['classifier_accuracy']['mean']:.1f} % test accuracy) test "
        f"digits are reconstructed with a peak signal-to-noise ratio (PSNR) of {psnr[0]:.1f} dB after the first layer "
        f"and {psnr[-1]:.1f} dB from "
        f"the ten logits; the PSNR {'decreases with each layer' if falls else 'does not decrease at every layer'}. The "
        f"mean digit of the predicted class has {class_mean:.1f} dB, so here the logits {keeps}."
    )
    rows = [Row("test digits", first["digits"])]
    for layer, value in zip(LAYERS, psnr, strict=True):
        label = f"from {layer}, {first['sizes'][layer]:,} numbers: {value:.1f} dB"
        rows.append(Row(label, first["images"][layer]))
    rows.append(Row(f"mean digit of the predicted class: {class_mean:.1f} dB", first["class_mean_images"]))
    caption = "Test digits and reconstructions from a classifier's layers by up-convolutional networks; seed 0"
    figure = image_rows(f"PSNR: {psnr[0]:.0f} dB from the first layer, {psnr[-1]:.0f} dB from the logits", rows)
    return Findings(text, numbers, baseline, figure, caption, "mean digit of the class")


FORMULA = r"\min_\theta \sum_x \lVert x - d_\theta(f_l(x)) \rVert^2"

CARDS = (
    Card(
        name="deconvolutional",
        title="Deconvolutional network (DN)",
        diagram=Diagram(
            (
                Layer("input", 2),
                Layer("hidden", 3),
                Layer("kernel", 4, "near"),
                Layer("pool", 5, "near"),
                Layer("output", 5, "one"),
            )
        ),
        idea="A convolutional network in reverse, from features to an image. Trained to invert a classifier, it shows "
        "how much information about a digit each of the classifier's layers keeps.",
        formula=FORMULA,
        rule="Gradient descent (Adam) on the squared error between an image and its reconstruction from the features "
        "of one layer of a trained classifier, whose weights are fixed.",
        reference="Zeiler, Krishnan, Taylor & Fergus, 2010, “Deconvolutional networks”; Dosovitskiy & Brox, 2015, "
        "“Inverting visual representations with convolutional networks”",
        run=run,
        report=report,
    ),
)
