"""Tests of the report: reading metrics, deterministic figures, and a self-contained page."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from experiments.reporting import classification_report, figures, report

VOID = {"meta", "img", "br", "hr", "link", "input"}
EVIL = "<script>alert(1)</script>"
PNG_START = b"\x89PNG\r\n\x1a\n"


class Outline(HTMLParser):
    """Collects all tags of a page, the attributes of its images, its text, and tags closed out of order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[str] = []
        self.wrong: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    parser.close()
    return parser


def metric_rows() -> list[dict[str, float | None]]:
    train = [{"step": s, "train_loss": 2.0 / s, "eval_loss": None, "learning_rate": 0.1} for s in (1.0, 2.0, 3.0)]
    return [*train, {"step": 3.0, "train_loss": None, "eval_loss": 0.7, "learning_rate": None}]


@pytest.fixture
def page_parts(tmp_path):
    """The arguments of html_page, with markup in every argument that is text."""
    path = tmp_path / "confusion.png"
    figures.save_figure(figures.confusion_matrix([[5, 1], [0, 4]], [EVIL, "b"]), path)
    return {
        "title": f"Report {EVIL}",
        "summary": {"accuracy": 0.9912, "parameters": 1_234_567, "loss": None, EVIL: EVIL},
        "command": f"python -m train --name '{EVIL}' --note \"a & b\"",
        "figures": [(f'Confusion " onerror="x {EVIL}', EVIL, path)],
        "tables": [(f'Classes " {EVIL}', ["class", EVIL], [[EVIL, 0.5], ["b", None]])],
        "resume_note": f"Resume with {EVIL}",
    }


def test_page_is_well_formed_and_self_contained(page_parts):
    page = report.html_page(**page_parts)
    found = outline(page)
    assert found.wrong == [] and found.open == []
    assert {"script", "link", "iframe"}.isdisjoint(found.seen)
    assert not re.search(r"https?://|url\(|@import", page)
    assert len(found.images) == 1
    assert all((image["src"] or "").startswith("data:image/png;base64,") for image in found.images)
    assert all(image["alt"] for image in found.images)
    assert 'name="viewport"' in page and "prefers-color-scheme: dark" in page


def test_names_are_escaped(page_parts):
    page = report.html_page(**page_parts)
    assert EVIL not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 10
    image = outline(page).images[0]
    assert set(image) == {"alt", "src", "width", "height"}, "a quote in a title must not open a new attribute"
    assert EVIL in (image["alt"] or "")
    assert page_parts["command"] in outline(page).text, "the command must be readable exactly as typed"


def test_headline_numbers_are_formatted_for_readers(page_parts):
    text = outline(report.html_page(**page_parts)).text
    assert "99.12 %" in text and "1,234,567" in text and "–" in text


def test_sections_without_content_are_left_out():
    page = report.html_page(title="t", summary={}, command="c", figures=[], tables=[], resume_note="")
    assert "Figures" not in page and "Tables" not in page and 'class="tiles"' not in page
    assert outline(page).open == []


def test_page_refuses_invalid_images_and_ragged_tables(tmp_path, page_parts):
    (tmp_path / "fake.png").write_text("hello")
    with pytest.raises(ValueError, match="not a PNG"):
        report.html_page(**{**page_parts, "figures": [("t", "c", tmp_path / "fake.png")]})
    with pytest.raises(ValueError, match="header of 2"):
        report.html_page(**{**page_parts, "tables": [("t", ["a", "b"], [[1]])]})


def test_write_report_is_atomic(tmp_path, page_parts, monkeypatch):
    target = tmp_path / "out" / "report.html"
    report.write_report(target, **page_parts)
    assert target.read_text(encoding="utf-8") == report.html_page(**page_parts)
    assert [entry.name for entry in target.parent.iterdir()] == ["report.html"]

    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", broken)
    with pytest.raises(OSError, match=f"No space left on device: '{target}'"):
        report.write_report(target, **{**page_parts, "title": "new"})
    assert [entry.name for entry in target.parent.iterdir()] == ["report.html"]
    assert "<title>new" not in target.read_text(encoding="utf-8"), "the old report must survive"


