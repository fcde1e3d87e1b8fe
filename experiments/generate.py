"""Trains a DCGAN and scores its samples: python -m experiments.generate --workdir=W"""

from experiments.cli import flags, training

flags.define_generate_flags()


def kind(stop) -> training.Kind:
    import functools

    from experiments.reporting import generation_report
    from experiments.setup import classification, generation

    return training.Kind(
        generation.load_dataset,
        generation.describe,
        functools.partial(generation.setup, stop=stop),
        classification.fit,
        generation_report.write_report,
    )


def main(argv) -> int:
    return training.run(argv, "generate", kind)


if __name__ == "__main__":
    flags.run(main)
