"""`kda-lab report`: proof on this GPU that the drop-ins are what they replace.

Parts, each judged against the fp64 recurrence and, where it is installed, the original:
    model      an unmodified KDA model of fla gives the same logits with our backend as without; both timed
    fla        the chunk_kda forward cases of fla's own tests (tests/ops/test_kda.py), through its dispatch
    flash_kda  the cases of FlashKDA's tests (tests/test_fwd_full.py), and the original beside them

The result file is rewritten after each case; rows of a part that is run again replace the older ones.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from kda_lab.bench import ledger, peers, sources
from kda_lab.bench.gold import relative_l2, sample
from kda_lab.bench.machine import Clocks, fingerprint, now
from kda_lab.inputs import check_call
from kda_lab.integrations import fla as backend
from kda_lab.integrations import flash_kda
from kda_lab.native.rungs import RUNGS
from kda_lab.ops import AUTO_CUDA, choose

COMPILED = tuple(name for name in AUTO_CUDA if name in RUNGS)
LIMIT = 6e-3  # relative L2 to fp64: the contract's, and nearly fla's own tests' (5e-3 to 6e-3)
LOGITS_LIMIT = 3e-2  # between two bf16 networks of several layers
GOLD_HEADS = 2
Row = dict


def say(line: str) -> None:
    print(f"report: {line}", flush=True)


def normal(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=rng, device=rng.device)


def uniform(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=rng, device=rng.device)


# ---------------------------------------------------------------- fla: the cases of its tests


def fla_inputs(
    T: int | None = None, H: int = 1, HV: int | None = None, D: int = 128, B: int = 1, dtype: str = "float16",
    scale: float | None = None, cu: list[int] | None = None, gate: bool = False, safe: bool = False,
    divisor: float = 1, masked: float = 0, norm: bool = False, v_first: bool = False,
    sigmoid: bool = False, negative: bool = False, kind: str = "rand", chunk: int = 64, device: str = "cuda",
) -> dict:  # fmt: skip
    """Arguments of fla's chunk_kda, drawn as its tests draw them.

    gate: raw logits; else log decays logsigmoid(N(0,1)) / divisor. masked: share of gates that are 0,
    and with cu (packed sequences) also -1000. kind: q, k, v uniform ("rand") or normal.
    """
    rng = torch.Generator(device).manual_seed(42)
    draw = partial(uniform if kind == "rand" else normal, rng)
    half, HV = getattr(torch, dtype), HV or H
    T = cu[-1] if cu else T
    assert T is not None
    q, k, v = draw(B, T, H, D), draw(B, T, H, D), draw(B, T, HV, D)
    if not norm:  # unit length before the call, as the tests have it
        q, k = (F.normalize(x.to(half).float(), dim=-1) for x in (q, k))
    g = normal(rng, B, T, HV, D)
    if not gate:
        g = F.logsigmoid(g) / divisor
        g = g * (uniform(rng, *g.shape) > masked)
    if cu and masked:
        g = torch.where(uniform(rng, *g.shape) > masked, g, torch.full_like(g, -1000.0))
    if safe and not gate:
        g = g.clamp(-5, 0)
    beta = normal(rng, B, T, HV)
    a = dict(
        q=q.to(half), k=k.to(half), v=v.to(half), g=g.to(half) if gate else g,
        beta=beta.to(half) if sigmoid else beta.to(half).sigmoid(), scale=scale, chunk_size=chunk,
        initial_state=normal(rng, len(cu) - 1 if cu else B, HV, D, D), output_final_state=True,
        use_qk_l2norm_in_kernel=norm, use_gate_in_kernel=gate, use_beta_sigmoid_in_kernel=sigmoid,
        allow_neg_eigval=negative, safe_gate=safe, state_v_first=v_first,
    )  # fmt: skip
    if safe and (gate or not cu):
        a["lower_bound"] = -5.0
    if gate:
        spread = 1 + 15 * uniform(rng, HV)
        a |= dict(
            A_log=spread.log() if cu or sigmoid else normal(rng, HV), dt_bias=normal(rng, HV * D)
        )
    if cu:
        a["cu_seqlens"] = torch.tensor(cu, device=device)
    return a


def fla_cases() -> dict[str, dict]:
    """fla_inputs' arguments of the forward cases of fla's tests/ops/test_kda.py, by test and parameters."""
    chunk = [  # B, T, H, HV, D, scale, divisor, masked, norm, gate, dtype, safe, chunk
        (1, 63, 1, 1, 64, 1, 1, 0, False, False, "float16", True, 64),
        (2, 500, 3, 3, 60, 1, 1, 0, False, False, "float16", True, 64),
        (2, 1000, 3, 3, 64, 0.1, 1, 0.5, False, False, "float16", False, 64),
        (3, 1024, 4, 4, 100, 1, 0.1, 0, False, False, "float16", False, 64),
        (4, 1024, 4, 4, 128, 0.1, 1, 0, False, False, "float16", True, 64),
        (4, 1024, 4, 4, 128, 0.1, 1, 0, True, False, "float16", True, 64),
        (2, 1500, 4, 4, 128, 0.1, 10, 0, False, True, "float16", False, 64),
        (4, 2048, 8, 8, 64, 0.1, 1, 0, False, True, "float16", True, 64),
        (2, 1024, 2, 4, 64, 0.1, 1, 0, False, False, "float16", False, 64),
        (2, 1024, 2, 8, 64, 0.1, 1, 0, False, True, "float16", False, 64),
        (2, 1024, 4, 8, 128, 0.1, 1, 0, True, True, "float16", False, 64),
        (2, 160, 2, 4, 64, 0.1, 1, 0, False, True, "float16", True, 32),
        (2, 1024, 2, 4, 64, 0.1, 1, 0, True, True, "bfloat16", True, 64),
        (2, 1024, 2, 4, 64, 0.1, 1, 0, False, True, "bfloat16", False, 64),
        (2, 160, 2, 4, 64, 0.1, 1, 0, False, True, "bfloat16", True, 32),
        (2, 1024, 2, 8, 128, 0.1, 1, 0, True, True, "bfloat16", False, 64),
    ]
    v_first = [(1, 63, 1, 64, 1), (2, 500, 3, 60, 1), (3, 1024, 4, 128, 0.1), (4, 2048, 8, 64, 0.1)]
    sigmoid = [
        (1, 8192, 96, 128, False, "bfloat16"),
        (1, 8192, 96, 128, True, "bfloat16"),
        (2, 96, 2, 64, True, "float16"),
    ]
    varlen = [  # H, D, masked, cu, gate, safe, chunk
        (4, 60, 0.1, [0, 15], True, False, 64),
        (4, 64, 0.9, [0, 256, 500, 1000], True, False, 64),
        (4, 128, 0.5, [0, 256, 500, 1000], False, False, 64),
        (4, 100, 0, [0, 15, 100, 300, 1200, 2000], True, False, 64),
        (4, 256, 0, [0, 100, 300, 1200, 3000, 4096], False, True, 64),
        (4, 60, 0.1, [0, 31, 96, 160], True, False, 32),
    ]
    prefill = [(4, 60, 0.1, [0, 8192], True, False, 64), *varlen[1:5]]
    flash = [(1, 1024, 4), (2, 2048, 8), (1, 4096, 16)]
    flash_varlen = [
        (4, [0, 256, 500, 1000]), (8, [0, 100, 300, 1200, 2000]), (16, [0, 101, 303, 1205, 3007, 4096]),
    ]  # fmt: skip
    found: dict[str, dict] = {}
    for number, case in enumerate(chunk, 1):
        B, T, H, HV, D, scale, divisor, masked, norm, gate, dtype, safe, size = case
        found[f"chunk {number}: B{B} T{T} H{H} HV{HV} D{D}"] = dict(
            B=B, T=T, H=H, HV=HV, D=D, scale=scale, divisor=divisor, masked=masked, norm=norm, gate=gate,
            dtype=dtype, safe=safe, chunk=size,
        )  # fmt: skip
    for B, T, H, D, scale in v_first:
        found[f"state_v_first: B{B} T{T} H{H} D{D}"] = dict(
            B=B, T=T, H=H, D=D, scale=scale, v_first=True
        )
    for B, T, H, D, negative, dtype in sigmoid:
        found[f"beta_sigmoid: B{B} T{T} H{H} D{D}{' negative' * negative}"] = dict(
            B=B, T=T, H=H, D=D, sigmoid=True, negative=negative, dtype=dtype
        )
    for test, rows in (("varlen", varlen), ("prefill", prefill)):
        for H, D, masked, cu, gate, safe, size in rows:
            found[f"{test}: H{H} D{D} {'+'.join(map(str, cu[1:]))}"] = dict(
                H=H, D=D, masked=masked, cu=cu, gate=gate, safe=safe, chunk=size, kind="normal"
            )
    fused = dict(norm=True, gate=True, sigmoid=True, safe=True, v_first=True, dtype="bfloat16")
    for B, T, H in flash:
        found[f"flash_kda: B{B} T{T} H{H}"] = dict(B=B, T=T, H=H, **fused)
    for H, cu in flash_varlen:
        found[f"flash_kda: H{H} {'+'.join(map(str, cu[1:]))}"] = dict(
            H=H, cu=cu, kind="normal", **fused
        )
    every: dict[str, dict] = {}
    for name, options in found.items():
        every[f"{name} {options.setdefault('dtype', 'float16')}"] = options
        if options["dtype"] == "float16":  # which goes on to fla; the same in bf16 reaches us
            every[f"{name} in bfloat16"] = options | dict(dtype="bfloat16")
    return every


def ours_of(a: dict) -> dict:
    """kda_lab.chunk_kda's arguments of a call of fla's."""
    return {n: x for n, x in a.items() if n != "chunk_size"}


def judge(a: dict, ours: tuple, theirs: tuple | None) -> Row:
    """Distances of o and the final state to fp64 and to the original, on a sample of heads."""
    heads = sample(a, GOLD_HEADS)
    exact, hv = heads.gold(), list(heads.heads)
    row: Row = {}
    row["error"], row["state_error"] = heads.errors(ours[0], ours[1], exact)
    if theirs is not None:
        row["their_error"], row["their_state_error"] = heads.errors(theirs[0], theirs[1], exact)
        row["apart"] = relative_l2(ours[0][:, :, hv], theirs[0][:, :, hv])
    worst = max(row["error"], row["state_error"])
    row["status"] = "passed" if worst <= LIMIT else "failed"
    if worst > LIMIT:
        row["message"] = f"{worst:.1e} from fp64, allowed is {LIMIT:.0e}"
    short = {n: float(f"{x:.3g}") if isinstance(x, float) else x for n, x in row.items()}
    return {n: x for n, x in short.items() if x != float("inf")}  # which JSON does not know


@contextmanager
def untuned() -> Iterator[None]:
    """fla's kernels take the first of their configurations: tuning takes minutes and changes times alone."""
    from triton.runtime.autotuner import Autotuner

    bench = Autotuner._bench
    Autotuner._bench = lambda self, *args, **kwargs: [1.0, 1.0, 1.0]
    try:
        yield
    finally:
        Autotuner._bench = bench


