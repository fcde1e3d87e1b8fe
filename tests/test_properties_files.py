"""Property-based tests of untrusted files: archives with arbitrary member names, label files with arbitrary lines."""

import io
import os
import pathlib
import tarfile
import tempfile

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from data import folder
from data.dataset import DataError
from data.prepare import unpack

# The check for slow data generation measures time, so it would fail on a busy machine.
COMMON = settings(
    deadline=None, derandomize=True, database=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)


FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


def is_file(name, kind):
    """Old archives mark a folder by a trailing slash in its name."""
    return kind in FILES and not (kind == tarfile.AREGTYPE and name.endswith("/"))


def archive_bytes(members):
    """A tar archive of members (name, type, content, link target). A list as content becomes a nested archive."""
    text = io.BytesIO()
    with tarfile.open(fileobj=text, mode="w") as archive:
        for name, kind, content, link in members:
            content = archive_bytes(content) if isinstance(content, list) else content
            info = tarfile.TarInfo(name)
            if "\0" in name:  # Other headers end names at a null character.
                info.pax_headers = {"path": name}
            info.type, info.linkname = kind, link
            info.size = len(content) if is_file(name, kind) else 0
            archive.addfile(info, io.BytesIO(content))
    return text.getvalue()


def contents(members):
    """Yields (last component of the name, content) of all members, at any depth, that may be extracted as files.

    For a member of an old archive whose long name ends in a slash, Python 3.11 sees a folder and 3.13 an empty file.
    """
    for name, kind, content, _ in members:
        if kind not in FILES or name.startswith("/") or ".." in name.rstrip("/").split("/")[:-1]:
            continue
        if isinstance(content, list):
            yield from contents(content)
            content = archive_bytes(content)  # An archive may also be named like an image.
        yield name.rstrip("/").rpartition("/")[2], content if is_file(name, kind) else b""


def snapshot(root, *, without=None):
    """Maps each path below `root` to its content, "folder", or "" for anything else."""
    found = {}
    for parent, folders, files in os.walk(root):
        folders[:] = [name for name in folders if pathlib.Path(parent, name) != without]
        for name in (*folders, *files):
            path = pathlib.Path(parent, name)
            plain = path.is_file() and not path.is_symlink()
            found[path] = path.read_bytes() if plain else "folder" if path in map(path.parent.joinpath, folders) else ""
    return found


OUTSIDE = "{outside}"  # A placeholder for the absolute path of a folder outside the target.
FOLDERS = (
    "",
    ".",
    "..",
    "../..",
    "a",
    "cat",
    "train",
    "val",
    "x.jpg",
    "a\\b",
    "\u00e9",
    "a\nb",
    "n01",
    "\udcff",
    "e" * 300,
)
ODD = (
    " .jpg",
    "..jpg",
    "...jpg",
    ".h.jpg",
    "\\..\\x.jpg",
    "\u202ex.jpg",
    "\u2028.png",
    "\udcff.png",
    "n\0.jpg",
    "x.jpg\0",
)
LAST = (
    "x.jpg",
    "y.JPEG",
    "z.png",
    "n01.tar",
    "N01.TAR",
    "..tar",
    "val.txt",
    "notes.txt",
    "..",
    *ODD,
    "e" * 251 + ".jpg",
)
OTHERS = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, b"Z")


@st.composite
def member_names(draw):
    text = st.text(max_size=6)
    folders = draw(st.lists(st.sampled_from(FOLDERS) | text, max_size=3))
    last = draw(st.sampled_from(LAST) | st.builds("{}{}".format, text, st.sampled_from([".jpg", ".tar", ""])))
    return draw(st.sampled_from(["", "", "", "/", OUTSIDE + "/"])) + "/".join([*folders, last, *draw(ENDS)])


ENDS = st.sampled_from([[], [], [], [""], ["", ""]])
KINDS = st.sampled_from(FILES + FILES + OTHERS)
LINKS = st.sampled_from(["x.jpg", "../outside/kept.jpg", OUTSIDE, "/etc/passwd", ""])
NAMES = st.sampled_from(["x.jpg", "x.jpg/x.jpg", "cat/x.jpg"]) | member_names()  # Often both a file and a folder.
IMAGES = st.tuples(NAMES, KINDS, st.binary(max_size=12), LINKS)
MEMBERS = IMAGES | st.tuples(NAMES, KINDS, st.lists(IMAGES, max_size=3), LINKS)


