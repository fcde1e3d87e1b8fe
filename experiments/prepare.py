"""Prepares a data set: python -m experiments.prepare --dataset=cifar10 [--source=ARCHIVE] [--data_dir=FOLDER]"""

import pathlib
import sys

from absl import flags as absl_flags

from experiments import flags

DATASET = absl_flags.DEFINE_enum("dataset", None, ["cifar10"], "Data set to prepare.")
SOURCE = absl_flags.DEFINE_string("source", None, "Local copy of the archive; without it, it is downloaded.")
DATA_DIR = absl_flags.DEFINE_string("data_dir", None, "Folder of the prepared store; default: ~/nutshell_data.")


def main(argv) -> int:
    if len(argv) > 1:
        raise flags.UsageError(f"unexpected argument {argv[1]!r}; prepare takes flags alone")
    if not DATASET.value:
        raise flags.UsageError("--dataset=cifar10 is needed")
    from data import cifar10, store

    folder = pathlib.Path(DATA_DIR.value) if DATA_DIR.value else cifar10.default_dir()
    if store.exists(folder, "cifar10"):
        print(f"cifar10 is prepared already in {folder}", file=sys.stderr)
        return 0
    if SOURCE.value:
        source = pathlib.Path(SOURCE.value)
        if not source.is_file():
            raise cifar10.DataError(f"--source={SOURCE.value}: there is no such file")
    else:
        source = folder / "downloads" / cifar10.URL.rsplit("/", 1)[1]
        if not source.exists():
            cifar10.download(source)
    splits = cifar10.read_archive(str(source))
    if cifar10.md5(source) != cifar10.MD5:
        print(f"warning: {source} has another MD5 than the official archive, {cifar10.MD5}", file=sys.stderr)
    place = store.write(folder, "cifar10", splits, cifar10.CLASSES)
    print(f"cifar10: {', '.join(f'{len(y):,} {name}' for name, (_, y) in splits.items())} in {place}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    flags.run(main)
