"""The palette keeps its meanings apart for every reader, and each colour visible on its surface."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from kda_lab import palette

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
VISION = {
    "typical": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
MODES = ("light", "dark")


def linear(colours):
    c = np.array([to_rgb(x) for x in colours])
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(colours, vision="typical"):
    seen = np.clip(linear(colours) @ np.array(VISION[vision]).T, 0, 1)
    t = seen @ TO_XYZ.T / [0.95047, 1, 1.08883]
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], -1)


def closest(colours, vision):
    points = lab(list(colours.values()), vision)
    names = list(colours)
    pairs = itertools.combinations(range(len(points)), 2)
    return min((np.linalg.norm(points[i] - points[j]), names[i], names[j]) for i, j in pairs)


def contrast(a, b):
    dark, light = sorted(linear([a, b]) @ [0.2126, 0.7152, 0.0722])
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("mode", MODES)
def test_meanings_stay_apart(mode, vision):
    distance, a, b = closest(palette.PALETTE[mode], vision)
    assert distance > 18, f"{a} and {b} look alike with {vision} in {mode}: {distance:.1f}"


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("mode", MODES)
def test_pairs_of_the_example_stay_apart(mode, vision):
    distance, a, b = closest(dict(zip("ABCD", palette.PAIRS[mode], strict=True)), vision)
    assert distance > 18, f"pairs {a} and {b} look alike with {vision} in {mode}: {distance:.1f}"


@pytest.mark.parametrize("mode", MODES)
def test_colours_stand_out_from_the_paper(mode):
    paper = palette.SURFACE[mode]["paper"]
    for meaning, c in palette.PALETTE[mode].items():
        assert contrast(c, paper) >= 3, meaning  # WCAG 1.4.11, graphical objects
    for c in palette.PAIRS[mode]:
        assert contrast(c, paper) >= 3, c
    assert contrast(palette.SURFACE[mode]["ink"], paper) >= 7  # text
    assert contrast(palette.SURFACE[mode]["muted"], paper) >= 4.5


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("mode", MODES)
def test_diverging_map_is_ordered_and_its_ends_differ(mode, vision):
    colours = palette.diverging(mode)(np.linspace(0, 1, 101))
    points = lab(colours, vision)
    lightness = points[:, 0] * (1 if mode == "dark" else -1)  # grows away from the paper
    assert (np.diff(lightness[:51]) < 0.2).all() and (np.diff(lightness[50:]) > -0.2).all()
    assert np.linalg.norm(points[20] - points[80]) > 18  # the signs are told apart half-way out
    zero = np.abs(colours[50, :3] - to_rgb(palette.SURFACE[mode]["paper"])).max()
    assert zero < 0.03


def test_table_is_the_colormap():
    table = np.array(palette.table(palette.diverging())).reshape(256, 3)
    assert table.min() >= 0 and table.max() <= 255
    assert (table[0] == np.rint(np.array(to_rgb(palette.DIVERGING["light"][0])) * 255)).all()


def test_every_meaning_has_a_colour_in_both_modes():
    for mode in MODES:
        assert list(palette.PALETTE[mode]) == list(palette.MEANINGS)
        assert palette.colour("state", mode) == palette.PALETTE[mode]["state"]
    assert list(palette.PALETTE["light"].values())[3] == palette.STATE
    assert list(palette.PALETTE["light"].values())[8] == palette.PEER


def test_unknown_names_are_errors():
    with pytest.raises(ValueError, match="meaning"):
        palette.colour("sky")
    by_mode = (palette.diverging, palette.errors, palette.rc, palette.use, palette.style)
    for f in (*by_mode, lambda mode: palette.colour("keys", mode)):
        with pytest.raises(ValueError, match="mode"):
            f("sepia")


def test_style_ends_with_its_block():
    before = plt.rcParams["figure.facecolor"]
    with palette.style("dark"):
        assert plt.rcParams["figure.facecolor"] == palette.SURFACE["dark"]["paper"]
    assert plt.rcParams["figure.facecolor"] == before


def test_png_carries_its_description_and_the_figure_is_closed():
    fig, ax = plt.subplots(figsize=(2, 1))
    ax.plot([0, 1])
    bundle, metadata = palette.png_bundle(fig, "a line that rises")
    assert bundle["text/plain"] == "a line that rises" and bundle["image/png"].startswith("iVBOR")
    assert metadata["image/png"]["alt"] == "a line that rises"
    assert not plt.fignum_exists(fig.number)
    with pytest.raises(ValueError, match="alt"):
        palette.show(fig, " ")
