"""Small calls of one rung for compute-sanitizer: `python -m kda_lab.bench.sanitize RUNG`.

Inputs are made on the CPU, so that hardly any kernel but the rung's runs under the tool. Run it with
PYTORCH_NO_CUDA_MEMORY_CACHING=1: then every tensor is its own allocation, and a step past its end is seen.
"""

import sys

import torch

from kda_lab.bench.suite import Target, in_place, inputs, offsets

DONE = "sanitize: all calls ran"


def calls(t: Target) -> int:
    """Runs the calls; T up to 257. Returns how many."""
    if t.rung == "decode":
        shapes = ((1, 1, 2, False), (1, 5, 4, True), (3, 2, 2, False))
        batch = [inputs(t, T, B=B, H=2, HV=HV, v_first=v) for T, B, HV, v in shapes]
        for a in batch:
            t.raw(**a)
        a = inputs(t, 1, B=3)
        cache = torch.zeros(4, 2, 128, 128).to(t.device)
        indices = torch.tensor([3, -1, 9], dtype=torch.int32).to(t.device)
        in_place(t, a, cache, indices)
        return len(batch) + 1
    cuts = ((1, 1, False), (17, 2, True), (64, 1, False), (257, 1, True))
    batch = [inputs(t, T, H=1, HV=HV, v_first=v) for T, HV, v in cuts]
    packed = inputs(t, 121, N=4, H=1)
    for lengths in ([33, 0, 65, 15], [0, 0, 100, 0]):
        batch.append(packed | dict(cu_seqlens=offsets(lengths, t.device, torch.int32)))
    batch.append(packed | dict(cu_seqlens=torch.tensor([0, 500, -7, 64, 121], device=t.device)))
    batch.append(inputs(t, 40, H=2, gate="floor", state=False) | dict(output_final_state=False))
    for a in batch:
        t.raw(**a)
    torch.cuda.synchronize()
    return len(batch)


if __name__ == "__main__":
    number = calls(Target(sys.argv[1]))
    torch.cuda.synchronize()
    print(f"{DONE}: {number}")
