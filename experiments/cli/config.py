"""The configuration of the commands that train: one frozen dataclass per command, one field per flag.

To add a flag, add a field here. Fields marked `network` are passed to the network as options, see models.create.
"""

import dataclasses

from experiments.cli.options import option, override

TTA = ("none", "flip", "flip_shift", "ten_view")
SEEDS = f"[0, {2**32 - 1}]"
# Upper bounds beyond any practical use: larger values would exhaust memory or trace for hours before they fail.
SIDES = "[1, 16384]"
MOST_LAYERS = "[1, 10000]"


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The run"""

    workdir: str = option(
        None,
        "Folder of the run. Repeat the command to resume.",
        needed="the folder of the run",
        resumable=True,
        path=True,
    )
    steps: int | None = option(None, "Training steps; overrides --epochs.", f"[1, {2**31 - 1}]")
    epochs: float | None = option(
        None, "Epochs, instead of --steps; 10 in commands without a default for either.", "(0, inf)"
    )
    seed: int = option(0, "Seed of initialization, data order, augmentation and dropout.", SEEDS)
    init_from: str | None = option(
        None,
        "Workdir whose weights initialize the run; in classify and segment, a run on other classes gets a new head.",
        path=True,
    )
    eval_split: str | None = option(
        None, "Split to evaluate on during the run. Default: val or validation, else test.", resumable=True
    )
    val_fraction: float = option(
        0.0, "Fraction of each class's training images to hold out as the split val; 0: none.", "[0, 1)"
    )
    test_fraction: float = option(
        0.0, "Fraction of each class's training images to hold out as the split test; 0: none.", "[0, 1)"
    )
    eval_every: int = option(0, "Steps between evaluations; 0: a tenth of the run.", "[0, inf)")
    log_every: int = option(10, "Steps between rows of metrics.csv.", "[1, inf)")
    patience: int = option(
        0, "Stop after this many evaluations without a new best score on the validation split; 0: never.", "[0, inf)"
    )
    save_every: int = option(0, "Steps between checkpoints; 0: after each evaluation only.", "[0, inf)")
    keep: int = option(
        2, "Newest checkpoints to keep, besides the best one on a validation split.", "[1, inf)", resumable=True
    )
    dry_run: bool = option(
        False,
        "Check all flags and trace a training step at full size, then run two steps, an evaluation and a save with a "
        "small batch. All outputs are discarded.",
        resumable=True,
    )
    dry_run_data: bool = option(False, "With --dry_run: use random images instead of the data set.", resumable=True)
    profile_steps: str | None = option(
        None,
        "A:B traces training steps A to B - 1, counted from 0, for XProf; written to W/profile. At most 1,000 steps.",
        resumable=True,
    )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer"""

    batch_size: int = option(128, "Global batch size.", f"[1, {2**31 - 1}]")
    learning_rate: float = option(0.1, "Peak learning rate of the schedule.", "(0, inf)")
    optimizer: str = option("sgd", "Optimizer.", choices=("sgd", "adam", "adamw", "muon"))
    momentum: float = option(0.9, "Momentum of sgd; beta1 of adam and adamw.", "[0, 1)")
    nesterov: bool = option(False, "Use Nesterov momentum in sgd.")
    weight_decay: float = option(
        0.0,
        "Weight decay. sgd, adam: L2 regularization, added to the gradient. adamw, muon: decoupled; the update also "
        "subtracts learning rate x decay x weight.",
        "[0, inf)",
    )
    clip_norm: float = option(0.0, "Clip the gradient to this global norm; 0: no clipping.", "[0, inf)")
    schedule: str = option("constant", "Learning-rate schedule.", choices=("constant", "step", "cosine", "one_cycle"))
    drops: tuple[float, ...] = option(
        (0.5, 0.75), "Schedule step: fractions of the run after which the learning rate drops.", "(0, 1)"
    )
    drop_factor: float = option(10.0, "Schedule step: divisor of the learning rate at each drop.", "(1, inf)")
    parameter_groups: str = option(
        "none",
        "author: learning rate and weight decay per parameter as set by the network's author; for alexnet_owt also the "
        "author's initial weights.",
        choices=("none", "author"),
    )
    warmup_steps: int = option(0, "Steps of linear learning-rate warmup.", "[0, inf)")


