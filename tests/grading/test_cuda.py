"""CUDA exercises: the host form finds what it says, computes what a GPU does, and cannot be fooled or ended."""
# ruff: noqa: E501  the tables of kernels and attacks

import ctypes
import math
import time
from functools import cache
from pathlib import Path

import pytest
import torch

from kda_lab.grading import engine, grade, runner, source, worker
from kda_lab.grading.cuda import compile, gpu
from kda_lab.grading.engine import verdict
from kda_lab.grading.runner import Submission
from kda_lab.native import toolchain
from kda_lab.ops import fused_recurrent_kda

FILE = source.exercise_file("ex10")
ROOT = source.PACKAGE.parent
MODEL = f"{ROOT}/solutions/{FILE.filename}"


def graded(text: str, folder: Path, name: str = "exp_gates", namespaces: bool = True):
    key = f"ex10.{name}"
    (folder / FILE.filename).write_text(text)
    with Submission(folder, FILE.filename, namespaces=namespaces) as submission:
        return verdict(source.exercises(FILE)[key], source.statement(key), submission)


def with_body(name: str, body: str) -> str:
    """The solutions file with another body of one exercise, between its markers."""
    said = source.statement(f"ex10.{name}").source
    first, last = said.index("  // solution\n"), said.index("  // end solution\n")
    return FILE.text.replace(said, said[:first] + body + "\n" + said[last:])


SOLVED = "for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) d[i] = expf(g[i]);"


# ---- the machine itself ---------------------------------------------------------------------------------


@cache
def kernel(text: str, name: str):
    """A kernel of a text of our own, as a function of its arguments."""
    path = compile.library("test", name, compile.variants_text([text], [name]), learners=False)
    library = ctypes.CDLL(str(path))
    library.kda_launch.restype = None
    parameters = [[p.name, p.type, p.written] for p in compile.kernels(text)[name]]

    def run(*args, grid=1, block=32, shared=0):
        shape = [grid, 1, 1, block, 1, 1, shared]
        worker.launch(library, f"0:{name}", shape, parameters, list(args))

    return run


FRAGMENTS = """
__global__ void fragments(const bf16 *a, const bf16 *b, float *d) {
  __shared__ __align__(16) bf16 a_s[16][16], b_s[16][8];
  const int lane = threadIdx.x;
  for (int i = lane; i < 256; i += 32) a_s[i / 16][i % 16] = a[i];
  for (int i = lane; i < 128; i += 32) b_s[i / 8][i % 8] = b[i];
  __syncwarp();
  uint32_t a_r[4], b_r[2];
  float d_r[4] = {1, 2, 3, 4};
  ldmatrix_x4(a_r, &a_s[lane % 16][lane / 16 * 8]);
  ldmatrix_x2_trans(b_r, &b_s[lane % 16][0]);
  mma_m16n8k16(d_r, a_r, b_r);
  for (int i = 0; i < 4; ++i) d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d_r[i] - (i + 1);
}
"""


def test_mma_and_ldmatrix_have_the_lane_layouts_of_the_hardware():
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(16, n, generator=generator).bfloat16() for n in (16, 8))
    d = torch.full((16, 8), math.nan)
    kernel(FRAGMENTS, "fragments")(a, b, d)
    assert torch.allclose(d, a.float() @ b.float(), atol=1e-5)


FRAGMENT_A = """
__global__ void by_hand(const bf16 *a, uint32_t *r) {
  __shared__ __align__(16) bf16 tile[16][16];
  for (int i = threadIdx.x; i < 256; i += 32) tile[i / 16][i % 16] = a[i];
  __syncwarp();
  uint32_t m[4];
  ldmatrix_x4(m, &tile[threadIdx.x % 16][threadIdx.x / 16 * 8]);
  for (int i = 0; i < 4; ++i) r[4 * threadIdx.x + i] = m[i];
}
"""


