"""Sizes and diagrams of the lecture's large networks: python -m experiments.lecture.systems --workdir=W"""

import models
from experiments.lecture import topic
from experiments.reporting import figures
from experiments.setup import communication
from models import summary

SIDE_BY_SIDE = ("vgg19", "plain34", "resnet34")
STAGES = ("#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#D55E00")  # The Okabe-Ito palette, by map size.
DEVICES, PER_DEVICE = range(2, 41), 128


def weighted(name: str, image_shape=(224, 224, 3), **options) -> list[summary.Layer]:
    """The convolutions and dense layers of a network, without those on shortcuts."""
    rows = summary.layers(models.create(name, 1000, **options), image_shape)
    return [row for row in rows if row.multiply_adds and "shortcut" not in row.name and "project" not in row.name]


def totals(name: str) -> dict[str, int]:
    rows = summary.layers(models.create(name, 1000), (224, 224, 3))
    return {key: sum(getattr(row, key) for row in rows) for key in ("parameters", "multiply_adds", "units")}


def split() -> dict[str, dict[str, float]]:
    """Counts for the convolutions and for the dense layers of AlexNet-OWT."""
    rows = weighted("alexnet_owt")
    kinds = {"convolutions": [r for r in rows if len(r.shape) == 3], "dense": [r for r in rows if len(r.shape) == 1]}
    keys = ("parameters", "multiply_adds", "units")
    return {kind: {key: sum(getattr(row, key) for row in part) for key in keys} for kind, part in kinds.items()}


def draw_split(parts: dict):
    """Plots the proportions of convolutions and dense layers."""
    import matplotlib

    names = {"multiply_adds": "multiply-adds", "parameters": "parameters", "units": "units"}
    share = {k: parts["convolutions"][k] / (parts["convolutions"][k] + parts["dense"][k]) for k in names}
    with matplotlib.rc_context({**figures.STYLE, "axes.grid": False}):
        shown = figures.new_figure(height=2.4)
        axes = shown.add_subplot()
        for row, (key, name) in enumerate(names.items()):
            axes.barh(row, share[key], color=figures.COLOURS["train"], height=0.6)
            axes.barh(row, 1 - share[key], left=share[key], color=figures.COLOURS["eval"], height=0.6)
            count = parts["convolutions"][key] + parts["dense"][key]
            inside = share[key] > 0.5
            axes.text(
                share[key] / 2 if inside else (1 + share[key]) / 2,
                row,
                f"{100 * max(share[key], 1 - share[key]):.0f} % of {count / 1e6:.3g} M",
                ha="center",
                va="center",
                color="white",
                fontweight="bold",
                fontsize=10,
            )
            axes.text(-0.01, row, name, ha="right", va="center")
        axes.set(xlim=(0, 1), ylim=(2.5, -0.5), yticks=[], xticks=[])
        axes.spines[:].set_visible(False)
        axes.set_xlabel("blue: convolutions, orange: dense layers")
        axes.set_title("AlexNet: convolutions dominate compute,\ndense layers hold the weights")
    return shown


def draw_side_by_side(rows_of: dict[str, list[summary.Layer]], counts: dict[str, dict[str, int]]):
    """Draws the layers of each network as a column of boxes, colored by map size."""
    import matplotlib
    from matplotlib.patches import Rectangle

    tallest = max(map(len, rows_of.values()))
    sizes = sorted({row.shape[0] for rows in rows_of.values() for row in rows if len(row.shape) == 3}, reverse=True)
    with matplotlib.rc_context({**figures.STYLE, "axes.grid": False}):
        shown = figures.new_figure(height=7.2)
        axes = shown.add_subplot()
        for column, (name, rows) in enumerate(rows_of.items()):
            before = None
            for place, row in enumerate(rows):
                wide = len(row.shape) == 3
                colour = STAGES[sizes.index(row.shape[0]) % len(STAGES)] if wide else "#666666"
                axes.add_patch(Rectangle((column + 0.05, place), 0.9, 0.8, color=colour))
                label = f"{row.shape[0]}², {row.shape[-1]} maps" if wide else f"{row.shape[0]} units"
                if label != before:
                    axes.text(column + 0.5, place + 0.4, label, ha="center", va="center", color="white", fontsize=8)
                before = label
            total = counts[name]
            head = f"{name}\n{total['parameters'] / 1e6:.1f} M weights\n{total['multiply_adds'] / 1e9:.2f} G mult-adds"
            axes.text(column + 0.5, -0.4, head, ha="center", va="bottom", fontsize=9.5, fontweight="bold")
        axes.set(xlim=(0, len(rows_of)), ylim=(tallest + 0.5, -3.6))
        axes.set_axis_off()
        axes.set_title("Deeper but cheaper: one box per layer")
    return shown


def draw_dense_block(rows: list[list[int]]):
    """Draws the layers of a dense block in a row; each reads all preceding layers."""
    import matplotlib
    from matplotlib.patches import FancyArrowPatch, Rectangle

    with matplotlib.rc_context({**figures.STYLE, "axes.grid": False}):
        shown = figures.new_figure(height=2.9)
        axes = shown.add_subplot()
        for i in range(len(rows) + 1):
            colour = STAGES[i % len(STAGES)]
            axes.add_patch(Rectangle((i - 0.16, -0.5), 0.32, 1.0, color=colour))
            axes.text(i, -0.7, "input" if i == 0 else f"layer {i}", ha="center", va="top", fontsize=9)
            text = f"{rows[0][0]} maps" if i == 0 else f"{rows[i - 1][0]} in\n+{rows[i - 1][1]}"
            axes.text(i, -1.05, text, ha="center", va="top", fontsize=9, color="#444444")
            for j in range(i):
                bend = FancyArrowPatch(
                    (j, 0.5), (i, 0.5), connectionstyle=f"arc3,rad=-{0.2 + 0.05 * (i - j)}", arrowstyle="-|>",
                    mutation_scale=9, color=STAGES[j % len(STAGES)], linewidth=1.3,
                )  # fmt: skip
                axes.add_patch(bend)
        axes.set(xlim=(-0.5, len(rows) + 0.5), ylim=(-1.9, 2.6))
        axes.set_axis_off()
        axes.set_title(f"A dense block: {len(rows)} layers, growth rate k = {rows[0][1]}")
    return shown