def fla_case(name: str, x: dict) -> Row:
    """One case through fla's chunk_kda, our backend registered; fla's own beside it where it is what we replace."""
    from fla.ops.kda import chunk_kda

    a = fla_inputs(**x)
    with torch.inference_mode():
        backend.register(COMPILED)
        reason = backend.refusal(**a)
        if reason:
            return dict(status="declined", message=reason[:300])
        served_by = choose(check_call(**ours_of(a)), COMPILED).name
        ours, theirs = chunk_kda(**a), None
        if served_by in backend.FASTER:
            backend.unregister()
            with untuned():
                theirs = chunk_kda(**a)
    return judge(ours_of(a), ours, theirs) | dict(served_by=served_by)


# ---------------------------------------------------------------- fla: a model


def model_case(name: str, options: dict) -> Row:
    """A KDA language model of fla, random weights in bf16: logits and times with our backend and without."""
    from fla.models.kda import KDAConfig, KDAForCausalLM

    torch.manual_seed(0)
    config = KDAConfig(
        hidden_size=512, head_dim=128, num_heads=4, num_hidden_layers=4, intermediate_size=1024,
        vocab_size=1024, fuse_cross_entropy=False, **options,
    )  # fmt: skip
    model = KDAForCausalLM(config).to("cuda", torch.bfloat16).eval()
    for layer in model.model.layers:  # as a checkpoint has them
        layer.attn.A_log.data = layer.attn.A_log.data.float()
        layer.attn.dt_bias.data = layer.attn.dt_bias.data.float()
    tokens = torch.randint(0, 1024, (2, 2048), device="cuda")

    def run() -> Tensor:
        with torch.inference_mode():
            first = model(tokens[:, :1024], use_cache=True)
            rest = model(tokens[:, 1024:], past_key_values=first.past_key_values, use_cache=True)
            return torch.cat([first.logits, rest.logits], 1)

    calls = 0

    def counted(*args, **kwargs):
        nonlocal calls
        calls += 1
        return ready(*args, **kwargs)

    ready, backend.ready = backend.ready, counted
    try:
        backend.register()
        ours = run()
    finally:
        backend.ready = ready
    if calls != 2 * config.num_hidden_layers or backend._checked.run is not None:
        return dict(status="failed", message=f"the dispatch asked us {calls} times")
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    backend.unregister()
    theirs = run()
    for turn in range(12):
        for who in ("ours", "theirs") if turn % 2 else ("theirs", "ours"):
            (backend.register if who == "ours" else backend.unregister)()
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            stop.record()
            torch.cuda.synchronize()
            times[who].append(start.elapsed_time(stop))
    backend.unregister()
    apart = relative_l2(ours, theirs.double())
    fine = apart <= LOGITS_LIMIT
    return dict(
        status="passed" if fine else "failed", apart=float(f"{apart:.3g}"),
        served_by=_model_rung("lower_bound" in options),
        eager_ms=median(times["ours"]), their_ms=median(times["theirs"]), calls=calls,
        message="" if fine else f"logits are {apart:.1e} apart, allowed is {LOGITS_LIMIT:.0e}",
    )  # fmt: skip