def test_a_fragment_holds_what_the_ptx_manual_says():
    """Lane 9 (group 2, pair 2) of A: rows 2 and 10, columns 2, 3 and 10, 11."""
    a = torch.arange(256).reshape(16, 16).bfloat16()
    r = torch.full((32, 4), -1, dtype=torch.int32)
    kernel(FRAGMENT_A, "by_hand")(a, r)
    pairs = r[9].view(torch.bfloat16).reshape(4, 2).tolist()
    rows_columns = [(2, 2), (10, 2), (2, 10), (10, 10)]
    assert pairs == [[16 * i + j, 16 * i + j + 1] for i, j in rows_columns]


ROUND = """
__global__ void round_all(const float *x, bf16 *y, uint32_t *pairs, int n) {
  for (int i = threadIdx.x; i < n; i += 32) {
    y[i] = __float2bfloat16(x[i]);
    pairs[i] = pack_bf16(x[i], -x[i]);
  }
}
"""


def test_bf16_rounds_as_torch_does():
    x = torch.cat(
        [
            torch.randn(1000),
            torch.tensor([0.0, 1e-40, 3.4e38, math.inf, -math.inf, 1.00390625, 1.01171875]),
        ]
    )
    y, pairs = torch.empty(len(x), dtype=torch.bfloat16), torch.empty(len(x), dtype=torch.int32)
    kernel(ROUND, "round_all")(x, y, pairs, len(x))
    assert torch.equal(y, x.bfloat16())
    halves = pairs.view(torch.bfloat16).reshape(-1, 2)
    assert torch.equal(halves, torch.stack([x, -x], 1).bfloat16())


