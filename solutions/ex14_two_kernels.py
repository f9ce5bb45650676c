"""Exercises of notebook 14: what two kernels cost, and what fits on an SM.

`prepare` writes one image for each chunk of C tokens and head, `recur` reads it. Times are in seconds,
sizes in bytes.
"""


# exercise image_bytes: 3 points, 10 minutes, 3 lines
# hint 1: List what the recurrence needs of a chunk besides v, with shapes.
# hint 2: Three [C,K] tiles and two [C,C] tiles in bf16, and one row of K decays in fp32.
# hint 3: All but one line:
#     tiles = 3 * C * K * 2
#     squares = ...
#     return tiles + squares + 4 * K
# why: Per token only the squares grow with C and only the decay shrinks, so chunks of 16 and of 64 cost nearly the
#     same bytes: 864 and 1032 a token at K = 128.
def image_bytes(C: int, K: int) -> int:
    """Bytes of one chunk's image: K~, Q~ and K- [C,K], T' and M [C,C], all bf16, and e^(G_C) [K] in fp32.

    >>> image_bytes(1, 1)     # five bf16 numbers and one fp32 number
    14
    """
    # solution
    tiles = 3 * C * K * 2
    squares = 2 * C * C * 2
    return tiles + squares + 4 * K
    # end solution


# exercise traffic: 3 points, 10 minutes, 3 lines
# hint 1: Follow one token of one head through both kernels. Which rows does each read, which does it write?
# hint 2: prepare reads q, k and g and writes its share of the image; recur reads that share and v, and writes o.
#     Rows are D bf16 numbers. (Leave out beta and the states: they are small.)
# hint 3: All but one line:
#     prepare = 3 * 2 * D + image / C
#     recur = ...
#     return prepare + recur
# why: The image is written once and read once, so it counts twice. More than half of the traffic of such a pair is
#     its own workspace: that is what fusion, or an L2 that keeps the image, can save.
def traffic(C: int, D: int, image: int) -> float:
    """Bytes that the two kernels move for one token of one head, states and beta left out.

    C: tokens in a chunk. D: channels of keys and of values. image: bytes of one chunk's image. q, k, v, g, o: bf16.

    >>> traffic(C=4, D=1, image=40)     # five rows of 2 bytes; 10 bytes of image written, and read
    30.0
    """
    # solution
    prepare = 3 * 2 * D + image / C  # q k g in, the image out
    recur = image / C + 2 * 2 * D  # the image and v in, o out
    return prepare + recur
    # end solution


# exercise recurrence_time: 4 points, 15 minutes, 5 lines
# hint 1: A head's chunks come one after the other; heads run beside each other, one on each SM. What if there are
#     more heads than SMs?
# hint 2: Steps of one head: ceil(T / C). Rounds: ceil(heads / sms). And no schedule beats the bytes over the
#     bandwidth.
# hint 3: All but one line:
#     steps = -(-T // C)
#     rounds = -(-heads // sms)
#     chain = ...
#     memory = T * heads * bytes_per_token / bandwidth
#     return max(chain, memory)
# why: With few heads the chain decides and neither bandwidth nor matrix rate matter: four times fewer steps, though
#     each takes longer, is most of what chunks of 64 bring. With many heads the bytes decide.
def recurrence_time(
    T: int, heads: int, C: int, step: float, sms: int, bytes_per_token: float, bandwidth: float
) -> float:
    """The least time of the recurrence: the longer of its chain of steps and its traffic.

    T: tokens of one sequence. heads: how many such chains. step: seconds for one chunk of one head on one SM, which
    holds one head at a time. bytes_per_token: of one head. bandwidth: of all SMs together.

    >>> recurrence_time(T=32, heads=2, C=16, step=5.0, sms=4, bytes_per_token=1.0, bandwidth=8.0)    # 2 steps; 64 bytes
    10.0
    """
    # solution
    steps = -(-T // C)
    rounds = -(-heads // sms)
    chain = rounds * steps * step
    memory = T * heads * bytes_per_token / bandwidth
    return max(chain, memory)
    # end solution


# exercise makespan: 4 points, 20 minutes, 5 lines
# hint 1: Keep one number for each worker: when it will be free.
# hint 2: The next task goes to the worker that is free first. The answer is when the last worker ends.
# hint 3: All but one line:
#     free = [0] * workers
#     for length in lengths:
#         first = free.index(min(free))
#         ...
#     return max(free)
# why: This is what a GPU does with thread blocks in the order of their numbers. A long sequence that comes last
#     starts when everything else ends, so v2, v3 and v4 number the blocks longest sequence first.
def makespan(lengths: list[int], workers: int) -> int:
    """When the last task ends, if tasks are given out in order, each to the worker that is free first.

    lengths: how long each task takes. workers: how many run at once.

    >>> makespan([1, 1, 4], 2), makespan([4, 1, 1], 2)    # the long one last, or first
    (5, 4)
    """
    # solution
    free = [0] * workers
    for length in lengths:
        first = free.index(min(free))
        free[first] += length
    return max(free)
    # end solution


# exercise first_slot: 3 points, 20 minutes, 1 lines
# hint 1: Sequence n may look only at its own start. Slots of full chunks before it: about start / C. What do the
#     ends of n earlier sequences add at most?
# hint 2: Every earlier sequence may leave one chunk partly filled, so one slot each is enough on top of the whole
#     chunks before start.
# hint 3: All but one piece:
#     return start // C + ...
# why: No prefix sum over sequences, on the host or on the device, and no host that waits for cu_seqlens: a block
#     finds its place from one number. It costs at most one unused slot a sequence.
def first_slot(start: int, n: int, C: int) -> int:
    """Where sequence n's chunk images begin, from nothing but n and the token where it starts.

    Sequences are packed: each begins where the last one ended, and has ceil(length / C) chunks in consecutive
    slots. No two may share a slot, and all must lie below T // C + N (T tokens, N sequences), whatever the lengths.

    >>> [first_slot(start, n, 16) for n, start in enumerate([0, 1, 40])]     # lengths 1 and 39: 1 and 3 chunks
    [0, 1, 4]
    """
    # solution
    return start // C + n
    # end solution


# exercise blocks_per_sm: 4 points, 20 minutes, 5 lines
# hint 1: Three things can run out: threads, registers, shared memory. Each allows a number of blocks.
# hint 2: Registers are handed out in units of 8 a thread; a block takes 1024 bytes of shared memory for the system.
#     The scarcest decides.
# hint 3: All but one line:
#     by_threads = 2048 // threads
#     by_registers = 65536 // (threads * (-(-registers // 8) * 8))
#     by_shared = ...
#     return min(by_threads, by_registers, by_shared)
# why: v2's recur asks for two blocks of 128 threads with 250 registers: that is all that 64 K registers hold. A
#     kernel that keeps its state in registers pays with company on its SM, so it must hide latency by itself: with
#     a pipeline.
def blocks_per_sm(threads: int, registers: int, shared: int) -> int:
    """How many thread blocks of a kernel fit one Hopper SM at once.

    threads: of a block (a multiple of 32). registers: of a thread, handed out in multiples of 8. shared: bytes that
    the block asks for; 1024 more go to the system. An SM has 2048 threads, 65,536 registers and 228 KB (233,472
    bytes).

    >>> blocks_per_sm(threads=1024, registers=32, shared=0)
    2
    """
    # solution
    by_threads = 2048 // threads
    by_registers = 65536 // (threads * (-(-registers // 8) * 8))
    by_shared = 233472 // (shared + 1024)
    return min(by_threads, by_registers, by_shared)
    # end solution