def _model_rung(bounded: bool) -> str:
    """The rung that serves such a model's layers."""
    fused = dict(norm=True, gate=True, sigmoid=True, v_first=True, dtype="bfloat16")
    a = fla_inputs(T=64, H=4, safe=bounded, **fused)
    return choose(check_call(**ours_of(a)), backend.FASTER).name


MODELS = {
    "4 layers, 4 heads of 128, softplus gate": {},
    "4 layers, 4 heads of 128, bounded gate": dict(safe_gate=True, lower_bound=-5.0),
}


# ---------------------------------------------------------------- flash_kda


def flash_kda_cases() -> dict[str, dict]:
    """FlashKDA's own shapes; every case with states in and out, in, out, and none, in bf16 and fp32."""
    found: dict[str, dict] = {}
    shapes = [(T, H, None) for T in (16, 64, 256, 1024, 4096, 8192, 17, 37, 97) for H in (1, 4, 96)]
    lengths = (
        [16], [16, 16], [4, 8, 12], [64, 128, 256], [1300, 547, 2048, 963, 271, 3063], [1024] * 8,
        [20, 50, 100], [17, 33, 65],
    )  # fmt: skip
    shapes += [(sum(x), H, x) for x in lengths for H in (1, 4, 96)]
    states = [
        (i, o, d) for d in ("bfloat16", "float32") for i in (True, False) for o in (True, False)
    ]
    for n, (T, H, packed) in enumerate(shapes):
        for s in (n,) if T > 1024 else range(len(states)):  # short ones in every combination
            into, out, dtype = states[s % len(states)]
            words = ["in"] * into + ["out"] * out
            name = f"H{H} {'T' + str(T) if packed is None else '+'.join(map(str, packed))}"
            name += f" {dtype} states {' and '.join(words)}" if words else " no states"
            found[name] = dict(T=T, H=H, lengths=packed, into=into, out=out, dtype=dtype)
    return found