@dataclasses.dataclass(frozen=True)
class DeviceConfig:
    """Devices and precision"""

    devices: int | None = option(
        None,
        "Number of devices; simulated on a CPU. Default: all accelerators, or 1.",
        "[1, inf)",
        resumable=True,
    )
    dtype: str = option(
        "float32", "Data type of the computation; parameters are float32.", choices=("float32", "bfloat16")
    )
    cpu_kernels: bool = option(
        True, "Use the C kernels on CPUs; --nocpu_kernels uses XLA for all operations.", resumable=True
    )
    coordinator_address: str | None = option(
        None, "Multi-process: HOST:PORT of the first process. Default: from the launcher.", resumable=True
    )
    num_processes: int | None = option(None, "Multi-process: number of processes.", resumable=True)
    process_id: int | None = option(None, "Multi-process: index of this process, from 0.", resumable=True)
    deterministic: bool = option(
        False,
        "Make runs on GPUs bit-identical with slower, deterministic algorithms; runs on CPUs always are.",
        resumable=True,
    )


@dataclasses.dataclass(frozen=True)
class TrainingConfig(DeviceConfig, OptimizerConfig, RunConfig):
    """Data folder"""

    data_dir: str | None = option(
        None,
        "Folder of the data set; docs/data.md describes its layout for each --dataset.",
        resumable=True,
        path=True,
    )


@dataclasses.dataclass(frozen=True)
class BatchNormConfig(TrainingConfig):
    """Batch norm"""

    sync_bn: bool = option(True, "Compute batch-norm statistics over the global batch.")


@dataclasses.dataclass(frozen=True)
class FineTuningConfig:
    """Fine-tuning"""

    freeze: str = option(
        "none",
        "With --init_from: backbone trains only the head, the weights that depend on the number of classes (a linear "
        "probe); the network runs in evaluation mode.",
        choices=("none", "backbone"),
    )
    backbone_rate: float = option(
        1.0, "With --init_from: factor of the learning rate of all weights except the head.", "(0, 1]"
    )


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """The network"""

    model: str = option(
        "cnn",
        "Network, such as perceptron, logistic, mlp, lenet, cnn, lstm, vit_tiny, dcnn, densenet, cifar_resnet20; for "
        "ImageNet alexnet_owt, vgg19, resnet50, densenet121. models/README.md lists all.",
    )
    hidden: tuple[int, ...] | None = option(
        None, "mlp, rnn, lstm, gru: sizes of the hidden layers, such as 256,128.", "[1, 1000000]", network=True
    )
    activation: str | None = option(
        None,
        "mlp, lenet: tanh, sigmoid, relu, rectified_tanh, leaky_relu or gelu (its tanh approximation).",
        network=True,
    )
    slope: float | None = option(None, "Slope of leaky_relu for x < 0.", "(-inf, inf)", network=True)
    depth: int | None = option(
        None, "densenet: depth, 3N + 4, or 6N + 4 with --bottleneck; default 40.", MOST_LAYERS, network=True
    )
    blocks: int | None = option(
        None,
        "densenet: dense blocks, default 3; vit_tiny: encoder blocks, default 4.",
        MOST_LAYERS,
        network=True,
    )
    growth_rate: int | None = option(None, "densenet: channels each layer adds; default 12.", MOST_LAYERS, network=True)
    bottleneck: bool | None = option(None, "densenet: 1x1 convolutions before the 3x3 ones.", network=True)
    compression: float | None = option(
        None, "densenet: fraction of the channels that a transition keeps; default 1.", "(0, 1]", network=True
    )
    dropout: float | None = option(None, "Dropout rate.", "[0, 1)", network=True)
    dropout_after: bool | None = option(
        None, "alexnet_owt: apply dropout after fc6 and fc7, as the author does.", network=True
    )
    local_response_norm: bool | None = option(None, "alexnet_owt: the author's normalization layers.", network=True)
    v1_5: bool | None = option(
        None, "resnet50, 101, 152: stride in the block's 3x3 instead of the first 1x1 convolution.", network=True
    )