def placed(members, outside):
    """Replaces OUTSIDE in the members by the path of the outside folder."""
    return [
        (
            name.replace(OUTSIDE, str(outside)),
            kind,
            placed(content, outside) if isinstance(content, list) else content,
            link.replace(OUTSIDE, str(outside)),
        )
        for name, kind, content, link in members
    ]


@settings(COMMON, max_examples=200)
@given(members=st.lists(MEMBERS, max_size=6), fixed=st.booleans())
def test_members_of_an_archive_never_leave_their_folder(members, fixed):
    with tempfile.TemporaryDirectory() as path:
        base = pathlib.Path(path)
        root, outside, source = base / "target", base / "outside", base / "some.tar"
        outside.mkdir()
        (outside / "kept.jpg").write_bytes(b"kept")
        good = ("good/good.jpg", tarfile.REGTYPE, b"good image", "")
        members = [*placed(members, outside), good]
        source.write_bytes(archive_bytes(members))
        before = snapshot(base)
        try:
            count = unpack.unpack(source, root, split="train", fixed=fixed)
        except DataError:
            count = None
        assert snapshot(base, without=root) == before
        known, written = set(contents(members)), snapshot(root)
        for path, content in written.items():
            assert content != "", f"{path} is neither a file nor a folder"
            top, *_ = parts = path.relative_to(root).parts
            assert count is None or all(map(unpack.plain, parts)), "hidden or unprintable"
            assert top == "train" or (
                not fixed and (top in unpack.SPLITS or top.removeprefix(".").startswith("val.txt"))
            )
            if content != "folder" and (count is not None or not path.name.startswith(".")):
                assert (path.name, content) in known
                assert path.name.lower().endswith(folder.SUFFIXES) or path == root / "val.txt"
        if count is not None:
            images = [path for path, content in written.items() if content != "folder" and path.parent != root]
            assert 1 <= len(images) <= count
            assert written[root / "train" / "good" / "good.jpg"] == b"good image"


PLAIN = st.text("ab \u00e9\\'&", min_size=1, max_size=4)
TREES = st.dictionaries(
    PLAIN,
    st.tuples(st.sampled_from(["folder", ".tar", ".TAR"]), st.dictionaries(PLAIN, st.binary(max_size=9), min_size=1)),
    min_size=1,
    max_size=4,
)


@settings(COMMON, max_examples=60)
@given(tree=TREES, fixed=st.booleans())
def test_all_images_of_an_archive_are_written(tree, fixed):
    members, expected = [], {}
    for name, (form, images) in tree.items():
        inner = [(f"{stem}.jpg", tarfile.REGTYPE, content, "") for stem, content in images.items()]
        expected |= {f"{name}/{file}": content for file, _, content, _ in inner}
        if form == "folder":
            members += [(f"top/train/{name}/{file}", *rest) for file, *rest in inner]
        else:
            members.append((f"top/train/{name}{form}", tarfile.REGTYPE, inner, ""))
    with tempfile.TemporaryDirectory() as path:
        base = pathlib.Path(path)
        (base / "some.tar").write_bytes(archive_bytes(members))
        for _ in range(2):  # Existing files are kept.
            assert unpack.unpack(base / "some.tar", base / "d", split="train", fixed=fixed) == len(expected)
            written = snapshot(base / "d" / "train")
            files = {path: content for path, content in written.items() if content != "folder"}
            assert {str(path.relative_to(base / "d" / "train")): content for path, content in files.items()} == expected
        again = (f"other/train/{name}/more.jpg", tarfile.REGTYPE, b"", "")
        (base / "some.tar").write_bytes(archive_bytes([*members, again]))
        with pytest.raises(DataError, match="would both be unpacked to"):
            unpack.unpack(base / "some.tar", base / "d", split="train", fixed=fixed)


# All printable characters: letters, marks, numbers, punctuation and symbols.
CHARACTERS = st.characters(categories="LMNPS", exclude_characters="/") | st.sampled_from("01 ab.")


def is_class_name(name):
    return not name.startswith(".") and not any(word.lower().endswith(folder.SUFFIXES) for word in name.split(" "))


