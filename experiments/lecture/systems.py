"""Sizes and diagrams of the lecture's large networks: python -m experiments.lecture.systems --workdir=W"""

import models
from experiments.lecture import topic
from experiments.reporting import figures
from experiments.setup import communication
from models import summary

SIDE_BY_SIDE = ("vgg19", "plain34", "resnet34")
STAGES = ("#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#D55E00")  # The Okabe-Ito palette, by map size.
DENSE = "#666666"
LIGHT = STAGES[1:]  # Colors that need dark text.
DEVICES, PER_DEVICE = range(2, 41), 128


def weighted(name: str, image_shape=(224, 224, 3), **options) -> list[summary.Layer]:
    """The convolutions and dense layers of a network, without those on shortcuts."""
    rows = summary.layers(models.create(name, 1000, **options), image_shape)
    return [row for row in rows if row.multiply_adds and "shortcut" not in row.name and "project" not in row.name]


def totals(name: str) -> dict[str, int]:
    rows = summary.layers(models.create(name, 1000), (224, 224, 3))
    return {key: sum(getattr(row, key) for row in rows) for key in ("parameters", "multiply_adds", "units")}


def shortcuts(name: str) -> list[tuple[int, int, bool]]:
    """The shortcuts of a network as (first, last, changes size): each skips the rows first to last of `weighted`, and
    its 1x1 convolution changes the size and number of the maps. Empty for a network without shortcuts."""
    model = models.create(name, 1000)
    if not getattr(model, "residual", False):
        return []
    projected = {row.name.split("/")[0] for row in summary.layers(model, (224, 224, 3)) if "/shortcut" in row.name}
    blocks, found = [row.name.split("/")[0] for row in weighted(name)], []
    for block in dict.fromkeys(blocks):
        first, layers = blocks.index(block), blocks.count(block)
        if layers > 1:
            found.append((first, first + layers - 1, block in projected))
    return found


def split() -> dict[str, dict[str, float]]:
    """Counts for the convolutions and for the dense layers of AlexNet-OWT."""
    rows = weighted("alexnet_owt")
    kinds = {"convolutions": [r for r in rows if len(r.shape) == 3], "dense": [r for r in rows if len(r.shape) == 1]}
    keys = ("parameters", "multiply_adds", "units")
    return {kind: {key: sum(getattr(row, key) for row in part) for key in keys} for kind, part in kinds.items()}


def draw_split(parts: dict):
    """Plots the proportions of convolutions and dense layers."""
    import matplotlib
    from matplotlib.patches import Patch

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
        kinds = (("convolutions", "train"), ("dense layers", "eval"))
        handles = [Patch(color=figures.COLOURS[part], label=label) for label, part in kinds]
        shown.legend(handles=handles, loc="outside lower center", ncols=2)
        axes.set_title("AlexNet: convolutions dominate compute,\ndense layers hold the weights")
    return shown


