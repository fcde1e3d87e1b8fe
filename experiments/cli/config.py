"""The configuration of the commands that train: one frozen dataclass a command, one field a flag.

A new flag is a new field here. Fields marked `network` reach the network as its options, see models.create.
"""

import dataclasses

from experiments.cli.options import option, override

TTA = ("none", "flip", "ten_view")
SEEDS = f"[0, {2**32 - 1}]"
# Beyond what any machine can hold; larger numbers would take all memory, or hours of tracing, before they fail.
SIDES = "[1, 16384]"
MOST_LAYERS = "[1, 10000]"


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The run"""

    workdir: str = option(
        None,
        "Folder of the run. The same command resumes it.",
        needed="the folder of the run",
        resumable=True,
        path=True,
    )
    steps: int | None = option(None, "Training steps; or give --epochs.", f"[1, {2**31 - 1}]")
    epochs: float | None = option(
        None, "Passes over the training split, if --steps is not given. Default 10; segment 7.", "(0, inf)"
    )
    seed: int = option(0, "Seed of initialisation, order, augmentation and dropout.", SEEDS)
    init_from: str | None = option(None, "Workdir whose parameters the run starts from.", path=True)
    eval_split: str | None = option(
        None, "Split to evaluate on during the run. Default: val or validation, else test.", resumable=True
    )
    val_fraction: float = option(
        0.0, "Fraction of each class's training images that become the split val; 0: none.", "[0, 1)"
    )
    eval_every: int = option(0, "Steps between evaluations; 0: up to ten in a run.", "[0, inf)")
    log_every: int = option(10, "Steps between rows of metrics.csv.", "[1, inf)")
    save_every: int = option(0, "Steps between checkpoints; 0: after each evaluation only.", "[0, inf)")
    keep: int = option(2, "Newest checkpoints kept; with a split val the best is kept too.", "[1, inf)", resumable=True)
    dry_run: bool = option(
        False,
        "Check all flags at full size, then run two small steps, one evaluation and one save. Nothing is kept.",
        resumable=True,
    )
    dry_run_data: bool = option(False, "With --dry_run: random images instead of the data set.", resumable=True)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer"""

    batch_size: int = option(128, "Global batch size.", f"[1, {2**31 - 1}]")
    learning_rate: float = option(0.1, "The schedule's highest learning rate.", "(0, inf)")
    optimizer: str = option("sgd", "Optimizer.", choices=("sgd", "adam", "adamw", "muon"))
    momentum: float = option(0.9, "Momentum of sgd and first moment of adam and adamw.", "[0, 1)")
    nesterov: bool = option(False, "Nesterov's momentum of sgd.")
    weight_decay: float = option(
        0.0,
        "Weight decay as L2 regularisation: it joins the gradient. adamw, muon: decoupled, the learning rate times "
        "the decay times the weight is taken off.",
        "[0, inf)",
    )
    clip_norm: float = option(
        0.0, "Largest global norm of the gradient, to which a larger one is scaled; 0: any.", "[0, inf)"
    )
    schedule: str = option("constant", "Learning-rate schedule.", choices=("constant", "step", "cosine", "one_cycle"))
    drops: tuple[float, ...] = option(
        (0.5, 0.75), "Schedule step: fractions of the run after which the rate drops.", "(0, 1)"
    )
    drop_factor: float = option(10.0, "Schedule step: what the rate is divided by at a drop.", "(1, inf)")
    parameter_groups: str = option(
        "none",
        "author: rates and decays by leaf as the network's author set them, and alexnet_owt's initial weights.",
        choices=("none", "author"),
    )
    warmup_steps: int = option(0, "Steps of linear warm-up.", "[0, inf)")


@dataclasses.dataclass(frozen=True)
class DeviceConfig:
    """Devices and precision"""

    devices: int | None = option(
        None,
        "Number of devices; on a CPU they are simulated. Default: all accelerators, or 1.",
        "[1, inf)",
        resumable=True,
    )
    dtype: str = option(
        "float32", "What the network computes in; parameters are float32.", choices=("float32", "bfloat16")
    )
    cpu_kernels: bool = option(
        True, "Use the C kernels on CPUs; --nocpu_kernels leaves all operations to XLA.", resumable=True
    )
    coordinator_address: str | None = option(
        None, "Several processes: HOST:PORT of the first. Launchers tell it too.", resumable=True
    )
    num_processes: int | None = option(None, "Several processes: how many.", resumable=True)
    process_id: int | None = option(None, "Several processes: which one this is, from 0.", resumable=True)


