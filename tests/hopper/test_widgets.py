"""The models behind the layout and swim-lane widgets, and the pictures' words."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest

from kda_lab.bench import ledger
from kda_lab.hopper import scripts
from kda_lab.hopper.cases import investigate
from kda_lab.hopper.draw import bank_group, describe, draw_fragment, draw_lanes, lanes
from kda_lab.hopper.fragments import MMA_A, WGMMA_A, ldmatrix_rows, wgmma_c
from kda_lab.hopper.layouts import shared_access, smem_atom
from kda_lab.hopper.recorded import recorded_trace
from kda_lab.hopper.simulator import sweep
from kda_lab.hopper.trace import Event, Trace
from kda_lab.widgets import Layouts, SwimLanes
from kda_lab.widgets.swimlanes import view

TRACE = Trace(
    "t",
    "simulator, seed 0",
    "cycles",
    ("TMA", "math", "idle"),
    (
        Event("TMA", "load", 0, 0, 0, 50, label="x[0]"),
        Event("TMA", "load", 1, 0, 10, 40),
        Event("TMA", "load", 0, 1, 50, 60),
        Event("math", "wait", 0, 0, 0, 50),
        Event("math", "wait", 0, 0, 0, 7, block=3),
    ),
)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_spans_that_overlap_stand_in_different_rows():
    made = dict(lanes(TRACE))
    assert list(made) == ["TMA", "math"]
    assert [[e.begin for e in row] for row in made["TMA"]] == [[0, 50], [10]]
    for _, rows in lanes(investigate("wrong bytes").trace):
        for row in rows:
            assert all(a.end <= b.begin for a, b in zip(row, row[1:], strict=False))


def test_the_view_holds_every_span_of_the_block_once():
    made = view(TRACE, 0)
    numbers = [i for lane in made["lanes"] for row in lane["rows"] for i in row]
    assert sorted(numbers) == list(range(4)) == sorted(made["order"])
    assert made["spans"][0]["text"] == "TMA, load, x[0], stage 0, parity 0: 0 to 50"
    assert [s["meaning"] for s in made["spans"]] == ["keys", "keys", "keys", "state"]
    assert len(view(TRACE, 3)["spans"]) == 1
    json.dumps(made)


def test_swim_lanes_describe_themselves_and_follow_the_block():
    widget = SwimLanes(TRACE)
    assert "math is busy 0% of the time" in widget.alt() and widget.blocks == [0, 3]
    before = widget.picture
    widget.block = 3
    assert widget.picture != before
    with pytest.raises(ValueError, match=r"\bblock\b"):
        SwimLanes(TRACE, block=1)
    with pytest.raises(ValueError, match=r"\bzoom\b"):
        SwimLanes(TRACE, zoom=0.5)
    assert draw_lanes(TRACE).axes[0].get_xlabel() == "cycles"
    assert describe(TRACE.events[3]).startswith("math, wait, stage 0")


def test_the_layout_board_counts_what_the_banks_do():
    widget = Layouts("(8,64):(64,1)")
    assert "8 wavefronts, 7 of them from bank conflicts" in widget.alt()
    assert widget.board["touched"][:2] == [[0, 0], [0, 1]] and len(widget.board["touched"]) == 64
    widget.swizzle = 128
    assert "1 wavefront, 0 of them" in widget.board["says"]
    assert widget.board["offsets"] == [[smem_atom(128)(i, j) for j in range(64)] for i in range(8)]
    widget.access = "column"
    assert widget.board["most"] == 63


@pytest.mark.parametrize("text", ["(8,64", "(0,4)", "8:1", "(65,2)", "(8,64):(1,8)"])
def test_a_wrong_layout_is_told_and_the_board_stays(text):
    widget = Layouts()
    before = widget.board["offsets"]
    widget.layout_text = text
    assert widget.board["error"] and widget.board["offsets"] == before
    widget.layout_text = "(8,64):(72,1)"
    assert not widget.board["error"] and "0 of them" in widget.board["says"]
    with pytest.raises(ValueError):
        Layouts(text)


def test_bank_groups_are_sixteen_bytes_wide():
    assert [bank_group(i, 2) for i in (0, 7, 8, 63, 64)] == [0, 0, 1, 7, 0]


# ---- fragments ----


@pytest.mark.parametrize("fragment", [MMA_A, WGMMA_A, wgmma_c(8), wgmma_c(64)])
def test_every_element_has_one_owner(fragment):
    assert len({tuple(x) for row in fragment.owners for x in row}) == fragment.owners[..., 0].size
    numbers = np.arange(fragment.rows * fragment.columns).reshape(fragment.rows, -1)
    gathered = fragment.gather(numbers)
    row, column = fragment.at(5, 1)
    assert gathered[5, 1] == numbers[row, column]
    assert draw_fragment(fragment).get_title().startswith(fragment.name)


def test_an_accumulator_is_the_next_product_s_operand():
    assert wgmma_c(16).layout == WGMMA_A.layout
    with pytest.raises(ValueError, match=r"\bn\b"):
        wgmma_c(12)


def test_ldmatrix_reaches_every_row_of_the_tile_without_conflict():
    rows = ldmatrix_rows()
    assert sorted(rows) == sorted((r, c) for r in range(16) for c in (0, 8))
    atom = smem_atom(128)
    addresses = [2 * (atom(r % 8, c) + 512 * (r // 8)) for r, c in rows]
    assert shared_access(addresses, 16).conflicts == 0


# ---- scripts of the exercises ----


def test_scripts_are_checked_before_they_run():
    words = ("wait", "read")
    assert scripts.form_problem([("wait", "full", 0, 1), ["read", 2]], words) is None
    assert "must be a list" in scripts.form_problem("wait", words)
    assert "instruction 0" in scripts.form_problem([("jump",)], words)
    assert "must come (str, int, int)" in scripts.form_problem([("wait", "full", 0)], words)
    assert "must come (int)" in scripts.form_problem([("read", True)], words)


def test_a_script_is_the_same_program_as_a_generator():
    load = [("wait", "empty", 0, 1), ("arrive_expect_tx", "full", 0, 32), ("tma_load", 0, 0)]
    use = [("wait", "full", 0, 0), ("read", 0), ("arrive", "empty", 0), ("work",), ("write", 0)]
    want = {"out": scripts.tiles_of(1) ** 2}
    assert sweep(scripts.pipeline(load, use, 1, 1), range(50), want).ok
    assert scripts.first_problem(scripts.pipeline(load[1:], use, 1, 1), 1, range(5)) is None
    assert scripts.first_problem(scripts.pipeline(load, use[1:], 1, 1), 1, range(5)).kind == (
        "read before landed"
    )
    assert "out of" in scripts.first_problem(
        scripts.pipeline([("tma_load", 9, 0)], use, 1, 1), 1, [0]
    )


# ---- recorded traces ----


def test_a_recorded_trace_comes_from_the_ledger(monkeypatch):
    row = {
        "rung": "v3",
        "workload": "8192-H96",
        "unit": "cycles",
        "roles": ["TMA", "math"],
        "events": [e.to_dict() for e in TRACE.events],
    }
    monkeypatch.setattr(ledger, "current", lambda kinds: iter([({"gpu": "H100"}, row)]))
    trace = recorded_trace("v3")
    assert trace.source == "recorded on H100" and trace.unit == "cycles"
    assert trace.events == TRACE.events and trace.roles == ("TMA", "math")
    assert recorded_trace("v9") is None and recorded_trace("v3", "8192-H16") is None
    row["events"][0]["phase"] = 5
    with pytest.raises(ValueError, match="not a valid trace"):
        recorded_trace()