def test_shuffles_take_from_the_lane_they_name():
    text = """
__global__ void shuffles(const float *x, float *y, int *votes) {
  const int lane = threadIdx.x;
  y[lane] = __shfl_sync(0xffffffff, x[lane], 3);
  y[32 + lane] = __shfl_up_sync(0xffffffff, x[lane], 2);
  y[64 + lane] = __shfl_down_sync(0xffffffff, x[lane], 2);
  y[96 + lane] = __shfl_xor_sync(0xffffffff, x[lane], 5);
  y[128 + lane] = __shfl_sync(0xffffffff, x[lane], 1, 8);
  votes[lane] = __ballot_sync(0xffffffff, x[lane] > 15.0f);
}
"""
    x, y, votes = torch.arange(32.0), torch.empty(5, 32), torch.zeros(32, dtype=torch.int32)
    kernel(text, "shuffles")(x, y, votes)
    lanes = list(range(32))
    want = [[3] * 32, [max(i - 2, i % 2 if i < 2 else 0) for i in lanes], [i + 2 if i < 30 else i for i in lanes],
            [i ^ 5 for i in lanes], [i // 8 * 8 + 1 for i in lanes]]  # fmt: skip
    assert y.tolist() == want
    assert votes.tolist() == [-(1 << 16)] * 32


PIPELINE = """
constexpr int kStages = 2, kTile = 32;
__global__ void pipeline(const float *x, float *y, int tiles) {
  __shared__ __align__(16) float stage[kStages][kTile];
  __shared__ uint64_t full[kStages], empty[kStages];
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) mbarrier_init(&full[s], 1), mbarrier_init(&empty[s], 32);
    fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x == 32) {  // the producer
    for (int i = 0; i < tiles; ++i) {
      const int s = i % kStages, round = i / kStages;
      while (!mbarrier_try_wait_parity(&empty[s], (round & 1) ^ 1)) ;  // EMPTY
      mbarrier_arrive_expect_tx(&full[s], kTile * 4);
      bulk_copy(stage[s], x + i * kTile, kTile * 4, &full[s]);
    }
  } else if (threadIdx.x < 32) {  // the consumers
    for (int i = 0; i < tiles; ++i) {
      const int s = i % kStages, round = i / kStages;
      while (!mbarrier_try_wait_parity(&full[s], round & 1)) ;  // FULL
      y[i * kTile + threadIdx.x] = 2 * stage[s][31 - threadIdx.x];
      mbarrier_arrive(&empty[s]);
    }
  }
}
"""


def test_a_pipeline_of_mbarriers_and_bulk_copies_runs():
    x, y = torch.randn(5 * 32), torch.full((5 * 32,), math.nan)
    kernel(PIPELINE, "pipeline")(x, y, 5, block=64)
    assert torch.equal(y, 2 * x.reshape(5, 32).flip(1).reshape(-1))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("while (!mbarrier_try_wait_parity(&empty[s], (round & 1) ^ 1)) ;", "", "bulk copies|writes stage|shared memory|more arrivals"),
        ("  __syncthreads();\n  if (threadIdx.x == 32)", "  if (threadIdx.x == 32)", "no barrier stands between|never initialised"),
        ("mbarrier_init(&empty[s], 32)", "mbarrier_init(&empty[s], 33)", "misses 1 of 33 arrivals"),
        ("kTile * 4);\n      bulk", "kTile * 4 + 16);\n      bulk", "misses 0 of 1 arrivals and 16 bytes"),
        ("mbarrier_arrive(&empty[s]);", "", "misses 32 of 32 arrivals"),
        ("x + i * kTile,", "x + i * kTile + 1,", "multiples of 16 bytes"),
        ("    fence_mbarrier_init();\n", "", r"fence_mbarrier_init\(\) is missing"),
        ("while (!mbarrier_try_wait_parity(&full[s], round & 1)) ;", "mbarrier_try_wait_parity(&full[s], round & 1);", "thread 0 of block 0 waits at an mbarrier"),
        ("while (!mbarrier_try_wait_parity(&full[s], round & 1)) ;", "while (!mbarrier_try_wait_parity(&full[s], 1 - (round & 1))) ;", "thread 0 of block 0 waits at an mbarrier .* misses 1 of 1 arrivals, but thread 32"),
        ("      y[i * kTile + threadIdx.x] = 2 * stage[s][31 - threadIdx.x];\n      mbarrier_arrive(&empty[s]);", "      mbarrier_arrive(&empty[s]);\n      y[i * kTile + threadIdx.x] = 2 * stage[s][31 - threadIdx.x];", "while a bulk copy may be writing|no barrier stands between"),
        ("tiles; ++i) {\n      const int s = i % kStages, round = i / kStages;\n      while (!mbarrier_try_wait_parity(&full[s]", "tiles - 1; ++i) {\n      const int s = i % kStages, round = i / kStages;\n      while (!mbarrier_try_wait_parity(&full[s]", "in flight"),
    ],
    ids=["no wait for empty", "no barrier after init", "wrong count", "wrong bytes", "no arrival", "alignment", "no fence", "asked once", "wrong parity", "given back too early", "nobody waits"],
)  # fmt: skip
def test_what_breaks_a_pipeline_is_found(old, new, words):
    assert PIPELINE.count(old) == 1
    with pytest.raises(worker.Fault, match=words):
        kernel(PIPELINE.replace(old, new), "pipeline")(
            torch.randn(5 * 32), torch.zeros(5 * 32), 5, block=64
        )


BY_HAND = """
__global__ void by_hand(const float *x, float *y, int turns) {
  __shared__ float line[32];
  __shared__ uint64_t full, empty;
  if (threadIdx.x == 0) mbarrier_init(&full, 32), mbarrier_init(&empty, 1);
  __syncthreads();
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < turns; ++i)
    if (threadIdx.x < 32) {
      while (!mbarrier_try_wait_parity(&full, i & 1)) {}
      y[32 * i + lane] = line[31 - lane];
      __syncwarp();
      if (lane == 0) mbarrier_arrive(&empty);
    } else {
      while (!mbarrier_try_wait_parity(&empty, ~i & 1)) {}
      line[lane] = x[32 * i + lane];
      mbarrier_arrive(&full);
    }
}
"""


def test_an_mbarrier_orders_those_who_arrive_with_those_who_wait_and_nobody_else():
    x, y = torch.randn(6 * 32), torch.zeros(6 * 32)
    kernel(BY_HAND, "by_hand")(x, y, 6, block=64)
    assert torch.equal(y, x.reshape(6, 32).flip(1).reshape(-1))
    with pytest.raises(worker.Fault, match=r"which thread .* reads, and no barrier stands"):
        kernel(BY_HAND.replace("      __syncwarp();\n", ""), "by_hand")(x, y, 6, block=64)
    with pytest.raises(worker.Fault, match="no barrier stands"):  # other threads' arrivals
        arrive = (
            "if (lane < 31) mbarrier_arrive(&full);\n      if (lane == 0) mbarrier_arrive(&full);"
        )
        kernel(BY_HAND.replace("mbarrier_arrive(&full);", arrive), "by_hand")(x, y, 6, block=64)