@dataclasses.dataclass(frozen=True)
class TrainingConfig(DeviceConfig, OptimizerConfig, RunConfig):
    """Data folder"""

    data_dir: str | None = option(
        None,
        "Folder of the data set, SPLIT/CLASS/*.jpg or png, or of the prepared store.",
        resumable=True,
        path=True,
    )


@dataclasses.dataclass(frozen=True)
class BatchNormConfig(TrainingConfig):
    """Batch norm"""

    sync_bn: bool = option(True, "Batch-norm statistics over the global batch.")


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """The network"""

    model: str = option(
        "cnn",
        "Network: perceptron, logistic, mlp, lenet, cnn, rnn, lstm, gru, vit_tiny, cuda_convnet, densenet, dcnn, "
        "dcnn_wide, cifar_resnetN, cifar_plainN; for ImageNet alexnet_owt, vggN, vggN_bn, plainN, resnetN, densenetN.",
    )
    hidden: tuple[int, ...] | None = option(
        None, "mlp, rnn, lstm, gru: sizes of the hidden layers, as 256,128.", "[1, 1000000]", network=True
    )
    activation: str | None = option(
        None,
        "mlp, lenet: tanh, sigmoid, relu, rectified_tanh, leaky_relu or gelu (its tanh approximation).",
        network=True,
    )
    slope: float | None = option(None, "Slope of leaky_relu for x < 0.", "(-inf, inf)", network=True)
    depth: int | None = option(
        None, "densenet: layers, 3N + 4, or 6N + 4 with --bottleneck; default 40.", MOST_LAYERS, network=True
    )
    blocks: int | None = option(
        None,
        "densenet: dense blocks, default 3; vit_tiny: blocks of the encoder, default 4.",
        MOST_LAYERS,
        network=True,
    )
    growth_rate: int | None = option(None, "densenet: maps each layer adds; default 12.", MOST_LAYERS, network=True)
    bottleneck: bool | None = option(None, "densenet: 1x1 convolutions before the 3x3 ones.", network=True)
    compression: float | None = option(
        None, "densenet: fraction of the maps that a transition keeps; default 1.", "(0, 1]", network=True
    )
    dropout: float | None = option(None, "Dropout rate.", "[0, 1)", network=True)
    dropout_after: bool | None = option(
        None, "alexnet_owt: dropout after fc6 and fc7, as its author has it.", network=True
    )
    local_response_norm: bool | None = option(None, "alexnet_owt: the author's two normalisation layers.", network=True)
    v1_5: bool | None = option(
        None, "resnet50, 101, 152: stride in a block's 3x3 convolution, not in its first 1x1.", network=True
    )


@dataclasses.dataclass(frozen=True)
class ClassifyConfig(BatchNormConfig, NetworkConfig):
    """Classification"""

    dataset: str = option(
        "mnist5k",
        "Data set: mnist5k, cifar10, folder, or tfds:NAME[/CONFIG][:VERSION] as tfds prepared it with "
        "--file_format=array_record in --data_dir, by default ~/tensorflow_datasets.",
    )
    image_size: int | None = option(
        None,
        "folder, tfds: side in pixels of the network's input, cut out of images of any size; default 224 where an "
        "image has more than 64 pixels a side, else the images as they are.",
        SIDES,
    )
    train_batches: str | None = option(None, "cifar10: files of the archive to train on, as 1-4; the rest become val.")
    positive: str | None = option(None, "Binary task: the class that is label 1.")
    negative: str | None = option(None, "Binary task: the class that is label 0; default all others.")
    skip_corrupt: bool = option(False, "folder, tfds: skip images that can't be decoded instead of stopping.")
    augment: str = option(
        "none",
        "Augmentation. For images cut to --image_size: resized_crop takes 8 to 100 % of the area, crop a window out "
        "of a square 8/7 as large; both flip.",
        choices=("none", "digits", "flip_shift", "crop24", "resized_crop", "crop"),
    )
    shift: int = option(4, "flip_shift: largest shift in pixels.", "[0, inf)")
    shift_mode: str = option("zero", "flip_shift: what lies outside the image.", choices=("zero", "reflect"))
    cutout: int = option(0, "flip_shift: side in pixels of the square that is blanked; 0 for none.", "[0, inf)")
    alternate_flip: bool = option(False, "flip_shift: mirror images in memory every other epoch, not at random.")
    colour_noise: float = option(
        0.0, "Standard deviation of the training images' colour shifts; Krizhevsky has 0.1.", "[0, inf)"
    )
    tta: str = option("none", "Views of each test image whose probabilities are averaged.", choices=TTA)
    label_smoothing: float = option(0.0, "Fraction of the target that all classes share.", "[0, 1)")
    early_size: int | None = option(None, "Side in pixels that the images of the first steps are shrunk to.", SIDES)
    early_share: float = option(0.5, "Fraction of the run whose images are shrunk to --early_size.", "(0, 1]")
    gradients: str = option(
        "autodiff",
        "backpropagation: the lecture's equations written out, for perceptron, mlp and lenet.",
        choices=("autodiff", "backpropagation"),
    )
    accumulate: int = option(1, "Parts of the batch that a step takes one after the other, to save memory.", "[1, inf)")
    remat: bool = option(False, "Save memory: store outputs of products and convolutions only, recompute the rest.")
    parallelism: str = option(
        "data",
        "hybrid: the dense layers of alexnet_owt or vggN are sharded over the devices by columns.",
        choices=("data", "hybrid"),
    )
    fc_passes: int = option(1, "hybrid: parts of the batch that the dense layers take one after the other.", "[1, inf)")
    fc_update: str = option(
        "accumulate",
        "hybrid: update the dense layers once a step, or after each pass; the convolutions' learning rate is then "
        "multiplied by --fc_passes.",
        choices=("accumulate", "each_pass"),
    )


