"""The tasks whose training steps the benchmarks measure, on images that need no preparation."""

from models import dcgan
from train import optimizers
from train.task import Task
from train.tasks import classification, gan, segmentation


def sgd():
    return optimizers.create("sgd", lambda step: 0.01, momentum=0.9, nesterov=False, weight_decay=0.0)


def _unchanged(images, keys=None):
    del keys
    return images


def _names(classes: int) -> tuple[str, ...]:
    return tuple(map(str, range(classes)))


def classifier(
    model, image_shape, classes: int, *, train_prepare=_unchanged, axis: str | None = None, dtype: str | None = None
) -> Task:
    return classification.create(
        model=model,
        optimizer=sgd(),
        image_shape=image_shape,
        class_names=_names(classes),
        train_prepare=train_prepare,
        eval_prepare=_unchanged,
        axis=axis,
        dtype=dtype,
    )


def segmenter(model, image_shape, classes: int, *, axis: str | None = None, dtype: str | None = None) -> Task:
    """With equal weights of all classes."""
    return segmentation.create(
        model=model,
        optimizer=sgd(),
        image_shape=image_shape,
        class_names=_names(classes),
        class_weights=(1.0,) * classes,
        train_prepare=lambda images, labels, keys: (images, labels),
        eval_prepare=_unchanged,
        axis=axis,
        dtype=dtype,
    )


def generator(model, image_shape, *, axis: str | None = None, dtype: str | None = None) -> Task:
    """DCGAN with its optimizer, on images in [-1, 1]; it has no scores, so it can't be evaluated."""
    return gan.create(
        model=model,
        optimizer=optimizers.create("adam", lambda step: 0.0002, momentum=0.5, nesterov=False, weight_decay=0.0),
        image_shape=image_shape,
        form=gan.Form(_unchanged, _unchanged, dcgan.latents),
        scorer=None,
        ema=0.0,
        axis=axis,
        dtype=dtype,
    )