def test_a_fault_is_told_from_others_wherever_its_lines_stand(tmp_path):
    """One that looks nothing like the model: lane 0 arrives, and the other lanes have not read yet."""
    (file,) = [f for f in source.notebook_files("ex13") if f.cuda]
    said = source.statement("ex13.consumer_uses")
    body = """
  uint32_t parity = 0;
  for (int first = 0, s = 0; first < n; first += TILE) {
    while (!mbarrier_try_wait_parity(&full[s], parity)) {}
    const int me = threadIdx.x;
    const float a = ring[s][me], b = ring[s][me + 64];
    if (me % 32 == 0) mbarrier_arrive(&empty[s]);
    if (first + me < n) y[first + me] = a * factor;
    if (first + me + 64 < n) y[first + me + 64] = b * factor;
    if (++s == STAGES) s = 0, parity ^= 1;
  }
"""
    stub = source.function_text(file.stub, ".cu", said.name)
    own = stub.replace('NOT_ATTEMPTED("ex13.consumer_uses");', body)
    (tmp_path / file.filename).write_text("\n\n" + file.stub.replace(stub, own))
    with Submission(tmp_path, file.filename) as submission:
        found = verdict(source.exercises(file)[said.id], said, submission)
    assert (found.status, found.looks_like) == ("error", "no __syncwarp")
    assert "ring[" in found.message and "shared memory[" not in found.message


def test_a_read_before_the_copy_has_landed_is_found():
    """Even by the thread that started the copy, with nobody else there."""
    text = """
__global__ void hasty(const float *x, float *y) {
  __shared__ __align__(16) float tile[4];
  __shared__ uint64_t full;
  mbarrier_init(&full, 1);
  fence_mbarrier_init();
  mbarrier_arrive_expect_tx(&full, 16);
  bulk_copy(tile, x, 16, &full);
  while (!mbarrier_try_wait_parity(&full, 0)) {}
  y[0] = tile[3];
}
"""
    x, y = torch.arange(4.0), torch.zeros(1)
    kernel(text, "hasty")(x, y, block=1)
    assert y == 3
    with pytest.raises(
        worker.Fault, match=r"thread 0 of block 0 reads shared memory\[\d+\] while a bulk copy"
    ):
        kernel(text.replace("  while (!mbarrier_try_wait_parity(&full, 0)) {}\n", ""), "hasty")(
            x, y, block=1
        )