@dataclasses.dataclass(frozen=True)
class SegmentConfig(BatchNormConfig):
    """Segmentation"""

    batch_size: int = override(TrainingConfig, "batch_size", 16)
    epochs: float | None = override(TrainingConfig, "epochs", 7.0)
    schedule: str = override(TrainingConfig, "schedule", "one_cycle")
    optimizer: str = override(TrainingConfig, "optimizer", "muon")
    learning_rate: float = override(TrainingConfig, "learning_rate", 0.03)
    model: str = option("segnet_small", "Network.", choices=("segnet_small", "segnet_basic", "segnet"))
    decoder: str | None = option(
        None,
        "How decoders upsample: by the encoder's pooling indices (indices_add: and its maps), by interpolation that is "
        "fixed, or learned. Default: indices, segnet_small's indices_add.",
        choices=("indices", "bilinear", "transposed", "indices_add"),
        network=True,
    )
    dataset: str = option("digit_scenes", "Data set.", choices=("digit_scenes", "camvid"))
    image_size: str | None = option(None, "camvid: HEIGHTxWIDTH that all images are resized to; default as they are.")
    crop: str | None = option(None, "camvid: HEIGHTxWIDTH of random crops to train on.")
    flip: bool = option(True, "camvid: random mirror images.")
    class_weights: str | None = option(
        None,
        "Classes' weights in the loss: SegNet's published ones (camvid's default), the median frequency over each "
        "one's own in the training images, or none. digit_scenes' default: 0.3 for the background.",
        choices=("published", "computed", "none"),
    )
    exact_batch_norm: bool = option(
        False, "Precise BN: batch statistics over the training images before each evaluation, no running means."
    )


@dataclasses.dataclass(frozen=True)
class GenerateConfig(BatchNormConfig):
    """Generation"""

    batch_size: int = override(TrainingConfig, "batch_size", 32)
    optimizer: str = override(TrainingConfig, "optimizer", "adam")
    learning_rate: float = override(TrainingConfig, "learning_rate", 0.0002)
    momentum: float = override(TrainingConfig, "momentum", 0.5)
    steps: int | None = override(TrainingConfig, "steps", 6000)
    model: str = option("dcgan", "Networks.", choices=("dcgan",))
    dataset: str = option("mnist5k", "Data set: mnist5k, cifar10, folder or tfds:NAME.")
    image_size: int | None = option(
        None, "Side in pixels of the networks' images, 32 or 64; default 32 for images of up to 32."
    )
    skip_corrupt: bool = option(False, "folder, tfds: skip images that can't be decoded instead of stopping.")
    authors: bool = option(False, "The authors' networks: 5x5 windows, 128 maps, even latent vectors.")
    conditional: bool = option(False, "Networks that are told each image's class.")
    ema: float = option(
        0.999,
        "Fraction that the average of the generator's weights, which samples, keeps at a step; 0: none.",
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
        "Units of the code, or latent variables; default 32, denoising and sparse 256, variational 20.",
        "[1, 1000000]",
        network=True,
    )
    hidden: tuple[int, ...] | None = option(
        None,
        "Sizes of the encoder's hidden layers, which the decoder has in reverse; default 256, denoising none.",
        "[1, 1000000]",
        network=True,
    )
    noise: float = option(0.5, "denoising: probability that a pixel is masked.", "(0, 1)")
    penalty: float = option(0.3, "sparse: weight of the code's sum in the loss.", "[0, inf)")
    dataset: str = option("mnist5k", "Data set: mnist5k, cifar10, or folder or tfds:NAME with images of one size.")
    skip_corrupt: bool = option(False, "folder, tfds: skip images that can't be decoded instead of stopping.")