def flash_kda_case(
    name: str, T: int, H: int, lengths: list[int] | None, into: bool, out: bool, dtype: str,
    device: str = "cuda",
) -> Row:  # fmt: skip
    """One call of ours, of the original where it is installed, and fp64."""
    rng = torch.Generator(device).manual_seed(42)
    half = torch.bfloat16
    q, k = (F.normalize(normal(rng, 1, T, H, 128), dim=-1).to(half) for _ in range(2))
    v, g = (normal(rng, 1, T, H, 128).to(half) for _ in range(2))
    beta = normal(rng, 1, T, H).to(half)
    A_log, dt_bias = uniform(rng, H), uniform(rng, H, 128)
    cu = None
    if lengths:
        cu = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], device=device)
    shape = (len(lengths) if lengths else 1, H, 128, 128)
    S = normal(rng, *shape).to(getattr(torch, dtype)) if into else None

    def run(function: Callable) -> tuple[Tensor, Tensor | None]:
        o = torch.full_like(v, torch.nan)
        final = torch.empty(shape, dtype=getattr(torch, dtype), device=device) if out else None
        function(q, k, v, g, beta, 128**-0.5, o, A_log, dt_bias, -5.0, S, final, cu)
        return o, final

    arguments = dict(
        q=q, k=k, v=v, g=g, beta=beta, scale=128**-0.5, A_log=A_log, dt_bias=dt_bias, lower_bound=-5.0,
        initial_state=None if S is None else S.float(), use_qk_l2norm_in_kernel=True,
        use_gate_in_kernel=True, use_beta_sigmoid_in_kernel=True, safe_gate=True, state_v_first=True,
        cu_seqlens=cu,
    )  # fmt: skip
    served_by = choose(check_call(**arguments | dict(initial_state=S)), "auto").name
    ours, theirs = run(flash_kda.fwd), None
    if device == "cuda" and find_spec("flash_kda"):
        from flash_kda import fwd as original

        theirs = run(original)
    exact = sample(arguments, GOLD_HEADS).gold()[1]
    if not out:  # nothing to judge: the exact state stands in for it
        full = torch.zeros(shape, dtype=torch.float64, device=device)
        full[:, list(sample(arguments, GOLD_HEADS).heads)] = exact
        ours, theirs = (ours[0], full), theirs and (theirs[0], full)
    return judge(arguments, ours, theirs) | dict(served_by=served_by)


