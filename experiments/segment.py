"""Trains and evaluates SegNet: python -m experiments.segment --workdir=W --steps=1000"""

from experiments.cli import flags, training

flags.define_segment_flags()


def kind(stop) -> training.Kind:
    del stop  # Nothing here takes long before the loop.
    from experiments.reporting import segmentation_report
    from experiments.setup import classification, segmentation

    return training.Kind(
        segmentation.load_dataset,
        segmentation.describe,
        segmentation.setup,
        classification.fit,
        segmentation_report.write_report,
    )


def main(argv) -> int:
    return training.run(argv, "segment", kind)


if __name__ == "__main__":
    flags.run(main)