@dataclasses.dataclass(frozen=True)
class ClassifyConfig(FineTuningConfig, BatchNormConfig, NetworkConfig):
    """Classification"""

    dataset: str = option(
        "mnist5k",
        "Data set, such as mnist5k, fashion_mnist, cifar10, folder, or tfds:NAME[/CONFIG][:VERSION], prepared by tfds "
        "with --file_format=array_record in --data_dir (default ~/tensorflow_datasets). docs/data.md lists all.",
    )
    image_size: int | None = option(
        None,
        "folder, tfds: side in pixels of the network's input, cropped from images of any size; default 224 if an "
        "image side exceeds 64 pixels, else the original size.",
        SIDES,
    )
    fit: str = option(
        "crop",
        "folder, tfds, with --image_size or large images: how images that are not square become square. crop: the "
        "central square; pad: the whole image, with the rest in its mean color; squash: the whole image, stretched.",
        choices=("crop", "pad", "squash"),
    )
    train_batches: str | None = option(None, "cifar10: archive files to train on, such as 1-4; the rest become val.")
    positive: str | None = option(None, "Binary task: the class with label 1.")
    negative: str | None = option(None, "Binary task: the class with label 0; default: all others.")
    skip_corrupt: bool = option(False, "folder, tfds: skip images that can't be decoded instead of stopping.")
    augment: str = option(
        "none",
        "Augmentation. digits: slight random shifts, rotations and scalings; flip_shift: random flips and shifts; "
        "crop24: random flips and windows of 24x24 pixels. For images cropped to --image_size: resized_crop takes 8 to "
        "100 % of the area, crop takes a random window from a square 8/7 as large; both flip at random.",
        choices=("none", "digits", "flip_shift", "crop24", "resized_crop", "crop"),
    )
    shift: int = option(4, "flip_shift: largest shift in pixels.", "[0, inf)")
    shift_mode: str = option("zero", "flip_shift: padding mode.", choices=("zero", "reflect"))
    cutout: int = option(0, "flip_shift: side in pixels of the cutout square; 0: no cutout.", "[0, inf)")
    alternate_flip: bool = option(False, "flip_shift: flip in-memory images every other epoch, not at random.")
    colour_noise: float = option(
        0.0, "Standard deviation of PCA color augmentation; Krizhevsky et al. 2012 use 0.1.", "[0, inf)"
    )
    mixup: float = option(
        0.0,
        "mixup: average pairs of images and their labels with a weight from Beta(X, X); 0: none. With --cutmix too, "
        "each image uses one of the two at random.",
        "[0, inf)",
    )
    cutmix: float = option(
        0.0, "CutMix: paste a box of another image, its area from Beta(X, X), and mix the labels; 0: none.", "[0, inf)"
    )
    tta: str = option("none", "Test-time augmentation: average the probabilities of these views.", choices=TTA)
    label_smoothing: float = option(0.0, "Fraction of the target distributed over all classes.", "[0, 1)")
    ema: float = option(
        0.0,
        "Decay of the exponential moving average of weights and batch statistics, used for evaluation; smaller in the "
        "first steps; 0: no average.",
        "[0, 1)",
    )
    early_size: int | None = option(None, "Side in pixels to downscale the images of the first steps to.", SIDES)
    early_share: float = option(0.5, "Fraction of the run with images downscaled to --early_size.", "(0, 1]")
    gradients: str = option(
        "autodiff",
        "backpropagation: the lecture's explicit equations; for perceptron, mlp and lenet.",
        choices=("autodiff", "backpropagation"),
    )
    accumulate: int = option(1, "Number of micro-batches for gradient accumulation, to save memory.", "[1, inf)")
    remat: bool = option(False, "Save memory: store only outputs of matmuls and convolutions, recompute the rest.")
    parallelism: str = option(
        "data",
        "hybrid: shard the dense layers of alexnet_owt or vggN over the devices by columns.",
        choices=("data", "hybrid"),
    )
    fc_passes: int = option(1, "hybrid: passes of the dense layers, each over a part of the batch.", "[1, inf)")
    fc_update: str = option(
        "accumulate",
        "hybrid: update the dense layers once per step, or, with --optimizer=sgd, after each pass; the latter "
        "multiplies the learning rate of the convolutions by --fc_passes.",
        choices=("accumulate", "each_pass"),
    )