# ---------------------------------------------------------------- a whole run

PARTS: dict[str, tuple[Callable[[], dict[str, dict]], Callable[..., Row], str]] = {
    "model": (lambda: MODELS, lambda name, **x: model_case(name, x), "fla"),
    "fla": (fla_cases, lambda name, **x: fla_case(name, x), "fla"),
    "flash_kda": (flash_kda_cases, flash_kda_case, ""),
}


def run_part(part: str, deadline: float) -> Iterator[Row]:
    """Rows of a part, one a case; those that time or a missing package leaves out are `not_run`."""
    cases, run, needs = PARTS[part]
    missing = f"{needs} is not installed" if needs and not find_spec(needs) else ""
    found = cases()
    for number, (name, options) in enumerate(found.items(), 1):
        row: Row = dict(rung="auto", part=part, case=name)
        start = time.monotonic()
        late = "out of time" if time.monotonic() > deadline else ""
        if missing or late:
            yield row | dict(status="not_run", message=missing or late)
            continue
        try:
            row |= run(name, **options)
        except Exception as error:  # whatever an original raises fails its case and no other
            row |= dict(status="failed", message=f"{type(error).__name__}: {error}"[:300])
        numbers = "  ".join(
            f"{n} {row[n]:.1e}" for n in ("error", "their_error", "apart") if n in row
        )
        say(f"{part} {number} of {len(found)}: {row['status']:8s} {name}  {row.get('served_by', '')}"
            f"  {numbers}  {time.monotonic() - start:.1f} s  {row.get('message', '')[:120]}")  # fmt: skip
        yield row


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="kda-lab report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--out", type=Path, help="folder for the result (default: the ledger)")
    parser.add_argument("--time-budget", type=float, default=900, help="seconds (default 900)")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("report: no CUDA GPU here (or a CPU build of PyTorch)", file=sys.stderr)
        return 1
    out = args.out or ledger.directory()
    deadline = time.monotonic() + args.time_budget
    clocks, hashes, date, rows, path = Clocks(), sources.compiled_hashes(), now(), [], None
    for part in args.part or PARTS:
        for row in run_part(part, deadline):
            rows.append(row)
            clocks.look() if len(rows) % 20 == 1 else None
            served = {x["served_by"] for x in rows if "served_by" in x}
            entry = dict(
                kind="report", **fingerprint(clocks), date=date, rows=rows, versions=peers.versions(),
                command=" ".join(["kda-lab report", *argv]),
                hashes={n: h for n, h in hashes.items() if n in served},
            )  # fmt: skip
            path = ledger.write(entry, out / ledger.file_name(entry))
            torch.cuda.empty_cache()
    counts = {s: sum(row["status"] == s for row in rows) for s in ledger.STATUSES}
    say(", ".join(f"{n} {s.replace('_', ' ')}" for s, n in counts.items() if n) + f"; wrote {path}")
    if path and out.resolve() != ledger.directory().resolve():
        say(f"ledger: {ledger.add(path).name}")
    return 1 if counts["failed"] else 0