FOUND = {  # a kernel's body: what must be found, and words of the message
    "read beyond": ("y[threadIdx.x] = x[threadIdx.x + 1];", "OutOfBounds", "thread 31 of block 0 reads x[32]"),
    "write before": ("y[int(threadIdx.x) - 1] = 0;", "OutOfBounds", "thread 0 of block 0 writes y[-1]"),
    "far away": ("y[threadIdx.x] = x[1 << 30];", "OutOfBounds", "x[1073741824], but x has 32 elements"),
    "beyond shared": ("__shared__ float s[8]; s[threadIdx.x] = 1; y[threadIdx.x] = 0;", "OutOfBounds", "index 8 of an array that is 'float [8]'"),
    "beyond dynamic": ("extern __shared__ float s[]; s[threadIdx.x + 1] = 1;", "OutOfBounds", "the dynamic shared memory[32]"),
    "beyond registers": ("float s[4]; for (int i = 0; i <= 4; ++i) s[i] = x[i]; y[threadIdx.x] = s[3];", "OutOfBounds", "index 4"),
    "missing barrier": ("__shared__ float s[32]; s[threadIdx.x] = x[threadIdx.x]; y[threadIdx.x] = s[31 - threadIdx.x];", "DataRace", "no barrier stands between"),
    "one element for all": ("y[0] = threadIdx.x;", "DataRace", "writes y[0], which thread 0 of block 0 writes"),
    "shuffles are no barrier": (
        "__shared__ float s[32]; s[threadIdx.x] = 1; __shfl_xor_sync(0xffffffff, 1, 1); y[threadIdx.x] = s[31 - threadIdx.x];",
        "DataRace", "no barrier stands between",
    ),
    "divergent barrier": ("if (threadIdx.x < 16) __syncthreads(); else __syncwarp(0xffff0000);\n__syncthreads(); y[0] = 0;", "BarrierError", "waits at __syncthreads()"),
    "two barriers": ("if (threadIdx.x < 16)\n__syncthreads();\nelse\n__syncthreads();", "BarrierError", "but thread 31 waits at __syncthreads()"),
    "returned": ("if (threadIdx.x) return; __syncthreads();", "BarrierError", "but thread 31 has returned"),
    "lanes missing": ("if (threadIdx.x < 30) y[threadIdx.x] = __shfl_down_sync(0xffffffff, x[0], 1);", "BarrierError", "for lane 30, which has returned"),
    "from outside the mask": ("if (threadIdx.x < 16) y[threadIdx.x] = __shfl_xor_sync(0xffff, x[0], 16);", "Misuse", "reads from lane 16, which is not in the mask"),
    "overflow": ("y[threadIdx.x] = int(gridDim.x + 65535) * 65536;", "IntegerOverflow", "65536 * 65536, which does not fit 'int'"),
    "division": ("y[threadIdx.x] = n / int(gridDim.x - 1);", "Crash", "divides an integer by zero"),
    "no array": ("y[threadIdx.x] = *reinterpret_cast<const volatile float *>(16);", "Crash", "belongs to no array"),
    "stack": ("volatile float big[40000]; big[n] = 1; y[0] = big[n];", "Crash", "KB of stack"),
    "alignment": ("y[threadIdx.x] = reinterpret_cast<const float4 *>(x + 1)->x + reinterpret_cast<const float4 *>(x + 1)->w;", "Misuse", "no multiple of 16"),
    "row of ldmatrix": ("__shared__ __align__(16) bf16 s[64]; uint32_t r[2]; ldmatrix_x2(r, s + threadIdx.x % 2); y[threadIdx.x] = r[0];", "Misuse", "multiple of 16 bytes"),
    "row not shared": ("uint32_t r[2]; ldmatrix_x2(r, x); y[threadIdx.x] = r[0];", "Misuse", "must lie in shared memory"),
}  # fmt: skip


@cache
def found_library():
    texts = [
        f"__global__ void k(const float *x, float *y, int n) {{\n{body}\n}}\n"
        for body, _, _ in FOUND.values()
    ]
    path = compile.library("test", "faults", compile.variants_text(texts, ["k"]), learners=False)
    library = ctypes.CDLL(str(path))
    library.kda_launch.restype = None
    return library, [[p.name, p.type, p.written] for p in compile.kernels(texts[0])["k"]]


@pytest.mark.parametrize("name", FOUND)
def test_faults_are_found_and_named(name):
    library, parameters = found_library()
    _, kind, words = FOUND[name]
    version = list(FOUND).index(name)
    with pytest.raises(worker.Fault) as caught:
        shape = [1, 1, 1, 32, 1, 1, 128]
        worker.launch(
            library, f"{version}:k", shape, parameters, [torch.zeros(32), torch.zeros(32), 20000]
        )
    assert kind in ("", type(caught.value).__name__), caught.value
    assert words in str(caught.value), caught.value