@dataclasses.dataclass(frozen=True)
class SegmentConfig(FineTuningConfig, BatchNormConfig):
    """Segmentation"""

    batch_size: int = override(TrainingConfig, "batch_size", 16)
    epochs: float | None = override(TrainingConfig, "epochs", 7.0)
    schedule: str = override(TrainingConfig, "schedule", "one_cycle")
    optimizer: str = override(TrainingConfig, "optimizer", "muon")
    learning_rate: float = override(TrainingConfig, "learning_rate", 0.03)
    model: str = option("segnet_small", "Network.", choices=("segnet_small", "segnet_basic", "segnet"))
    decoder: str | None = option(
        None,
        "Upsampling of the decoders: the encoder's pooling indices (indices_add: plus its feature maps), bilinear "
        "interpolation, or transposed convolutions. Default: indices; segnet_small: indices_add.",
        choices=("indices", "bilinear", "transposed", "indices_add"),
        network=True,
    )
    dataset: str = option("digit_scenes", "Data set.", choices=("digit_scenes", "camvid", "masks"))
    image_size: str | None = option(None, "camvid, masks: HEIGHTxWIDTH to resize images to; default: original size.")
    crop: str | None = option(None, "camvid, masks: HEIGHTxWIDTH of random training crops.")
    flip: bool = option(True, "camvid, masks: flip training images horizontally at random.")
    class_weights: str | None = option(
        None,
        "Class weights in the loss: published: SegNet's (default for camvid); computed: median frequency balancing "
        "over the training images (default for masks); none. Default for digit_scenes: 0.3 for the background, 1 for "
        "the digits.",
        choices=("published", "computed", "none"),
    )
    exact_batch_norm: bool = option(
        False, "Precise BN: statistics over the training images before each evaluation, instead of running averages."
    )


@dataclasses.dataclass(frozen=True)
class GenerateConfig(BatchNormConfig):
    """Generation"""

    batch_size: int = override(TrainingConfig, "batch_size", 32)
    optimizer: str = override(TrainingConfig, "optimizer", "adam")
    learning_rate: float = override(TrainingConfig, "learning_rate", 0.0002)
    momentum: float = override(TrainingConfig, "momentum", 0.5)
    steps: int | None = override(TrainingConfig, "steps", 6000)
    model: str = option("dcgan", "Network.", choices=("dcgan",))
    dataset: str = option("mnist5k", "Data set, such as mnist5k, cifar10, folder or tfds:NAME; docs/data.md lists all.")
    image_size: int | None = option(
        None, "Side in pixels of the generated images, 32 or 64; default: 32 for images up to 32 pixels, else 64."
    )
    skip_corrupt: bool = option(False, "folder, tfds: skip images that can't be decoded instead of stopping.")
    authors: bool = option(False, "The authors' networks: 5x5 kernels, 128 channels, uniform latent vectors.")
    conditional: bool = option(False, "Class-conditional networks.")
    ema: float = option(
        0.999,
        "Decay of the exponential moving average of the generator's weights, used for sampling; 0: no average.",
        "[0, 1)",
    )


@dataclasses.dataclass(frozen=True)
class ReconstructConfig(TrainingConfig):
    """Reconstruction"""

    batch_size: int = override(TrainingConfig, "batch_size", 100)
    optimizer: str = override(TrainingConfig, "optimizer", "adam")
    learning_rate: float = override(TrainingConfig, "learning_rate", 0.002)
    schedule: str = override(TrainingConfig, "schedule", "cosine")
    steps: int | None = override(TrainingConfig, "steps", 3000)
    model: str = option("autoencoder", "Network.", choices=("autoencoder", "denoising", "sparse", "variational"))
    code: int | None = option(
        None,
        "Number of code units or latent variables; default 32 (denoising and sparse: 256, variational: 20).",
        "[1, 1000000]",
        network=True,
    )
    hidden: tuple[int, ...] | None = option(
        None,
        "Sizes of the encoder's hidden layers; the decoder uses them in reverse order. Default: 256; denoising: none.",
        "[1, 1000000]",
        network=True,
    )
    noise: float = option(0.5, "denoising: probability that a pixel is masked.", "(0, 1)")
    penalty: float = option(0.3, "sparse: weight of the code's sum in the loss.", "[0, inf)")
    dataset: str = option(
        "mnist5k",
        "Data set, such as mnist5k, or folder or tfds:NAME with images of one size; docs/data.md lists all.",
    )
    skip_corrupt: bool = option(False, "folder, tfds: skip images that can't be decoded instead of stopping.")
