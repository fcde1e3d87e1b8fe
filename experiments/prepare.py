"""Prepares a data set:

python -m experiments.prepare --dataset=cifar10 [--source=ARCHIVE] [--data_dir=FOLDER]
python -m experiments.prepare --dataset=folder --source=ILSVRC2012_img_train.tar --data_dir=FOLDER
python -m experiments.prepare --dataset=folder --data_dir=FOLDER --shards=STORE
python -m experiments.prepare --dataset=camvid --source=FOLDER_OR_ARCHIVE --data_dir=FOLDER
"""

import pathlib
import sys

from absl import flags as absl_flags

from experiments.cli import flags

DATASET = absl_flags.DEFINE_enum("dataset", None, ["cifar10", "folder", "camvid"], "Data set to prepare.")
SOURCE = absl_flags.DEFINE_string(
    "source",
    None,
    "cifar10: local copy of the archive, else it is downloaded. folder: archive of pictures to unpack. camvid: folder "
    "or archive.",
)
DATA_DIR = absl_flags.DEFINE_string(
    "data_dir", None, "cifar10: folder of the prepared store, default ~/nutshell_data. folder: where SPLIT/CLASS/ lie."
)
SPLIT = absl_flags.DEFINE_string("split", None, "folder: split to unpack to; default by the archive's folders or name.")
SHARDS = absl_flags.DEFINE_string(
    "shards", None, "folder: folder for a copy as array_record shards, read with --dataset=tfds:pictures."
)


def main(argv) -> int:
    if len(argv) > 1:
        raise flags.UsageError(f"unexpected argument {argv[1]!r}; prepare takes flags alone")
    if not DATASET.value:
        raise flags.UsageError("--dataset=cifar10, folder or camvid is needed")
    source = pathlib.Path(SOURCE.value) if SOURCE.value else None
    if source and not (source.is_file() or (source.is_dir() and DATASET.value == "camvid")):
        from data import DataError

        what = "a folder; an archive is needed" if source.is_dir() else "there is no such file"
        raise DataError(f"--source={SOURCE.value}: {what}")
    if DATASET.value != "folder":
        flags.require(not SPLIT.value and not SHARDS.value, "--split and --shards are for --dataset=folder")
    return {"cifar10": cifar10, "folder": pictures, "camvid": camvid}[DATASET.value](source)


def cifar10(source: pathlib.Path | None) -> int:
    from data import cifar10, store
    from data.prepare import cifar10 as archive

    folder = pathlib.Path(DATA_DIR.value) if DATA_DIR.value else cifar10.default_dir()
    if store.exists(folder, "cifar10"):
        print(f"cifar10 is prepared already in {folder}", file=sys.stderr)
        return 0
    if source is None:
        source = folder / "downloads" / archive.URL.rsplit("/", 1)[1]
        if not source.exists():
            archive.download(source)
    splits = archive.read_archive(str(source))
    if archive.md5(source) != archive.MD5:
        print(f"warning: {source} has another MD5 than the official archive, {archive.MD5}", file=sys.stderr)
    place = store.write(folder, "cifar10", splits, cifar10.CLASSES)
    print(f"cifar10: {', '.join(f'{len(y):,} {name}' for name, (_, y) in splits.items())} in {place}", file=sys.stderr)
    return 0


def camvid(source: pathlib.Path | None) -> int:
    from data import DataError, camvid
    from data.prepare.camvid import collect

    flags.require(bool(source and DATA_DIR.value), "--dataset=camvid needs --source=FOLDER_OR_ARCHIVE and --data_dir")
    if source and not collect(source, pathlib.Path(str(DATA_DIR.value))):
        raise DataError(f"--source={SOURCE.value} holds no lists SPLIT.txt and no pictures")
    wrong = camvid.problems(str(DATA_DIR.value))
    for line in wrong:
        print(f"error: {flags.one_line(line)}", file=sys.stderr)
    if not wrong:
        counts = {split: len(pairs) for split, pairs in camvid.listing(DATA_DIR.value).items()}
        print(", ".join(f"{n:,} {split}" for split, n in counts.items()) + f" in {DATA_DIR.value}", file=sys.stderr)
    return 1 if wrong else 0


def pictures(source: pathlib.Path | None) -> int:
    from data import folder, store
    from data.prepare import unpack

    root = DATA_DIR.value or ""
    flags.require(bool(root), "--dataset=folder needs --data_dir=FOLDER, where SPLIT/CLASS/ lie or will lie")
    flags.require(bool(source or SHARDS.value), "--dataset=folder needs --source=ARCHIVE or --shards=STORE")
    if source:
        split = SPLIT.value or unpack.split_of(source.name)
        flags.require(unpack.plain(split), f"--split={split}: accepted is a plain folder name")
        count = unpack.unpack(source, pathlib.Path(root), split=split, fixed=bool(SPLIT.value))
        whose = "" if SPLIT.value else " (of split " + split + " where the archive's folders name none)"
        print(f"{count:,} pictures in {root}{whose}", file=sys.stderr)
    if SHARDS.value:
        if store.exists(pathlib.Path(SHARDS.value), "pictures", prefix=""):
            place = pathlib.Path(SHARDS.value, "pictures")
            print(f"{place} is there already and stays as it is; to make it anew, remove it first", file=sys.stderr)
            return 0
        _, files, names = folder.listing(root)
        place = store.write_image_files(pathlib.Path(SHARDS.value), "pictures", files, names)
        counts = ", ".join(f"{len(found):,} {split}" for split, found in files.items())
        print(f"{counts} in {place}: --dataset=tfds:pictures --data_dir={SHARDS.value}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    flags.run(main)