def draw_traffic(data: list[float], hybrid: list[float], crossing: int | None):
    """Plots the megabytes sent per device and step over the number of devices."""
    import matplotlib

    with matplotlib.rc_context(figures.STYLE):
        shown = figures.new_figure()
        axes, ends = shown.add_subplot(), []
        for name, values, part in (("data", data, "train"), ("hybrid", hybrid, "eval")):
            axes.plot(DEVICES, values, color=figures.COLOURS[part])
            ends.append((values[-1], name, part))
        figures.label_ends(axes, ends)
        axes.set(xlabel=f"devices, {PER_DEVICE} images each", ylabel="MB sent per device and step", ylim=(0, None))
        where = f"up to {crossing - 1} devices" if crossing else "for any number of devices shown"
        axes.set_title(f"AlexNet: hybrid parallelism sends less\n{where}")
    return shown


def experiment(this_topic: topic.Topic) -> topic.TopicResult:
    parts, counts = split(), {name: totals(name) for name in (*SIDE_BY_SIDE, "alexnet_owt")}
    alexnet = communication.Counts(models.create("alexnet_owt", 1000), (224, 224, 3))
    data = [alexnet.data(k)["communication_bytes_per_device"] / 1e6 for k in DEVICES]
    hybrid = [alexnet.hybrid(k, k * PER_DEVICE)["communication_bytes_per_device"] / 1e6 for k in DEVICES]
    crossing = next((k for k, d, h in zip(DEVICES, data, hybrid, strict=True) if h > d), None)
    # [input maps, added maps] of each of the five layers; depth 7 includes the first and the last layer.
    block = models.create("densenet", 10, blocks=1, depth=7, growth_rate=4)
    outputs = [row for row in summary.layers(block, (32, 32, 3)) if len(row.shape) == 3 and row.multiply_adds]
    first, layers = outputs[0].shape[-1], outputs[1:]
    dense = [[first + sum(x.shape[-1] for x in layers[:i]), row.shape[-1]] for i, row in enumerate(layers)]

    this_topic.figure(
        "alexnet_split",
        draw_split(parts),
        title="Composition of AlexNet",
        caption="proportions of the convolutions and the dense layers (AlexNet-OWT, one column)",
    )
    this_topic.figure(
        "traffic",
        draw_traffic(data, hybrid, crossing),
        title="Communication per device",
        caption="ring all-reduce; hybrid: data-parallel convolutions, model-parallel dense layers (Krizhevsky 2014)",
    )
    this_topic.figure(
        "side_by_side",
        draw_side_by_side({name: weighted(name) for name in SIDE_BY_SIDE}, counts),
        title="VGG-19, a plain and a residual network",
        caption="from the image (top) to the classes (bottom), colored by map size (He et al. 2016, figure 3)",
    )
    this_topic.figure(
        "dense_block",
        draw_dense_block(dense),
        title="A dense block",
        caption="each layer reads the maps of all preceding layers and adds k maps (Huang et al. 2017, figure 1)",
    )
    conv, fc, whole = parts["convolutions"], parts["dense"], counts["alexnet_owt"]
    eight = list(DEVICES).index(8)
    text = [
        f"AlexNet-OWT has {whole['units']:,} units and {whole['parameters'] / 1e6:.1f} million weights. Its "
        f"convolutions account for {conv['multiply_adds'] / whole['multiply_adds']:.0%} of the computation and "
        f"{conv['parameters'] / whole['parameters']:.0%} of the weights. (The lecture's 650,000 units are those of the "
        "two-tower network of 2012, whose first layers have 96 and 256 maps.)",
        "Hybrid parallelism therefore shards the batch over devices for the convolutions and the units for the dense "
        f"layers: with eight devices, each sends {hybrid[eight]:.0f} MB per step instead of {data[eight]:.0f} MB with "
        "data parallelism." + (f" From {crossing} devices on, data parallelism sends less." if crossing else ""),
        f"VGG-19 needs {counts['vgg19']['multiply_adds'] / counts['resnet34']['multiply_adds']:.1f} times the "
        f"computation of ResNet-34, which is {len(weighted('resnet34'))} layers deep and differs from plain-34 only by "
        "its shortcuts.",
        f"In a dense block with growth rate {dense[0][1]} the layers have {', '.join(str(r[0]) for r in dense)} input "
        "maps.",
    ]
    rows = [[n, f"{c['units']:,}", f"{c['parameters']:,}", f"{c['multiply_adds']:,}"] for n, c in counts.items()]
    numbers = {
        "networks": counts,
        "alexnet": {"convolutions": conv, "dense": fc},
        "traffic_mb_at_8": {"data": data[eight], "hybrid": hybrid[eight]},
        "traffic_crossing": crossing,
        "dense_block": dense,
    }
    tables = [("Counts", ["network", "units", "weights", "multiply-adds"], rows)]
    return topic.TopicResult(text, numbers, tables)


if __name__ == "__main__":
    topic.main("systems", experiment)
