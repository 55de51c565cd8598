"""Pictures: equal figures are equal files, and what cannot be drawn is said in a line."""

import sys

import pytest

import koinon as kn
from koinon.data.heterogeneity import Heterogeneity
from koinon.view.picture import draw_curves, draw_partition

CURVES = {"one": [(1.0, 0.2), (10.0, 0.4)], "other": [(1.0, 0.1), (10.0, 0.6)]}


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_equal_figures_are_equal_files(tmp_path, suffix):
    paths = [tmp_path / f"{number}.{suffix}" for number in range(2)]
    for path in paths:
        draw_curves(CURVES, path, "cost", "accuracy", "log", 0.5)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].stat().st_size > 1000
    assert not list(tmp_path.glob(".*")), "nothing is left half written"


def test_a_partition_is_drawn_with_its_classes_and_clients(tmp_path):
    digits = kn.data.load("digits")
    draw_partition(Heterogeneity.of(digits.split(kn.Shards(2), 5, 0)), tmp_path / "parts.svg")
    drawn = (tmp_path / "parts.svg").read_text()
    assert "share of the client" in drawn
    assert "<image" in drawn


def test_what_cannot_be_drawn_is_said(tmp_path, monkeypatch):
    with pytest.raises(kn.Unavailable, match=r"name it \.png, \.svg or \.pdf"):
        draw_curves(CURVES, tmp_path / "plot.foo", "cost", "accuracy")
    with pytest.raises(kn.Unavailable, match="cannot write"):
        draw_curves(CURVES, tmp_path / "missing" / "plot.svg", "cost", "accuracy")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(kn.Unavailable, match=r"pip install 'koinon\[plot\]'"):
        draw_curves(CURVES, tmp_path / "plot.svg", "cost", "accuracy")