SIMILAR = st.sampled_from(["0", "1", "a", "a ", "b a", " "])  # Numbers, and names that end in another.
TEXTS = st.text(CHARACTERS, min_size=1, max_size=5).filter(is_class_name)
CLASSES = st.sampled_from([SIMILAR, TEXTS]).flatmap(lambda one: st.lists(one, min_size=1, max_size=5, unique=True))


@st.composite
def labelled(draw):
    """Draws (class names, {image: label}, names of the classes in the label file, its lines [image, class])."""
    names = sorted(draw(CLASSES))
    stems = st.text(CHARACTERS, min_size=1, max_size=5).filter(lambda stem: stem[0] not in " .")
    images = st.builds("{}{}".format, stems, st.sampled_from([".png", ".JPG", ".jpeg"]))
    labels = draw(st.dictionaries(images, st.integers(0, len(names) - 1), min_size=1, max_size=5))
    keys = draw(st.sampled_from([names, names, [str(i) for i in range(len(names))]]))
    # Indices that are all class names too would be read as names.
    assume(keys is names or any(keys[label] not in names for label in labels.values()))
    return names, labels, keys, [[image, keys[label]] for image, label in labels.items()]


def listing(names, images, text):
    """The labels that data.folder reads for a flat split `val` with `text` as val.txt, in a folder of these classes."""
    with tempfile.TemporaryDirectory() as path:
        root = pathlib.Path(path)
        for name in names:
            (root / "train" / name).mkdir(parents=True)
        (root / "train" / names[0] / "0.png").touch()
        (root / "val").mkdir()
        for image in images:
            (root / "val" / image).touch()
        (root / "val.txt").write_bytes(text)
        _, files, found = folder.listing(str(root))
        assert found == tuple(names)
        return {os.path.basename(path): label for path, label in files["val"]}


@settings(COMMON, max_examples=150)
@given(content=labelled(), data=st.data())
def test_a_valid_label_file_gives_its_labels(content, data):
    names, labels, _, lines = content
    lines = data.draw(st.permutations(lines + data.draw(st.lists(st.sampled_from(lines), max_size=2))))
    above = data.draw(st.sampled_from(["", "/some where/", "./"]))
    end = data.draw(st.sampled_from(["\n", "\r\n", "\n\n", "\n \n"]))
    text = end.join(f"{above}{image} {name}" for image, name in lines) + data.draw(st.sampled_from(["", end]))
    assert listing(names, labels, text.encode()) == labels


def refusal(names, images, text):
    """The message of the DataError for a label file; any other outcome fails."""
    try:
        found = listing(names, images, text)
    except DataError as error:
        return str(error)
    raise AssertionError(f"accepted as {found}")


WRONG = ("unknown", "-1", "+0", "00", "1.0", "0x0", "\u0660", "0,", "")


@settings(COMMON, max_examples=150)
@given(content=labelled(), data=st.data())
def test_the_error_of_an_invalid_label_file_names_the_file(content, data):
    names, labels, keys, lines = content
    place = data.draw(st.integers(0, len(lines) - 1))
    image, name = lines[place]
    kind = data.draw(st.sampled_from(["class", "range", "no line", "two classes", "bytes"]))
    expected = image
    if kind in ("class", "range"):
        above = st.integers(len(names), len(names) + 10**6)
        wrong = data.draw(st.sampled_from(WRONG)) if kind == "class" else str(data.draw(above))
        assume(wrong not in names)
        lines[place][1] = wrong
        expected = f"line {place + 1}: {f'{image} {wrong}'.strip()!r} does not end with one of the {len(names)} classes"
    elif kind == "no line":
        del lines[place]
        expected = f"lists no class for {image}"
    elif kind == "two classes":
        others = [other for other in keys if other != name]
        assume(others)
        lines.insert(data.draw(st.integers(0, len(lines))), [image, data.draw(st.sampled_from(others))])
        expected = f"lists {image} with two classes"
    text = "\n".join(" ".join(line) for line in lines).encode()
    if kind == "bytes":
        text, expected = data.draw(st.binary(max_size=40)), ""
    message = refusal(names, labels, text)
    assert "val.txt" in message and expected in message, (message, expected)
