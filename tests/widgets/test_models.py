"""The numbers behind the widgets, each against an independent computation."""

import base64
import itertools
import math

import nbconvert
import nbformat
import numpy as np
import pytest
import torch

from kda_lab import widgets
from kda_lab.bench.workloads import Workload
from kda_lab.reference import kda_recurrence
from kda_lab.widgets import affine_scan, chunk_matrix, fragments, roofline, state_evolution
from kda_lab.widgets.base import ANYWIDGET_VIEW

STORIES = {
    "example": state_evolution.example_story(),
    "random": state_evolution.random_story(T=9, K=8, V=6, pairs=3),
}


# --- state evolution ------------------------------------------------------------------------------


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
@pytest.mark.parametrize("beta", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("mode", ["delta", "gated", "kda"])
def test_states_follow_the_reference(story, beta, mode):
    gates = {
        "delta": np.zeros_like(story.g),
        "gated": np.tile(story.g_scalar[:, None], (1, story.K)),
        "kda": story.g,
    }[mode]
    k, v, g = map(torch.from_numpy, (story.k, story.v, gates))
    S = torch.zeros(story.K, story.V, dtype=torch.float64)
    states = state_evolution.evolve(story, mode, beta)
    for now in range(story.T):
        at = slice(now, now + 1)
        _, S = kda_recurrence(
            k[at], k[at], v[at], g[at], torch.full((1,), beta, dtype=torch.float64), 1.0, S
        )
        np.testing.assert_allclose(states[now], S.numpy(), atol=1e-12)


def test_linear_attention_is_a_sum_of_outer_products():
    story = STORIES["random"]
    expected = np.cumsum(np.einsum("tc,td->tcd", story.k, story.v), axis=0)
    np.testing.assert_allclose(state_evolution.evolve(story, "linear"), expected, atol=1e-12)


def test_killing_a_channel_empties_its_row_and_a_single_gate_empties_everything():
    story, dead = STORIES["random"], 2
    kda = state_evolution.evolve(story, "kda", 1.0, dead)
    v, k = story.v[-1], story.k[-1]
    before = np.exp(story.g[-1])[:, None] * kda[-2]
    before[dead] = 0
    np.testing.assert_allclose(kda[-1], before + np.outer(k, v - before.T @ k), atol=1e-12)
    gated = state_evolution.evolve(story, "gated", 1.0, dead)
    np.testing.assert_allclose(gated[-1], np.outer(k, v), atol=1e-12)
    delta = state_evolution.evolve(story, "delta", 1.0, dead)
    np.testing.assert_array_equal(delta, state_evolution.evolve(story, "delta", 1.0))


def test_recall_splits_an_answer_into_the_wanted_value_and_the_rest():
    story = STORIES["example"]
    linear = state_evolution.evolve(story, "linear")
    hit, leak = state_evolution.recall(story, linear[1], 1)  # Ada: tea, Ben: coffee, overlap 0.6
    np.testing.assert_allclose(hit, [1, 1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(leak, [0.6, 0.6, 0, 0], atol=1e-12)
    kda = state_evolution.evolve(story, "kda")
    hit, leak = state_evolution.recall(story, kda[6], 6)  # table one has paid
    np.testing.assert_allclose(hit, [0, 0, 1, 1], atol=1e-12)
    answer = np.linalg.norm(state_evolution.evolve(story, "delta")[6].T @ story.keys[0]) / 8
    assert leak[0] == pytest.approx(answer)


def test_the_wanted_values_follow_the_story():
    assert STORIES["example"].wanted.tolist()[4:] == [
        [4, 1, 2, 3], [4, 5, 2, 3], [-2, -2, 2, 3], [-2, 7, 2, 3],
    ]  # fmt: skip
    assert STORIES["random"].wanted.tolist()[:4] == [[0, -1, -1], [0, 1, -1], [0, 1, 2], [3, 1, 2]]


# --- chunk matrix ---------------------------------------------------------------------------------


def random_chunk(C, gate, beta=0.9, kind="random"):
    k = chunk_matrix.chunk_keys(C, kind)
    g = -gate * np.random.default_rng(0).uniform(size=k.shape)
    return k, g, chunk_matrix.chunk_matrix(k, g, np.full(C, beta))


def test_chunk_matrix_entry_by_entry():
    k, g, L = random_chunk(8, 2.0)
    for i, j in itertools.product(range(8), repeat=2):
        decay = np.exp(g[j + 1 : i + 1].sum(0))
        assert L[i, j] == pytest.approx(
            0.9 * np.sum(k[i] * k[j] * decay) if i > j else 0, abs=1e-15
        )


@pytest.mark.parametrize("gate", [0.0, 5.0, 300.0])
def test_no_gate_overflows(gate):
    assert np.isfinite(random_chunk(64, gate)[2]).all()


@pytest.mark.parametrize("method", chunk_matrix.METHODS)
@pytest.mark.parametrize("C", chunk_matrix.SIZES)
def test_all_rounds_give_the_inverse(C, method):
    L = random_chunk(C, 0.5)[2]
    T = chunk_matrix.inverse_after(L, method, chunk_matrix.rounds(C, method))
    np.testing.assert_allclose(T @ (np.eye(C) + L), np.eye(C), atol=1e-12)


def test_what_is_finished_after_each_round():
    C, L = 16, random_chunk(16, 0.1)[2]
    exact = np.linalg.inv(np.eye(C) + L)
    i, j = np.indices((C, C))
    for step in range(5):
        wrong = np.abs(chunk_matrix.inverse_after(L, "doubling", step) - exact) > 1e-12
        assert not wrong[i - j < 2**step].any()
        assert step == 4 or wrong[i - j >= 2**step].any()
    for step in range(C):
        wrong = np.abs(chunk_matrix.inverse_after(L, "substitution", step) - exact) > 1e-12
        assert not wrong[: step + 1].any()


def test_limits_are_where_the_formats_end():
    for name, limit in chunk_matrix.LIMITS.items():
        dtypes = [torch.float16] if name == "fp16" else [torch.float32, torch.bfloat16]
        for dtype in dtypes:
            assert torch.tensor(math.exp(limit - 0.01)).to(dtype).isfinite()
            assert torch.tensor(limit + 0.01, dtype=torch.float64).exp().to(dtype).isinf()


def test_sixteen_tokens_at_the_bound_fit_and_seventeen_times_five_more_do_not():
    worst = chunk_matrix.LIMITS["bf16, fp32"]
    assert chunk_matrix.exponents(16, 5.0).chunk == 80 < worst
    assert chunk_matrix.exponents(32, 5.0).chunk > worst > chunk_matrix.exponents(32, 5.0).block


def test_identical_keys_blow_up_the_factors_of_doubling_but_not_the_inverse():
    w = widgets.ChunkMatrix(C=32, kind="identical", beta=1.0, gate=0.0)
    assert max(w.info["powers"]) > 1e6
    w.step = 5
    assert w.info["largest"] == pytest.approx(1)


# --- affine scan ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", affine_scan.METHODS)
@pytest.mark.parametrize("P", [1, 2, 3, 7, 8, 13, 16])
def test_scan_ends_with_every_state(P, method):
    segments = affine_scan.demo_segments(P, 0.05)
    maps = [affine_scan.segment_map(**x) for x in segments]
    rounds = affine_scan.schedule(P, method)
    slots, first = affine_scan.scan(maps, method, len(rounds))
    assert first == [0] * P
    S = start = torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for x, (M, C) in zip(segments, slots, strict=True):
        k, v, g, beta = (torch.from_numpy(x[name]) for name in ("k", "v", "g", "beta"))
        _, S = kda_recurrence(k, k, v, g, beta, 1.0, S)
        np.testing.assert_allclose(M @ start.numpy() + C, S.numpy(), atol=1e-11)


@pytest.mark.parametrize("P", range(2, 17))
def test_depths(P):
    assert len(affine_scan.schedule(P, "serial")) == P - 1
    assert len(affine_scan.schedule(P, "tree")) == math.ceil(math.log2(P))


def test_states_are_shown_only_once_they_are_known():
    w = widgets.AffineScan(P=8, step=2)
    assert (~np.isnan(w.states("serial")[:, 0, 0])).sum() == 3
    assert (~np.isnan(w.states("tree")[:, 0, 0])).sum() == 4
    w.step = 7
    np.testing.assert_allclose(w.states("serial"), w.states("tree"), atol=1e-12)


# --- roofline -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("T", "H"), [(8192, 96), (2048, 12), (65536, 16)])
def test_counts_agree_with_the_benchmarks(T, H):
    c, w = roofline.cost(T, H), Workload((T,), H)
    assert c.bytes == w.floor_bytes
    assert c.flops == w.flops


def test_two_kernels_move_what_the_published_design_moves():
    c = roofline.cost(8192, 96)
    tokens, state = 8192 * 96, 8 * 96 * 128 * 128
    # 768 + 864 written, 864 + 256 + 256, and beta
    assert c.split_bytes == tokens * (3008 + 2) + state


def test_time_is_the_slower_of_bytes_and_arithmetic():
    c, h20, h100 = roofline.cost(8192, 96), roofline.GPUS["H20"], roofline.GPUS["H100"]
    assert roofline.floor_seconds(c, h100) == c.bytes / 3.35e12
    assert roofline.floor_seconds(roofline.cost(8192, 96, 256, 64), h20) > c.bytes / 4e12
    big = roofline.cost(8192, 16, 256, 64)
    assert roofline.floor_seconds(big, h20) == big.flops / 148e12
    alone = roofline.floor_seconds(big, h20, whole=False)
    assert alone == pytest.approx(big.flops / (148e12 * 16 / 78))


# --- fragments ------------------------------------------------------------------------------------


def by_the_book(operand, lane, value):
    """(row, column) by the formulas of the PTX ISA for mma.m16n8k16, B as [K,N]."""
    group, place, odd = lane // 4, lane % 4, value % 2
    if operand == "A":
        return group + 8 * (value in (2, 3, 6, 7)), 2 * place + odd + 8 * (value >= 4)
    if operand == "B":
        return 2 * place + odd + 8 * (value >= 2), group
    return group + 8 * (value >= 2), 2 * place + odd


@pytest.mark.parametrize("lane", range(32))
def test_each_thread_holds_what_the_isa_says(lane):
    for operand, where in fragments.held(lane).items():
        assert where == [by_the_book(operand, lane, v) for v in range(len(where))]
    assert {name: len(where) for name, where in fragments.held(lane).items()} == dict(A=8, B=4, C=4)


# --- what all widgets share -----------------------------------------------------------------------

SHOWN = {
    "state": lambda: widgets.StateEvolution(),
    "state_linear": lambda: widgets.StateEvolution(modes=("linear",), token=2),
    "state_128": lambda: widgets.StateEvolution(story=widgets.random_story()),
    "chunk": lambda: widgets.ChunkMatrix(),
    "scan": lambda: widgets.AffineScan(),
    "roofline": lambda: widgets.Roofline(),
    "fragments": lambda: widgets.Fragments(),
}


@pytest.mark.parametrize("make", SHOWN.values(), ids=SHOWN)
def test_a_stored_output_holds_the_view_a_picture_and_its_description(make):
    widget = make()
    bundle, metadata = widget._repr_mimebundle_()
    assert bundle[ANYWIDGET_VIEW]["model_id"]
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert len(bundle["image/png"]) < 450_000
    alt = bundle["text/plain"]
    assert 60 < len(alt) < 1000 and alt == metadata["image/png"]["alt"]
    assert bundle["text/plain"] == make()._repr_mimebundle_()[0]["text/plain"]
    assert widget.reading.count(". ") == 1 and widget.reading.endswith(".")


def test_an_exported_page_has_the_description_as_alt_text():
    """nbconvert's classic template passes on the alt text of a picture; its lab template does not."""
    widget = widgets.StateEvolution()
    bundle, metadata = widget._repr_mimebundle_()
    del bundle[ANYWIDGET_VIEW]
    output = nbformat.v4.new_output("display_data", bundle, metadata=metadata)
    cell = nbformat.v4.new_code_cell("show", outputs=[output])
    exporter = nbconvert.HTMLExporter(template_name="classic")
    page, _ = exporter.from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    assert f'alt="{widget.alt()}"' in page


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: widgets.StateEvolution(modes=("soft",)), "modes"),
        (lambda: widgets.StateEvolution(token=9), "token"),
        (lambda: widgets.StateEvolution(beta=-1), "beta"),
        (lambda: widgets.StateEvolution(dead=4), "dead"),
        (lambda: widgets.ChunkMatrix(C=12), "C"),
        (lambda: widgets.ChunkMatrix(kind="none"), "kind"),
        (lambda: widgets.ChunkMatrix(method="guess"), "method"),
        (lambda: widgets.ChunkMatrix(step=9), "step"),
        (lambda: widgets.ChunkMatrix(gate=6), "gate"),
        (lambda: widgets.AffineScan(P=17), "P"),
        (lambda: widgets.AffineScan(step=8), "step"),
        (lambda: widgets.Roofline(gpu="A100"), "gpu"),
        (lambda: widgets.Roofline(D=100), "D"),
        (lambda: widgets.Roofline(T=1), "T"),
        (lambda: widgets.Fragments(32), "thread"),
    ],
)
def test_bad_arguments_are_named(call, name):
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        call()