RIGHT = {  # bodies in which nothing may be found
    "barrier in a loop": "__shared__ float s[32];\nfor (int t = 0; t < 3; ++t) {\n__syncthreads(); s[threadIdx.x] = x[t]; __syncthreads(); y[threadIdx.x] = s[31 - threadIdx.x];\n}",
    "a warp's own barrier": "__shared__ float s[32]; s[threadIdx.x] = x[threadIdx.x]; __syncwarp(); y[threadIdx.x] = s[31 - threadIdx.x];",
    "atomics": "__shared__ float s;\nif (threadIdx.x == 0) s = 0;\n__syncthreads(); atomicAdd(&s, 1.0f); __syncthreads(); y[threadIdx.x] = s;",
    "one warp leaves early": "if (threadIdx.x / 32) return; y[threadIdx.x] = __shfl_xor_sync(0xffffffff, x[threadIdx.x], 1);",
    "vectors": "if (threadIdx.x < 8) { const float4 v = reinterpret_cast<const float4 *>(x)[threadIdx.x]; y[threadIdx.x] = v.x + v.w; }",
}  # fmt: skip


def test_right_kernels_are_left_in_peace():
    texts = [
        f"__global__ void k(const float *x, float *y, int n) {{\n{body}\n}}\n"
        for body in RIGHT.values()
    ]
    path = compile.library("test", "right", compile.variants_text(texts, ["k"]), learners=False)
    library = ctypes.CDLL(str(path))
    library.kda_launch.restype = None
    parameters = [[p.name, p.type, p.written] for p in compile.kernels(texts[0])["k"]]
    for i in range(len(texts)):
        worker.launch(
            library,
            f"{i}:k",
            [1, 1, 1, 32, 1, 1, 0],
            parameters,
            [torch.ones(32), torch.zeros(32), 32],
        )


def test_the_model_kernel_is_the_recurrence():
    """ex10's whole kernel against the fp64 oracle: the reference of these exercises is itself right."""
    exercise = source.exercises(FILE)["ex10.kda_naive"]
    for case in exercise.cases:
        q, k, v, g, beta, S0, scale, _ = args = case.make(
            engine.Draw(engine.fresh_seed(), case.dtype)
        )
        o, final = source.model("ex10.kda_naive")(*args)
        double = [x.double() for x in (q, k, v, g, beta)]
        want, want_final = fused_recurrent_kda(
            *double, scale, initial_state=S0.double(), output_final_state=True, backend="reference"
        )
        assert engine.distance(o, want) < 1e-5 and engine.distance(final, want_final) < 1e-5


# ---- verdicts -------------------------------------------------------------------------------------------


def test_messages_say_what_where_and_which_line(tmp_path):
    text = with_body("token_step", source.statement("ex10.token_step").source.split("// solution\n")[1]
                     .split("  // end")[0].replace("  __syncthreads();\n", ""))  # fmt: skip
    found = graded(text, tmp_path, "token_step")
    assert (found.status, found.looks_like) == ("error", "no barrier")
    line = next(i for i, x in enumerate(text.splitlines(), 1) if x == "    q_s[c] = q[c];")
    assert f"{FILE.filename} line {line}: q_s[c] = q[c];" in found.message
    assert "q_s[1]" in found.message and "thread 0 of block 0" in found.message
    assert "Looks like the barrier is missing" in found.message


def test_a_compile_error_says_the_line(tmp_path):
    found = graded(with_body("exp_gates", "  d[0] = expf(g[0]"), tmp_path)
    line = FILE.text.splitlines().index("  // solution") + 1
    assert found.status == "error" and f"{FILE.filename}:{line}:" in found.message, found.message


def test_what_the_learner_prints_is_shown(tmp_path):
    found = graded(with_body("exp_gates", f'  printf("n is %d\\n", n); {SOLVED}'), tmp_path)
    assert found.status == "passed" and found.printed.startswith("n is ")


def test_a_changed_signature_is_refused(tmp_path):
    found = graded(FILE.text.replace("exp_gates(const float *g", "exp_gates(float *g"), tmp_path)
    assert found.status == "error" and "the parameters of exp_gates must stay" in found.message
    found = graded(FILE.text.replace("exp_gates(", "exponentials("), tmp_path)
    assert found.status == "error" and "has no function exp_gates" in found.message


def test_without_a_compiler_the_verdict_says_what_is_missing(tmp_path, monkeypatch):
    def none():
        raise toolchain.Unbuildable("no C++ compiler: install g++")

    monkeypatch.setattr(toolchain, "find_cxx", none)
    found = graded(FILE.text, tmp_path)
    assert (found.status, found.points) == ("error", 0)
    assert "install g++" in found.message and "cannot be compiled here" in found.message
    assert graded(FILE.stub, tmp_path).status == "not_attempted"