def draw_side_by_side(rows_of: dict[str, list[summary.Layer]], counts: dict[str, dict[str, int]]):
    """Draws the layers of each network as a column of boxes, colored by map size, and its shortcuts as arcs: dotted
    where the map size changes, as in figure 3 of He et al. 2016."""
    import matplotlib
    from matplotlib.lines import Line2D
    from matplotlib.patches import FancyArrowPatch, Patch, Rectangle

    tallest = max(map(len, rows_of.values()))
    sizes = sorted({row.shape[0] for rows in rows_of.values() for row in rows if len(row.shape) == 3}, reverse=True)
    with matplotlib.rc_context({**figures.STYLE, "axes.grid": False}):
        shown = figures.new_figure(height=8.4)
        axes = shown.add_subplot()
        colours = {size: STAGES[i % len(STAGES)] for i, size in enumerate(sizes)}
        for column, (name, rows) in enumerate(rows_of.items()):
            before = None
            for place, row in enumerate(rows):
                wide = len(row.shape) == 3
                colour = colours[row.shape[0]] if wide else DENSE
                axes.add_patch(Rectangle((column + 0.05, place), 0.8, 0.7, color=colour))
                label = f"{row.shape[-1]} maps" if wide else f"{row.shape[0]} units"
                if (label, colour) != before:
                    ink = "#222222" if colour in LIGHT else "white"
                    axes.text(column + 0.45, place + 0.37, label, ha="center", va="center", color=ink, fontsize=8)
                before = label, colour
            for first, last, changes in shortcuts(name):
                arc = FancyArrowPatch(
                    (column + 0.86, first - 0.12), (column + 0.86, last + 0.82), arrowstyle="-|>", mutation_scale=7,
                    connectionstyle="arc3,rad=-0.75", color="#222222", linewidth=1.2, linestyle=":" if changes else "-",
                    shrinkA=0, shrinkB=0,
                )  # fmt: skip
                axes.add_patch(arc)
            total = counts[name]
            millions, billions = total["parameters"] / 1e6, total["multiply_adds"] / 1e9
            head = f"{name}\n{millions:.1f} M parameters\n{billions:.2f} G multiply-adds"
            axes.text(column + 0.45, -0.4, head, ha="center", va="bottom", fontsize=9, fontweight="bold")
        axes.set(xlim=(0, len(rows_of) + 0.1), ylim=(tallest + 0.2, -3.6))
        axes.set_axis_off()
        axes.set_title("Deeper but cheaper: one box per layer")
        boxes = [Patch(color=colour, label=f"{size}x{size} pixels") for size, colour in colours.items()]
        arcs = [
            Line2D([], [], color="#222222", linestyle="-", label="shortcut"),
            Line2D([], [], color="#222222", linestyle=":", label="shortcut, size changes"),
        ]
        key = [*boxes, Patch(color=DENSE, label="dense layer"), *arcs]
        shown.legend(handles=key, loc="outside lower center", ncols=3, fontsize=9)
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
        axes.set_title(f"A dense block: {len(rows)} layers that add {rows[0][1]} maps each")
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
        caption="proportions of the convolutions and the dense layers; M: million",
    )
    this_topic.figure(
        "traffic",
        draw_traffic(data, hybrid, crossing),
        title="Communication per device",
        caption="hybrid: data-parallel convolutions, model-parallel dense layers (Krizhevsky 2014)",
    )
    this_topic.figure(
        "side_by_side",
        draw_side_by_side({name: weighted(name) for name in SIDE_BY_SIDE}, counts),
        title="VGG-19, a plain and a residual network",
        caption="from the image (top) to the classes (bottom), without pooling; M: million, G: billion (after He et "
        "al. 2016, figure 3)",
    )
    this_topic.figure(
        "dense_block",
        draw_dense_block(dense),
        title="A dense block",
        caption="each layer reads the maps of all preceding layers and adds its own (Huang et al. 2017, figure 1)",
    )
    conv, fc, whole = parts["convolutions"], parts["dense"], counts["alexnet_owt"]
    share = 100 * conv["parameters"] / whole["parameters"]
    eight, times = list(DEVICES).index(8), counts["vgg19"]["multiply_adds"] / counts["resnet34"]["multiply_adds"]
    text = [
        f"AlexNet's convolutions have {share:.0f} % of the parameters and do "
        f"{100 * conv['multiply_adds'] / whole['multiply_adds']:.0f} % of the multiply-adds.",
        f"With eight devices of {PER_DEVICE} images each, a device sends {hybrid[eight]:.0f} MB per step with hybrid "
        f"parallelism and {data[eight]:.0f} MB with data parallelism. The activations that hybrid parallelism sends "
        "grow with the number of images"
        + (f", so from {crossing} devices on, data parallelism sends less." if crossing else "."),
        f"VGG-19 has {len(weighted('vgg19'))} layers and needs {times:.1f} times the multiply-adds of ResNet-34, which "
        f"has {len(weighted('resnet34'))}. plain-34 and ResNet-34 differ only in their shortcuts: most are copies, and "
        "those that change the size contain a 1x1 convolution. In a dense block, each layer reads all preceding ones: "
        f"here {', '.join(str(r[0]) for r in dense)} maps.",
    ]
    rows = [[n, f"{c['units']:,}", f"{c['parameters']:,}", f"{c['multiply_adds']:,}"] for n, c in counts.items()]
    numbers = {
        "networks": counts,
        "alexnet": {"convolutions": conv, "dense": fc},
        "traffic_mb_at_8": {"data": data[eight], "hybrid": hybrid[eight]},
        "traffic_crossing": crossing,
        "dense_block": dense,
    }
    tables = [("Counts for one image", ["network", "units", "parameters", "multiply-adds"], rows)]
    guesses = [
        topic.Guess(
            "alexnet_split", "How many percent of AlexNet's parameters are in its convolutions?", "%", 0, 100, share
        ),
        topic.Guess(
            "traffic",
            f"With data parallelism on eight devices, each sends {data[eight]:.0f} MB per step. How many with hybrid "
            "parallelism?",
            "MB",
            0,
            1000,
            hybrid[eight],
        ),
        topic.Guess(
            "side_by_side",
            "VGG-19 has 19 layers, ResNet-34 has 34. How many times the multiply-adds of ResNet-34 does VGG-19 need?",
            "times",
            0,
            10,
            times,
        ),
    ]
    return topic.TopicResult(text, numbers, tables, guesses)


if __name__ == "__main__":
    topic.main("systems", experiment)
