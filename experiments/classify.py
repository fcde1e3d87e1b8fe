"""Trains and evaluates a classifier: python -m experiments.classify --workdir=W --model=mlp --steps=500"""

from experiments.cli import flags, training

flags.define_run_flags()


def kind(stop) -> training.Kind:
    del stop  # Nothing here takes long before the loop.
    from experiments.reporting import classification_report
    from experiments.setup import classification

    return training.Kind(
        classification.load_dataset,
        classification.describe,
        classification.checked_setup,
        classification.fit,
        classification_report.write_report,
    )


def main(argv) -> int:
    return training.run(argv, "classify", kind)


if __name__ == "__main__":
    flags.run(main)
