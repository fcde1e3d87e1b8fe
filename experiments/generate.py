"""Trains a DCGAN and scores its samples: python -m experiments.generate --workdir=W"""

from experiments.cli import flags, training

flags.define_generate_flags()


def kind(stop) -> training.Kind:
    import functools

    from experiments.reporting import look_generation
    from experiments.setup import build, generation

    return training.Kind(
        generation.load_dataset,
        generation.describe,
        functools.partial(generation.setup, stop=stop),
        build.fit,
        look_generation.write_report,
    )


def main(argv) -> int:
    return training.run(argv, "generate", kind)


if __name__ == "__main__":
    flags.run(main)