class PretendGpu:
    """A GPU whose kernels give what a function gives."""

    function = staticmethod(lambda g, blocks, threads: g.exp())

    def __init__(self, file, text, left):
        pass

    def call(self, name, args, seconds=0):
        return runner.Local(self.function).call(name, args)

    def stop(self):
        pass


def test_both_verdicts_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "here", lambda: "Pretend GPU")
    monkeypatch.setattr(gpu, "Gpu", PretendGpu)
    found = graded(FILE.text, tmp_path)
    assert (found.status, found.gpu, found.message) == ("passed", "Pretend GPU", "")
    assert "on the host and on the Pretend GPU" in grade.line(found)
    monkeypatch.setattr(PretendGpu, "function", staticmethod(lambda g, *_: g))
    found = graded(FILE.text, tmp_path)
    assert (found.status, found.points, found.gpu) == ("failed", 0, "")
    assert found.message.startswith(
        "On the host every case passes; on the Pretend GPU:\n[hand-worked] d[0] is"
    )


# ---- attacks --------------------------------------------------------------------------------------------


@pytest.fixture(params=[True, False], ids=["namespaces", "seccomp"])
def namespaces(request):
    return request.param


REFUSED = {  # text put before the first exercise
    "include the solutions": f'#include "{MODEL}"',
    "spelled otherwise": f'%:include "{MODEL}"',
    "in two lines": f'#inc\\\nlude "{MODEL}"',
    "behind a comment": f'#/* a\ncomment */include "{MODEL}"',
    "through a macro": f'#define WHAT "{MODEL}"\n#include WHAT',
    "as if it were the grader's": f'#line 1 "<stdin>"\n#include "{MODEL}"',
    "a header": "#include <vector>",
    "assembler": f'asm(".incbin \\"{MODEL}\\"");',
    "assembler, pasted": f'#define PASTE(a, b) a##b\nPASTE(as, m)(".incbin \\"{MODEL}\\"");',
    "a constructor": "__attribute__((constructor)) void first() {}",
    "a pragma": '#pragma GCC optimize("O0")',
    "a hook of its own": 'extern "C" void __tsan_read4(void *) {}',
    "an entry of its own": 'extern "C" void kda_launch(const char *, const long *, int, void *, void *) {}',
    "Python": 'extern "C" int PyRun_SimpleString(const char *);\nint run() { return PyRun_SimpleString("1"); }\nint (*keep)() = run;',
}  # fmt: skip


@pytest.mark.parametrize("way", REFUSED)
def test_texts_that_reach_out_are_not_compiled(way, tmp_path):
    text = FILE.text.replace("constexpr int kMaxK", REFUSED[way] + "\nconstexpr int kMaxK", 1)
    found = graded(text, tmp_path)
    assert found.status == "error" and "does not compile" in found.message, found


def test_a_compiler_that_is_kept_busy_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(compile, "COMPILE_SECONDS", 2)
    bomb = "template <int n, class A, class B> struct Bomb { using T = typename Bomb<n - 1, Bomb<n, A, int>, B>::T;" \
           " using U = typename Bomb<n - 1, A, Bomb<n, B, int>>::U; };\n" \
           "template <class A, class B> struct Bomb<0, A, B> { using T = int; using U = int; };\nBomb<40, int, int>::T x;\n"  # fmt: skip
    start = time.monotonic()
    found = graded(
        FILE.text.replace("constexpr int kMaxK", bomb + "constexpr int kMaxK", 1), tmp_path
    )
    assert found.status == "error" and time.monotonic() - start < 20, found


