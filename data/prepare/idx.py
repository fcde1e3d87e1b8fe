"""Downloads or copies the files of MNIST and Fashion-MNIST."""

import hashlib
import os
import pathlib
import shutil

from data import idx
from data.dataset import DataError
from data.prepare import download

# The links in Fashion-MNIST's README; for MNIST, whose page no longer serves files, torchvision's mirror.
URLS = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
}
# Published MD5 of the compressed files, in the order of idx.NAMES.
MD5: dict[str, tuple[str, ...]] = {
    "mnist": (
        *("f68b3c2dcbeaaa9fbdd348bbdeb94873", "d53e105ee54ea40749a09fcbcd1e9432"),
        *("9fb629c4189551a2d022fa330f9573f3", "ec29112dd5afa0611ce80d1b7f02629c"),
    ),
    "fashion_mnist": (
        *("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "25c81989df183df01b3e8a0aad5dffbe"),
        *("bef4ecab320f06d8554ea6380940ec79", "bb300cfdad3c16e7a12a480ee83cd310"),
    ),
}
OTHERWISE = {
    "mnist": "https://storage.googleapis.com/cvdf-datasets/mnist/ has the same files; read them with --source=FOLDER",
    "fashion_mnist": "on Debian and Ubuntu, `apt-get install dataset-fashion-mnist` installs the same files",
}


def fetch(name: str, folder: pathlib.Path) -> None:
    """Downloads the files that are missing in the folder; an interrupted download is resumed. Raises DataError if it
    fails or if the folder has another file of the same name."""
    for file, md5 in zip(idx.NAMES, MD5[name], strict=True):
        target = folder / f"{file}.gz"
        if not target.exists():
            download.download(URLS[name] + target.name, target, md5=md5, otherwise=OTHERWISE[name])
        elif download.md5_of(target) != md5:
            raise DataError(f"{target} is not {name}'s official file (wrong MD5): remove it or use another --data_dir")


def copy(name: str, sources: list[pathlib.Path], folder: pathlib.Path) -> list[pathlib.Path]:
    """Copies the files from folders or a list of files to the folder, after checking them. Returns those whose content
    differs from the official files. Raises DataError as idx.load does."""
    files = idx.find(sources)
    if not files:
        given = ", ".join(map(str, sources))
        raise DataError(f"--source={given} has none of the files {', '.join(idx.NAMES)} (with or without .gz)")
    idx.read(name, files)
    folder.mkdir(parents=True, exist_ok=True)
    for path in files.values():
        part = folder / f".{path.name}.part"
        shutil.copyfile(path, part)
        os.replace(part, folder / path.name)
    official = dict(zip(idx.NAMES, idx.MD5[name], strict=True))
    return [path for file, path in files.items() if hashlib.md5(idx.content(path)).hexdigest() != official[file]]
