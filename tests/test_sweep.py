"""The pictures of a sweep."""

from experiments.reporting import sweep_table


def test_a_sweeps_curves_have_one_colour_a_setting(monkeypatch, tmp_path):
    rows = []
    for name, accuracy in (("a", 0.5), ("b", 0.75)):
        for seed in (0, 1):
            (tmp_path / f"{name}{seed}").mkdir()
            text = f"step,eval_accuracy\n1,\n2,{accuracy}\n4,{accuracy + seed / 8}\n"
            (tmp_path / f"{name}{seed}" / "metrics.csv").write_text(text)
            rows.append({"model": name, "seed": seed, "split": "val", "workdir": str(tmp_path / f"{name}{seed}")})
    drawn = []
    monkeypatch.setattr(
        "experiments.reporting.figures.save_figure", lambda figure, path: drawn.append((figure, path.name))
    )
    sweep_table.curves(tmp_path, rows, ["model", "seed"])
    (figure, name) = drawn[0]
    lines = figure.axes[0].lines
    assert name == "sweep_curves.png" and [list(line.get_xdata()) for line in lines] == [[2, 4]] * 4
    assert [list(line.get_ydata()) for line in lines] == [[50, 50], [50, 62.5], [75, 75], [75, 87.5]]
    assert [line.get_color() for line in lines] == ["C0", "C0", "C1", "C1"]
    assert figure.axes[0].get_ylabel() == "val accuracy, %"
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["model=a", "model=b"]
