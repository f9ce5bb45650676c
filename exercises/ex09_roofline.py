"""Exercises of notebook 09: what KDA should cost, before any kernel is written.

One call: T tokens in N sequences, H heads, K = V = D channels. Times are in seconds, rates in
bytes or operations per second.
"""


# ex09.least_bytes: 3 points, 15 minutes, about 4 lines
# A hint: kda-lab hint ex09.least_bytes     Your verdict: kda-lab grade ex09
def least_bytes(T: int, H: int, N: int, D: int) -> int:
    """Bytes that any implementation must move: q, k, v, g, o and beta in bf16, fp32 states in and out.

    T: tokens of all sequences together. H: heads. N: sequences. D: channels of keys and of values.

    >>> least_bytes(1, 1, 1, 1)     # 5 numbers and beta of 2 bytes, a state of 4 bytes twice
    20
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex09.least_bytes")


# ex09.chunk_operations: 3 points, 15 minutes, about 3 lines
# A hint: kda-lab hint ex09.chunk_operations     Your verdict: kda-lab grade ex09
def chunk_operations(T: int, H: int, C: int, D: int) -> int:
    """Operations (multiplications and additions) of chunked KDA, dense products, chunk size C.

    Count the three products with the state (k S, q S, and the update) and the four inside the chunk
    (L, M, the inverse times R, and M U). Everything else is small.

    >>> chunk_operations(1, 1, 1, 1)    # seven products of one number each
    14
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex09.chunk_operations")


# ex09.ridge: 2 points, 5 minutes, about 1 lines
# A hint: kda-lab hint ex09.ridge     Your verdict: kda-lab grade ex09
def ridge(bandwidth: float, rate: float) -> float:
    """Operations per byte at which a machine is equally busy with memory and arithmetic.

    bandwidth: bytes per second. rate: operations per second.

    >>> ridge(2.0, 100.0)
    50.0
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex09.ridge")


# ex09.roofline: 3 points, 10 minutes, about 3 lines
# A hint: kda-lab hint ex09.roofline     Your verdict: kda-lab grade ex09
def roofline(bytes: float, operations: float, bandwidth: float, rate: float) -> tuple[float, str]:
    """The shortest possible time, and what limits it: "memory" or "arithmetic".

    >>> roofline(100.0, 60.0, 10.0, 30.0)     # 10 s of memory, 2 s of arithmetic
    (10.0, 'memory')
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex09.roofline")


# ex09.special_time: 3 points, 15 minutes, about 3 lines
# A hint: kda-lab hint ex09.special_time     Your verdict: kda-lab grade ex09
def special_time(T: int, H: int, D: int, sms: int, clock: float) -> float:
    """Seconds for the special functions: three for each gate entry, 16 per SM and clock.

    sms: streaming multiprocessors. clock: clocks per second.

    >>> special_time(T=16, H=1, D=1, sms=1, clock=1.0)
    3.0
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex09.special_time")
