"""Short training runs: golden losses after a few steps, and bounds on scores."""

import csv

import commands
import numpy as np
import pytest
from PIL import Image
from results import result

from experiments.setup import fid_classifier

DEMO = commands.ROOT / "experiments" / "recipes" / "demo.flags"
STEPS = 20

# For each command, the mean training loss of the first 20 steps and the test loss after them. They may change only with
# an intended change of initial weights, data order, augmentation, networks or numerics, which the commit must name.
# Never change them to silence a failure of unknown cause.
#     python -m pytest tests/test_end_to_end.py -k golden
# prints the new values. The values with the C kernels and with XLA's convolutions agree to 2e-4, because learning rates
# are low and SGD replaces Adam and Muon, which amplify rounding where gradients are small.
GOLDEN = {
    "classify": (2.114466, 1.617945),
    "segment": (1.263061, 1.239236),
    "generate": (2.079924, 1.789915),
    "reconstruct": (411.527909, 252.985984),
}
SGD = ["--optimizer=sgd", "--momentum=0.9"]
SHORT = {
    "classify": ["--model=lenet", "--augment=digits", "--learning_rate=0.01", "--batch_size=64", *SGD],
    "segment": ["--learning_rate=0.002", "--batch_size=4", *SGD],
    "generate": ["--learning_rate=0.0003", "--batch_size=16", "--conditional", "--optimizer=sgd"],
    "reconstruct": ["--model=variational", "--learning_rate=0.001", "--schedule=constant", *SGD],
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory, mnist5k):
    """A hundred digits as a folder of images, on which generate's FID classifier trains quickly."""
    place = tmp_path_factory.mktemp("digits")
    for split, count in (("train", 8), ("test", 2)):
        images, labels = mnist5k.splits[split]
        for digit, name in enumerate(mnist5k.class_names):
            (place / split / name).mkdir(parents=True)
            for i, image in enumerate(images[labels == digit][:count]):
                Image.fromarray(image[..., 0]).save(place / split / name / f"{i}.png")
    return place


@pytest.mark.parametrize(
    "command",
    ["classify", *(pytest.param(name, marks=pytest.mark.slow) for name in ("segment", "generate", "reconstruct"))],
)
def test_golden_losses(command, start, digits, tmp_path):
    data = ["--dataset=folder", f"--data_dir={digits}"] if command == "generate" else []
    often = [f"--steps={STEPS}", f"--log_every={STEPS}", f"--eval_every={STEPS}"]
    summary = result(start(command, f"--workdir={tmp_path}", *SHORT[command], *data, *often))
    row = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))[-1]
    found = float(row["train_loss"]), summary["loss"]
    assert found == pytest.approx(GOLDEN[command], rel=1e-3), f"{command}: {found}"


# The bounds on scores are at least four standard deviations from the mean over seeds. The learning rates are near the
# best for so few steps: runs with a tenth or ten times the learning rate miss the bounds.


@pytest.fixture(scope="module")
def optimized(environment):
    """An environment for commands with XLA's optimizations, which pay off in these longer runs."""
    return {name: value for name, value in environment.items() if name != commands.OPTIMIZATION}


@pytest.mark.slow
def test_classify_learns(start, optimized, mnist5k, tmp_path):
    run = [f"--flagfile={DEMO}", "--steps=60", "--learning_rate=0.3", "--eval_every=60"]
    summary = result(start("classify", f"--workdir={tmp_path / 'w'}", *run, environment=optimized))
    assert summary["accuracy"] > 0.95  # 0.962 ± 0.002; at a tenth of the learning rate 0.928, at ten times 0.78.

    images, labels = (part[:40] for part in mnist5k.splits["test"])  # predict prints class names.
    files = [tmp_path / f"{i}.png" for i in range(len(labels))]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image[..., 0]).save(file)
    done = start("predict", f"--workdir={tmp_path / 'w'}", *files, environment=optimized)
    named = [row["label"] for row in csv.DictReader(done.stdout.splitlines())]
    assert done.returncode == 0 and np.mean(np.array(named) == labels.astype(str)) > 0.8


@pytest.mark.slow
def test_segment_learns(start, optimized, tmp_path):
    run = ["--steps=160", "--learning_rate=0.06", "--eval_every=160"]
    summary = result(start("segment", f"--workdir={tmp_path / 'w'}", *run, environment=optimized))
    # 0.519 ± 0.014 and 0.953 ± 0.002; at a tenth of the learning rate 0.31 and 0.911, at ten times 0.19 and 0.906.
    assert summary["mean_iou"] > 0.45 and summary["global_accuracy"] > 0.94
    assert max(summary["iou"], key=summary["iou"].get) == "background"


@pytest.mark.slow
def test_reconstruct_learns(start, optimized, tmp_path):
    run = ["--steps=600", "--eval_every=600"]
    summary = result(start("reconstruct", f"--workdir={tmp_path / 'w'}", *run, environment=optimized))
    # 0.0142 ± 0.0001; at a tenth of the learning rate 0.040, at ten times 0.12. PCA of equal dimension has 0.0175.
    assert summary["squared_error"] < 0.016


@pytest.mark.slow
def test_generate_learns(start, environment, optimized, mnist5k, monkeypatch, tmp_path):
    run = ["--conditional", "--steps=150", "--learning_rate=0.001", "--eval_every=150"]
    summary = result(start("generate", f"--workdir={tmp_path / 'w'}", *run, environment=optimized))
    # 0.34, 10.7 ± 0.8 and 7.1 ± 0.3; at a tenth of the learning rate 47 and 1.5, at ten times 18 and 3.4.
    assert summary["floor"] < 1 < summary["classifier_fid"] < 14
    assert summary["inception_score"] > 5.5

    # Samples of a class resemble the test images of that class, by the features of the cached FID classifier.
    done = start("predict", f"--workdir={tmp_path / 'w'}", "--samples=200", environment=optimized)
    rows = list(csv.DictReader(done.stdout.splitlines()))
    made = np.stack([np.asarray(Image.open(row["file"]))[..., None] for row in rows])
    monkeypatch.setenv("XDG_CACHE_HOME", environment["XDG_CACHE_HOME"])
    features = fid_classifier.load(*mnist5k.splits["train"], len(mnist5k.class_names)).features
    tests, labels = mnist5k.splits["test"]
    samples, tests = (np.asarray(features(images)[0]) for images in (made, tests))
    nearest = ((samples[:, None] - tests[None]) ** 2).sum(-1).argmin(1)
    assert np.mean([row["class"] for row in rows] == labels[nearest].astype(str)) > 0.5