def test_read_metrics_handles_empty_cells(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,train_loss,eval_loss\n1,2.5,\n2,,0.5\n3,nan\n")
    rows = report.read_metrics(path)
    assert rows[:2] == [
        {"step": 1.0, "train_loss": 2.5, "eval_loss": None},
        {"step": 2.0, "train_loss": None, "eval_loss": 0.5},
    ]
    assert np.isnan(rows[2]["train_loss"]) and rows[2]["eval_loss"] is None


def test_read_metrics_drops_only_an_incomplete_last_line(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n1,2\n2,1.5e-")
    assert report.read_metrics(path) == [{"step": 1.0, "loss": 2.0}]
    path.write_text("step,loss\n1,2\n2")
    assert report.read_metrics(path) == [{"step": 1.0, "loss": 2.0}]
    path.write_text("step,loss\n1,two\n2,1\n")
    with pytest.raises(ValueError, match="line 2"):
        report.read_metrics(path)


def test_curves_pair_train_and_eval(tmp_path):
    drawn = report.curves(metric_rows(), split="val", selects=True)
    assert set(drawn) == {"loss"}, "the learning rate is constant"
    axes = drawn["loss"].axes[0]
    lines = {tuple(line.get_xdata()): tuple(line.get_ydata()) for line in axes.lines}
    assert lines[(1.0, 2.0, 3.0)] == (2.0, 1.0, 2.0 / 3)
    assert lines[(3.0,)] == (0.7,)
    assert "best val 0.7 at step 3" in axes.get_title("left").replace("\n", " ")
    unchosen = report.curves(metric_rows(), split="test", selects=False)["loss"].axes[0]
    assert "final test 0.7" in unchosen.get_title("left").replace("\n", " ")
    for name, figure in drawn.items():
        figures.save_figure(figure, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(PNG_START)


def test_a_metric_best_at_its_first_step_is_not_marked():
    rows = [{"step": float(s), "eval_coverage_max": v} for s, v in ((1, 1.0), (2, 0.2))]
    axes = report.curves(rows, split="val", selects=True)["coverage_max"].axes[0]
    assert "best" not in axes.get_title("left") and len(axes.lines) == 1


def test_constants_are_not_plotted_and_references_are_lines():
    rows = [{"step": float(s), "learning_rate": 0.1, "eval_fid": v} for s, v in ((1, 9.0), (2, 3.0))]
    drawn = report.curves(rows, split="test", selects=False, references={"fid": {"floor": 0.5, "ceiling": 40.0}})
    assert set(drawn) == {"fid"}
    axes = drawn["fid"].axes[0]
    assert [list(line.get_ydata()) for line in axes.lines] == [[9, 3], [0.5, 0.5], [40, 40]]
    assert [text.get_text() for text in axes.texts] == ["floor 0.5", "test 3", "ceiling 40"]
    assert axes.get_yscale() == "log", "the references determine the scale as well"


def test_curves_say_where_values_stop_being_finite(tmp_path):
    rows = [{"step": s, "train_loss": v} for s, v in ((1.0, 1.0), (2.0, float("inf")), (3.0, float("nan")))]
    figure = report.curves(rows, split="test", selects=False)["loss"]
    assert "not finite from step 2" in figure.axes[0].get_title("left").replace("\n", " ")
    figures.save_figure(figure, tmp_path / "loss.png")
    figures.save_figure(report.curves(rows[1:], split="test", selects=False)["loss"], tmp_path / "nothing.png")
    assert (tmp_path / "nothing.png").stat().st_size > 1000


def test_confusion_figure_is_deterministic(tmp_path):
    for name in ("a.png", "b.png"):
        figures.save_figure(
            figures.confusion_matrix(np.array([[9, 1], [2, 8]]), ["cost $5 and $6", "猫"]), tmp_path / name
        )
    first = (tmp_path / "a.png").read_bytes()
    assert first.startswith(PNG_START) and len(first) > 1000
    assert first == (tmp_path / "b.png").read_bytes()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.png", "b.png"]


@pytest.mark.parametrize(("size", "with_text"), [(20, True), (21, False)])
def test_confusion_matrix_writes_counts_for_few_classes(size, with_text):
    counts = np.eye(size, dtype=int) * 7
    axes = figures.confusion_matrix(counts).axes[0]
    assert [text.get_text() for text in axes.texts] == (["7"] * size if with_text else [])
    assert np.allclose(axes.images[0].get_array(), np.eye(size)), "colors must show fractions of the row"
    assert axes.figure.get_suptitle() == "No errors"


def test_confusion_matrix_in_percent():
    axes = figures.confusion_matrix([[98_500, 1_500], [0, 0]], ["road", "sky"], percent=True).axes[0]
    assert [text.get_text() for text in axes.texts] == ["98", "1.5"]
    assert axes.figure.get_suptitle().replace("\n", " ") == (
        "Most frequent error: road predicted as sky (1.5 % of its pixels)"
    )


def test_a_figure_can_be_added_to_a_report(tmp_path):
    path, image = tmp_path / "report.html", tmp_path / "x.png"
    figures.save_figure(figures.new_figure(), image)
    report.add_figure(path, "F", "", image)
    assert not path.exists()
    report.write_report(path, title="T", summary={}, command="c", figures=[("A", "", image)], tables=[], resume_note="")
    whole = path.read_text()
    for caption in ("caption 1", "caption 2", "<b>"):
        report.add_figure(path, "F & G", caption, image)
    page = path.read_text()
    assert (
        page.count("<figure>") == 2
        and "caption" not in page.replace("figcaption", "")
        and page.index("<h3>A</h3>") < page.index("F &amp; G")
    )
    assert "<figcaption>&lt;b&gt;</figcaption>" in page and page.endswith(whole[-50:])


def test_confusion_matrix_allows_absent_classes_and_refuses_wrong_shapes():
    shares = figures.confusion_matrix([[0, 0], [1, 3]]).axes[0].images[0].get_array()
    assert np.allclose(shares, [[0, 0], [0.25, 0.75]])
    with pytest.raises(ValueError, match="square"):
        figures.confusion_matrix([[1, 2, 3], [4, 5, 6]])
    with pytest.raises(ValueError, match="class names"):
        figures.confusion_matrix([[1, 0], [0, 1]], ["only one"])


def test_image_grid_scales_each_image():
    images = np.stack([np.linspace(0, 1, 12), np.linspace(-5, 5, 12)]).reshape(2, 3, 4)
    own = [image.get_array() for image in figures.image_grid(images).axes[0].images]
    assert all(array.min() == 0 and array.max() == 1 for array in own)
    signed = figures.image_grid(images[..., None], signed=True).axes[0].images
    assert np.allclose(signed[0].get_array(), 0.5 + images[0] / 2), "zero must be the middle of the colormap"
    assert signed[0].get_cmap().name == "RdBu_r"
    plain = figures.image_grid(images, normalize=False).axes[0].images
    assert np.allclose(plain[1].get_array(), np.clip(images[1], 0, 1))


@pytest.mark.parametrize("shape", [(0, 3, 4), (1, 3, 4), (17, 4, 4, 1), (5, 4, 4, 3)])
def test_image_grid_takes_every_shape(shape, tmp_path):
    figure = figures.image_grid(np.zeros(shape), [f"number {i}" for i in range(shape[0])], "Title")
    assert len(figure.axes[0].images) == shape[0]
    figures.save_figure(figure, tmp_path / "grid.png")
    assert (tmp_path / "grid.png").read_bytes().startswith(PNG_START)


@pytest.mark.parametrize("shape", [(4, 4), (2, 4, 4, 2)])
def test_image_grid_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match="images must be"):
        figures.image_grid(np.zeros(shape))


def test_mistakes_grid_shows_the_most_confident_first(tmp_path):
    images = np.arange(4 * 4, dtype=float).reshape(4, 2, 2)
    figure = figures.mistakes_grid(images, [3, 1, 2, 0], [8, 1, 0, 5], [0.6, 0.99, 0.97, 0.7], limit=2)
    texts = [text.get_text().replace("\n", " ") for text in figure.axes[0].texts]
    assert texts == ["Most confident errors (2 of 3)", "true 2, predicted 0, 97 %", "true 0, predicted 5, 70 %"]
    files = ["é.png", "b.png", f"{'0123456789' * 4}.png", "a\nb\udcff.png"]
    figure = figures.mistakes_grid(images, [3, 1, 2, 0], [8, 1, 0, 5], [0.6, 0.99, 0.97, 0.7], files=files)
    texts = [text.get_text() for text in figure.axes[0].texts[1:]]
    ends = ["…9012345678901234567890123456789.png", r"a\nb\udcff.png", "é.png"]
    assert [text.replace("\n", "").partition("%,")[2].strip() for text in texts] == ends
    figures.save_figure(figure, tmp_path / "mistakes.png")
    right = figures.mistakes_grid(images, [1] * 4, [1] * 4, [0.9] * 4)
    assert [text.get_text() for text in right.axes[0].texts] == ["No errors", "nothing to show"]


@pytest.mark.parametrize(
    "confusion, message",
    [
        ([[0, 3, 0], [0, 2, 0], [0, 0, 0]], "every image is predicted as dog; a smaller --learning_rate may help"),
        ([[0, 3, 0], [0, 2, 1], [0, 0, 0]], ""),
        ([[0, 0, 0], [0, 5, 0], [0, 0, 0]], ""),  # The images are of one class, so this may be correct.
    ],
)
def test_a_constant_prediction_is_reported(confusion, message):
    names = ("cat", "dog", "wolf")
    assert classification_report.constant_prediction(np.array(confusion), names) == message
