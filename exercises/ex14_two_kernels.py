"""Exercises of notebook 14: what two kernels cost, and what fits on an SM.

`prepare` writes one image for each chunk of C tokens and head, `recur` reads it. Times are in seconds,
sizes in bytes.
"""


# ex14.image_bytes: 3 points, 10 minutes, about 3 lines
# A hint: kda-lab hint ex14.image_bytes     Your verdict: kda-lab grade ex14
def image_bytes(C: int, K: int) -> int:
    """Bytes of one chunk's image: K~, Q~ and K- [C,K], T' and M [C,C], all bf16, and e^(G_C) [K] in fp32.

    >>> image_bytes(1, 1)     # five bf16 numbers and one fp32 number
    14
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex14.image_bytes")


# ex14.traffic: 3 points, 10 minutes, about 3 lines
# A hint: kda-lab hint ex14.traffic     Your verdict: kda-lab grade ex14
def traffic(C: int, D: int, image: int) -> float:
    """Bytes that the two kernels move for one token of one head, states and beta left out.

    C: tokens in a chunk. D: channels of keys and of values. image: bytes of one chunk's image. q, k, v, g, o: bf16.

    >>> traffic(C=4, D=1, image=40)     # five rows of 2 bytes; 10 bytes of image written, and read
    30.0
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex14.traffic")


# ex14.recurrence_time: 4 points, 15 minutes, about 5 lines
# A hint: kda-lab hint ex14.recurrence_time     Your verdict: kda-lab grade ex14
def recurrence_time(
    T: int, heads: int, C: int, step: float, sms: int, bytes_per_token: float, bandwidth: float
) -> float:
    """The least time of the recurrence: the longer of its chain of steps and its traffic.

    T: tokens of one sequence. heads: how many such chains. step: seconds for one chunk of one head on one SM, which
    holds one head at a time. bytes_per_token: of one head. bandwidth: of all SMs together.

    >>> recurrence_time(T=32, heads=2, C=16, step=5.0, sms=4, bytes_per_token=1.0, bandwidth=8.0)    # 2 steps; 64 bytes
    10.0
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex14.recurrence_time")


# ex14.makespan: 4 points, 20 minutes, about 5 lines
# A hint: kda-lab hint ex14.makespan     Your verdict: kda-lab grade ex14
def makespan(lengths: list[int], workers: int) -> int:
    """When the last task ends, if tasks are given out in order, each to the worker that is free first.

    lengths: how long each task takes. workers: how many run at once.

    >>> makespan([1, 1, 4], 2), makespan([4, 1, 1], 2)    # the long one last, or first
    (5, 4)
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex14.makespan")


# ex14.first_slot: 3 points, 20 minutes, about 1 lines
# A hint: kda-lab hint ex14.first_slot     Your verdict: kda-lab grade ex14
def first_slot(start: int, n: int, C: int) -> int:
    """Where sequence n's chunk images begin, from nothing but n and the token where it starts.

    Sequences are packed: each begins where the last one ended, and has ceil(length / C) chunks in consecutive
    slots. No two may share a slot, and all must lie below T // C + N (T tokens, N sequences), whatever the lengths.

    >>> [first_slot(start, n, 16) for n, start in enumerate([0, 1, 40])]     # lengths 1 and 39: 1 and 3 chunks
    [0, 1, 4]
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex14.first_slot")


# ex14.blocks_per_sm: 4 points, 20 minutes, about 5 lines
# A hint: kda-lab hint ex14.blocks_per_sm     Your verdict: kda-lab grade ex14
def blocks_per_sm(threads: int, registers: int, shared: int) -> int:
    """How many thread blocks of a kernel fit one Hopper SM at once.

    threads: of a block (a multiple of 32). registers: of a thread, handed out in multiples of 8. shared: bytes that
    the block asks for; 1024 more go to the system. An SM has 2048 threads, 65,536 registers and 228 KB (233,472
    bytes).

    >>> blocks_per_sm(threads=1024, registers=32, shared=0)
    2
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex14.blocks_per_sm")