DECLARE = """
extern "C" {
int open(const char *, int, ...); int unlink(const char *); int fork(); int kill(int, int); int getppid(); int socket(int, int, int);
int execv(const char *, char *const *); void *dlopen(const char *, int); void _exit(int); void *malloc(unsigned long); void abort();
long write(int, const void *, unsigned long); long syscall(long, ...); int dup2(int, int);
}
"""
DOORS = {  # each gives true if it could be done
    "read a file": f'open("{MODEL}", 0) >= 0',
    "write a file": 'open("TREASURE", 1) >= 0',
    "remove a file": 'unlink("TREASURE") == 0',
    "start a process": "fork() >= 0",
    "start a program": 'execv("/bin/true", nullptr) == 0',
    "end the grader": "kill(getppid(), 9) == 0",
    "call out": "socket(2, 1, 0) >= 0",
    "load a library": 'dlopen("libm.so.6", 2 | 4) == nullptr ? false : open("/proc/self/maps", 0) >= 0',
    "a raw system call": "syscall(56, 17, 0, 0, 0, 0) >= 0",
}  # fmt: skip


def test_every_door_is_shut(tmp_path, namespaces):
    treasure = tmp_path / "keep"
    treasure.write_text("gold")
    doors = "".join(f"  if ({way}) opened |= {1 << i};\n" for i, way in enumerate(DOORS.values()))
    body = f'  unsigned opened = 0;\n{doors}  printf("opened %u\\n", opened);\n  {SOLVED}'
    text = with_body("exp_gates", body).replace(
        "constexpr int kMaxK", DECLARE + "constexpr int kMaxK", 1
    )
    found = graded(text.replace("TREASURE", str(treasure)), tmp_path, namespaces=namespaces)
    assert found.status == "passed" and found.printed.startswith("opened 0\n"), found
    assert treasure.read_text() == "gold"


def test_loading_runs_nothing(tmp_path, namespaces):
    extra = DECLARE + "struct Early { Early() { _exit(0); } } early;\nint also = (_exit(0), 1);\n"
    found = graded(
        FILE.text.replace("constexpr int kMaxK", extra + "constexpr int kMaxK", 1),
        tmp_path,
        namespaces=namespaces,
    )
    assert found.status == "passed", found


DISTURBANCES = {  # body of exp_gates, statuses
    "endless loop": ("for (volatile unsigned i = 0;; ++i) ;", {"timeout"}),
    "endless barrier": ("for (;;) __syncthreads();", {"timeout"}),
    "exit": ("_exit(0);", {"error"}),
    "abort": ("abort();", {"error"}),
    "null": ("d[0] = *(volatile const float *)nullptr;", {"error"}),
    "memory": ("for (;;) { char *p = (char *)malloc(1 << 24); for (int i = 0; i < 1 << 24; i += 4096) p[i] = 1; }", {"error", "timeout"}),
    "nonsense on every file": ('for (int i = 0; i < 100; ++i) write(i, "xxxxxxxxxxxxxxxx", 16); ' + SOLVED, {"error", "timeout"}),
    "its own verdict": ("printf(\"{\\\"status\\\": \\\"passed\\\"}\");", {"failed"}),
    "nothing": ("", {"failed"}),
}  # fmt: skip


@pytest.mark.parametrize("name", DISTURBANCES)
def test_disturbances_end_in_a_verdict(name, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "EXERCISE_SECONDS", 3)
    monkeypatch.setattr(engine, "EXERCISE_SECONDS", 3)
    body, statuses = DISTURBANCES[name]
    text = with_body("exp_gates", "  " + body).replace(
        "constexpr int kMaxK", DECLARE + "constexpr int kMaxK", 1
    )
    start = time.monotonic()
    found = graded(text, tmp_path)
    assert found.status in statuses and found.points == 0, found
    assert time.monotonic() - start < 40


def test_a_process_keeps_no_mappings_of_its_launches():
    """A process may have some 65,000, and the tests of a class of learners load hundreds of libraries."""

    def mappings() -> int:
        return len(Path("/proc/self/maps").read_text().splitlines())

    put = kernel('#include "kda_exercise.cuh"\n__global__ void put(float *x) {\n  x[threadIdx.x] = 1.0f;\n}\n', "put")
    before = mappings()
    for _ in range(3):
        x = torch.zeros(1024)
        put(x, block=1024)
        assert bool((x == 1).all())
    assert mappings() - before < 50
