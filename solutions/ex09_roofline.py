"""Exercises of notebook 09: what KDA should cost, before any kernel is written.

One call: T tokens in N sequences, H heads, K = V = D channels. Times are in seconds, rates in
bytes or operations per second.
"""


# exercise least_bytes: 3 points, 15 minutes, 4 lines
# hint 1: Go through the arguments one by one: which must be read at least once, which must be written?
# hint 2: Per token and head: q, k, v, g and o have D numbers of 2 bytes each, beta one number of 2 bytes. Per
#     sequence and head: the fp32 state is read once and written once.
# hint 3: All but one line:
#     per_token = 5 * D * 2 + 2
#     per_sequence = ...
#     return H * (T * per_token + N * per_sequence)
# why: No kernel can move less, so this over the memory's bandwidth is a floor that no cleverness gets under. What a
#     kernel moves besides (a workspace, a second read) is its own choice.
def least_bytes(T: int, H: int, N: int, D: int) -> int:
    """Bytes that any implementation must move: q, k, v, g, o and beta in bf16, fp32 states in and out.

    T: tokens of all sequences together. H: heads. N: sequences. D: channels of keys and of values.

    >>> least_bytes(1, 1, 1, 1)     # 5 numbers and beta of 2 bytes, a state of 4 bytes twice
    20
    """
    # solution
    per_token = 5 * D * 2 + 2  # q k v g o, and beta
    per_sequence = 2 * D * D * 4  # the state, in and out
    return H * (T * per_token + N * per_sequence)
    # end solution


# exercise chunk_operations: 3 points, 15 minutes, 3 lines
# hint 1: List the products of notebook 05 for one chunk of C tokens, each with its shape. A product (a,b)·(b,c)
#     costs 2abc operations.
# hint 2: Per token: three products with the state cost 2 D D each; L, M, the solve (as T R) and M U cost 2 C D each.
# hint 3: All but one line:
#     state = 3 * 2 * D * D
#     chunk = ...
#     return T * H * (state + chunk)
# why: The state products do not depend on the chunk size, the others grow with it. From 16 to 64 the arithmetic
#     grows by two fifths, and on a GPU that is cheap compared with waiting.
def chunk_operations(T: int, H: int, C: int, D: int) -> int:
    """Operations (multiplications and additions) of chunked KDA, dense products, chunk size C.

    Count the three products with the state (k S, q S, and the update) and the four inside the chunk
    (L, M, the inverse times R, and M U). Everything else is small.

    >>> chunk_operations(1, 1, 1, 1)    # seven products of one number each
    14
    """
    # solution
    state = 3 * 2 * D * D  # (C,K)·(K,V) twice, (K,C)·(C,V), a token
    chunk = 4 * 2 * C * D  # L, M, T R, M U
    return T * H * (state + chunk)
    # end solution


# exercise ridge: 2 points, 5 minutes, 1 lines
# hint 1: At the ridge both resources take the same time.
# hint 2: bytes / bandwidth = operations / rate. Solve for operations per byte.
# hint 3: All but one piece:
#     return rate / ...
# why: One number says what a machine is good at. Code with fewer operations per byte waits for memory, however good
#     its arithmetic is; code with more waits for arithmetic.
def ridge(bandwidth: float, rate: float) -> float:
    """Operations per byte at which a machine is equally busy with memory and arithmetic.

    bandwidth: bytes per second. rate: operations per second.

    >>> ridge(2.0, 100.0)
    50.0
    """
    # solution
    return rate / bandwidth
    # end solution


# exercise roofline: 3 points, 10 minutes, 3 lines
# hint 1: Memory and arithmetic can work at the same time. Which of the two times is the answer?
# hint 2: The larger one, and its name. When they are equal, say "memory".
# hint 3: All but one line:
#     memory, arithmetic = bytes / bandwidth, operations / rate
#     limit = ...
#     return max(memory, arithmetic), limit
# why: A model with two numbers, and it is right surprisingly often. Where a kernel is far above it, something else is
#     the limit: waiting, special functions, or instructions.
def roofline(bytes: float, operations: float, bandwidth: float, rate: float) -> tuple[float, str]:
    """The shortest possible time, and what limits it: "memory" or "arithmetic".

    >>> roofline(100.0, 60.0, 10.0, 30.0)     # 10 s of memory, 2 s of arithmetic
    (10.0, 'memory')
    """
    # solution
    memory, arithmetic = bytes / bandwidth, operations / rate
    limit = "memory" if memory >= arithmetic else "arithmetic"
    return max(memory, arithmetic), limit
    # end solution


# exercise special_time: 3 points, 15 minutes, 3 lines
# hint 1: How many exponentials does one gate entry need? It has D of them per token and head.
# hint 2: Three a gate entry here: the sigmoid, e^G and e^-G. All SMs together finish 16 per SM and clock.
# hint 3: All but one line:
#     count = ...
#     per_second = 16 * sms * clock
#     return count / per_second
# why: A Hopper SM does 4096 bf16 operations of matrix work in a clock, and 16 special functions. Kernels of this kind
#     are limited by them more often than by matrix products, and nobody puts them on the roofline.
def special_time(T: int, H: int, D: int, sms: int, clock: float) -> float:
    """Seconds for the special functions: three for each gate entry, 16 per SM and clock.

    sms: streaming multiprocessors. clock: clocks per second.

    >>> special_time(T=16, H=1, D=1, sms=1, clock=1.0)
    3.0
    """
    # solution
    count = 3 * T * H * D
    per_second = 16 * sms * clock
    return count / per_second
    # end solution
