"""Prepares a data set:

python -m experiments.prepare --dataset=cifar10 [--source=ARCHIVE] [--data_dir=FOLDER]
python -m experiments.prepare --dataset=fashion_mnist [--source=FOLDER]
python -m experiments.prepare --dataset=folder --source=ILSVRC2012_img_train.tar --data_dir=FOLDER
python -m experiments.prepare --dataset=folder --data_dir=FOLDER --shards=STORE
python -m experiments.prepare --dataset=camvid --source=FOLDER_OR_ARCHIVE --data_dir=FOLDER
"""

import dataclasses
import os
import pathlib
import sys

from experiments.cli import app
from experiments.cli.app import require
from experiments.cli.options import option


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Preparation"""

    dataset: str = option(
        None,
        "Data set to prepare.",
        choices=("cifar10", "fashion_mnist", "mnist", "folder", "camvid"),
        needed="cifar10, fashion_mnist, mnist, folder or camvid",
    )
    source: str | None = option(
        None,
        "cifar10: local copy of the archive, or the folder of the Hugging Face Hub's Parquet files (or FILE,FILE); "
        "default: download the archive. fashion_mnist, mnist: folder of the four idx files (or FILE,FILE,...); "
        "default: download them. folder: archive of images to unpack. camvid: folder or archive.",
        path=True,
    )
    data_dir: str | None = option(
        None,
        "cifar10: folder for the prepared data set, default ~/nutshell_data. fashion_mnist, mnist: folder for the "
        "files, default ~/nutshell_data/NAME. folder, camvid: folder of the images (folder: as SPLIT/CLASS/).",
        path=True,
    )
    split: str | None = option(None, "folder: split to unpack to; default: from the archive's folders or its name.")
    shards: str | None = option(
        None, "folder: folder for a copy as array_record shards, to be read with --dataset=tfds:pictures.", path=True
    )


def main(config: PrepareConfig) -> int:
    sources = source_paths(config)
    if config.dataset != "folder":
        require(not config.split and not config.shards, "--split and --shards are supported only by --dataset=folder")
    from data.prepare.lock import locked

    with locked(*targets(config)):
        if config.dataset in ("folder", "camvid"):
            source = sources[0] if sources else None
            return image_folder(config, source) if config.dataset == "folder" else camvid(config, source)
        return cifar10(config, sources) if config.dataset == "cifar10" else idx_files(config, sources)


def source_paths(config: PrepareConfig) -> list[pathlib.Path]:
    """The files and folders of --source. Raises DataError if one does not exist or the data set does not support it."""
    from data import DataError

    given, several = config.source or "", config.dataset in ("cifar10", "fashion_mnist", "mnist")
    names = given.split(",") if several and not pathlib.Path(given).exists() else [given]
    found = [pathlib.Path(os.path.expanduser(name)).absolute() for name in names if name]
    for path in found:
        folder = path.is_dir()
        if not (path.is_file() or (folder and config.dataset != "folder")):
            what = "must be an archive, not a folder" if folder else "no such file"
            raise DataError(f"--source={path}: {what}")
    return found


def targets(config: PrepareConfig) -> list[pathlib.Path]:
    """The folders to lock: the output folders, and the folder of images that is read, because another process may be
    preparing it."""
    from data import idx
    from data.dataset import default_dir

    if config.dataset == "cifar10":
        return [pathlib.Path(config.data_dir) if config.data_dir else default_dir("cifar10")]
    if config.dataset in idx.CLASSES:
        return [idx.folder_of(config.dataset, config.data_dir)]
    found = [pathlib.Path(config.shards)] if config.shards else []
    if config.data_dir and (config.source or pathlib.Path(config.data_dir).is_dir()):
        found.append(pathlib.Path(config.data_dir))
    return found


def cifar10(config: PrepareConfig, sources: list[pathlib.Path]) -> int:
    from data import DataError, cifar10, store
    from data.dataset import default_dir
    from data.prepare import cifar10 as archive
    from data.prepare import cifar10_parquet, download

    folder = pathlib.Path(config.data_dir) if config.data_dir else default_dir("cifar10")
    if store.exists(folder, "cifar10"):
        print(f"cifar10 is already prepared in {folder}{unread(config)}", file=sys.stderr)
        return 0
    if any(path.is_dir() or path.suffix == cifar10_parquet.SUFFIX for path in sources):
        splits = cifar10_parquet.read(sources)
    else:
        if len(sources) > 1:
            raise DataError(f"--source={config.source}: must be one archive, or Parquet files")
        source = sources[0] if sources else folder / "downloads" / archive.URL.rsplit("/", 1)[1]
        if not source.exists():
            download.download(archive.URL, source, md5=archive.MD5, otherwise=archive.OTHERWISE)
        splits = archive.read_archive(str(source))
        if download.md5_of(source) != archive.MD5:
            print(f"warning: the MD5 of {source} differs from the official archive's, {archive.MD5}", file=sys.stderr)
    place = store.write(folder, "cifar10", splits, cifar10.CLASSES)
    report("cifar10", splits, place)
    return 0


def idx_files(config: PrepareConfig, sources: list[pathlib.Path]) -> int:
    from data import idx
    from data.prepare import idx as prepare_idx

    name = config.dataset
    place, folder = idx.locate(name, config.data_dir), idx.folder_of(name, config.data_dir)
    if place and len(idx.find([place])) == len(idx.NAMES):
        report(f"{name} is already prepared{unread(config)}", idx.load(name, config.data_dir).splits, place)
        return 0
    if sources:
        for path in prepare_idx.copy(name, sources, folder):
            print(f"warning: the content of {path} differs from the official file's (MD5)", file=sys.stderr)
    else:
        prepare_idx.fetch(name, folder)
    report(name, idx.load(name, str(folder)).splits, folder)
    return 0


def unread(config: PrepareConfig) -> str:
    return f" (--source={config.source} was not read)" if config.source else ""


def report(text: str, splits: dict, place: pathlib.Path) -> None:
    counts = ", ".join(f"{len(labels):,} {split}" for split, (_, labels) in splits.items())
    print(f"{text}: {counts} in {place}", file=sys.stderr)


def camvid(config: PrepareConfig, source: pathlib.Path | None) -> int:
    from data import DataError, camvid
    from data.prepare.camvid import collect
    from train.messages import one_line

    require(bool(source and config.data_dir), "--dataset=camvid needs --source=FOLDER_OR_ARCHIVE and --data_dir")
    if source and not collect(source, pathlib.Path(str(config.data_dir))):
        raise DataError(f"--source={config.source} contains no lists SPLIT.txt and no images")
    wrong = camvid.problems(str(config.data_dir))
    for line in wrong:
        print(f"error: {one_line(line)}", file=sys.stderr)
    if not wrong:
        counts = {split: len(pairs) for split, pairs in camvid.listing(config.data_dir).items()}
        print(", ".join(f"{n:,} {split}" for split, n in counts.items()) + f" in {config.data_dir}", file=sys.stderr)
    return 1 if wrong else 0


def image_folder(config: PrepareConfig, source: pathlib.Path | None) -> int:
    from data import folder, store
    from data.dataset import ALL
    from data.prepare import unpack

    root = config.data_dir or ""
    require(bool(source or not config.split), f"--split={config.split} needs --source=ARCHIVE")
    require(bool(root), "--dataset=folder needs --data_dir=FOLDER, the folder with (or for) SPLIT/CLASS/")
    require(bool(source or config.shards), "--dataset=folder needs --source=ARCHIVE or --shards=STORE")
    if source:
        split = config.split or unpack.split_of(source.name)
        require(unpack.plain(split), f"--split={split}: must be a plain folder name")
        count = unpack.unpack(source, pathlib.Path(root), split=split, fixed=bool(config.split))
        default = "" if config.split else f" (split {split} unless the archive's folders name one)"
        print(f"{count:,} images in {root}{default}", file=sys.stderr)
    if config.shards:
        if store.exists(pathlib.Path(config.shards), "pictures", prefix=""):
            place = pathlib.Path(config.shards, "pictures")
            print(f"{place} already exists and is left unchanged; remove it to create it again", file=sys.stderr)
            return 0
        _, found, names = folder.listing(root)
        files = {"train" if split == ALL else split: paths for split, paths in found.items()}
        place = store.write_image_files(pathlib.Path(config.shards), "pictures", files, names)
        counts = ", ".join(f"{len(paths):,} {split}" for split, paths in files.items())
        print(f"{counts} in {place}: --dataset=tfds:pictures --data_dir={config.shards}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    app.run(main, PrepareConfig)
