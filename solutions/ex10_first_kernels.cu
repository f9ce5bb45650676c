// Exercises of notebook 10: First kernels.
//
// Device code alone: the course launches it. On a machine without a GPU it is compiled for the host, where
// every access to memory is checked; with a GPU and nvcc it runs there too. fp32 throughout.
#include "kda_exercise.cuh"

constexpr int kMaxK = 128;  // channels that the shared and register arrays below have room for

// exercise exp_gates: 2 points, 8 minutes, 3 lines
// hint 1: How many elements are there for how many threads? Neither divides the other.
// hint 2: A thread starts at its own number in the whole grid and goes on by the number of all threads, while it is below n.
// hint 3: All but one line:
//     const int stride = gridDim.x * blockDim.x;
//     for (int i = ...; i < n; i += stride) d[i] = expf(g[i]);
// why: The loop serves any grid: one block or a thousand. Neighbouring threads touch neighbouring elements in every turn, so each warp reads whole lines of memory.
/* The decays of many channels: d = exp(g), for any number of blocks and threads.

   g: [n] log decays; d: [n], to be filled. Launched with some blocks of some threads, along x only;
   there may be fewer threads than elements, or more.

   Example: n = 3 and g = 0, -1, -2: d = 1, 0.3679, 0.1353.
*/
__global__ void exp_gates(const float *g, float *d, int n) {
  // solution
  const int stride = gridDim.x * blockDim.x;
  const int first = blockIdx.x * blockDim.x + threadIdx.x;
  for (int i = first; i < n; i += stride) d[i] = expf(g[i]);
  // end solution
}

// exercise row_offset: 2 points, 6 minutes, 1 lines
// hint 1: Which axis moves fastest in memory, and how far apart are two neighbours of the slowest?
// hint 2: [B,T,H,K] lies as b, then t, then h, then the channel: fold the numbers in that order. An int holds up to 2,147,483,647.
// hint 3: All but the sizes:
//     return ((int64_t(b) * ... + t) * ... + h) * ...;
// why: One long product is enough to pass 2^31 (65,536 tokens of 96 heads of 128 are 805 million elements a batch entry). The cast stands at the innermost factor: cast later, the product has already wrapped.
/* Where row (b, t, h) of a tensor [B,T,H,K] begins, counted in elements from the start.

   b, t, h: the row; T, H, K: the sizes. The tensor is contiguous, K fastest. Returns 64 bits: long
   prompts have more than 2^31 elements.

   Example: row (1, 0, 2) of [2,5,3,4] begins at ((1 * 5 + 0) * 3 + 2) * 4 = 68.
*/
__device__ int64_t row_offset(int b, int t, int h, int T, int H, int K) {
  // solution
  return ((int64_t(b) * T + t) * H + h) * K;
  // end solution
}

// Given: thread i asks your row_offset for row (b[i], t[i], h[i]).
__global__ void rows(const int *b, const int *t, const int *h, int T, int H, int K, int64_t *offset, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) offset[i] = row_offset(b[i], t[i], h[i], T, H, K);
}

// exercise warp_sum: 3 points, 10 minutes, 2 lines
// hint 1: 32 lanes, one number each, and nobody can read another's register without a shuffle. How few exchanges are enough?
// hint 2: Exchange with the lane whose number differs in one bit, add, and go on to the next bit: after five turns every lane holds everything.
// hint 3: All but one line:
//     for (int bit = 16; bit > 0; bit /= 2)
//       value += ...;
//     return value;
// why: xor pairs the lanes symmetrically, so the sum ends in all of them: the reader of S^T k and the writer of o are often not lane 0. All 32 lanes take part, also those with nothing to add.
/* The sum of one number from each lane of a warp, in every lane.

   value: this lane's number. Returns the sum over all 32 lanes, to all 32 lanes. By shuffles alone: no
   shared memory, no barrier.

   Example: the lanes hold 1, 2, ..., 32: every lane gets 528.
*/
__device__ float warp_sum(float value) {
  // solution
  for (int bit = 16; bit > 0; bit /= 2) value += __shfl_xor_sync(0xffffffff, value, bit);
  return value;
  // end solution
}

// Given: every thread stores what your warp_sum gives it.
__global__ void warp_sums(const float *x, float *sum) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  sum[i] = warp_sum(x[i]);
}

// exercise token_step: 4 points, 20 minutes, 22 lines
// hint 1: Two kinds of work: the vectors q, k, exp(g) are wanted by every thread, the columns of S by one thread each. What stands between the two?
// hint 2: All threads together fill q_s, k_s, d_s with stride blockDim.x; a barrier; then column x: decay, read with k, u = beta (v - read), write, read with q.
// hint 3: After the barrier, for a thread with x < V:
//     float read = 0.0f;
//     for (int c = 0; c < K; ++c) {
//       S[c * V + x] *= d_s[c];
//       read += k_s[c] * S[c * V + x];
//     }
//     const float u = ...;
//     float sum = 0.0f;
//     for (int c = 0; c < K; ++c) {
//       S[c * V + x] += k_s[c] * u;
//       sum += q_s[c] * S[c * V + x];
//     }
//     o[x] = scale * sum;
// why: The exponential is taken once per channel and not once per element of S. Threads beyond V have no column but do load, and reach the barrier: a thread that returns before it leaves the block waiting.
/* One token by one block: decay, erase, write, read; thread x owns column x of the memory.

   S: [K,V] memory, updated in place; q, k, g: [K]; v, o: [V]; beta, scale: numbers. K is at most kMaxK.
   One block of at least V threads along x; K may be larger or smaller than the block. q, k and exp(g) go
   through shared memory, where every thread reads all of them:
       S <- Diag(exp(g)) S,   u = beta (v - S^T k),   S <- S + k u^T,   o = scale S^T q

   Example: K = V = 1, S = 4, g = log 0.5, q = k = 1, v = 6, beta = 0.5, scale = 0.5: the memory decays to 2,
   is told 6, and learns half of the 4 missing: S = 4, o = 2.
*/
__global__ void token_step(float *S, const float *q, const float *k, const float *v, const float *g, float beta,
                           float scale, float *o, int K, int V) {
  __shared__ float q_s[kMaxK], k_s[kMaxK], d_s[kMaxK];
  const int x = threadIdx.x;  // this thread's column
  // solution
  for (int c = x; c < K; c += blockDim.x) {
    q_s[c] = q[c];
    k_s[c] = k[c];
    d_s[c] = expf(g[c]);
  }
  __syncthreads();
  if (x >= V) return;
  float read = 0.0f;
  for (int c = 0; c < K; ++c) {
    S[c * V + x] *= d_s[c];
    read += k_s[c] * S[c * V + x];
  }
  const float u = beta * (v[x] - read);
  float sum = 0.0f;
  for (int c = 0; c < K; ++c) {
    S[c * V + x] += k_s[c] * u;
    sum += q_s[c] * S[c * V + x];
  }
  o[x] = scale * sum;
  // end solution
}

// exercise kda_naive: 5 points, 30 minutes, 34 lines
// hint 1: It is your token_step in a loop over t. What is new is where each row of each tensor begins, and that the loop comes round.
// hint 2: Rows of q and k have H heads, all others HV; head h = hv / (HV / H). A second barrier keeps a fast thread from loading the next token while a slow one still reads this one.
// hint 3: All but the arithmetic of the token:
//     for (int c = 0; c < K; ++c) S[c * columns + x] = x < V ? initial_state[state + c * V + x] : 0.0f;
//     for (int t = 0; t < T; ++t) {
//       const int64_t row = (int64_t(b) * T + t) * HV + hv, row_qk = (int64_t(b) * T + t) * H + hv / (HV / H);
//       __syncthreads();
//       for (int c = x; c < K; c += columns) { ... q_s, k_s, d_s from q[row_qk * K + c], k, g[row * K + c] }
//       __syncthreads();
//       if (x < V) { ... v[row * V + x], beta[row], o[row * V + x] }
//     }
//     if (x < V)
//       for (int c = 0; c < K; ++c) final_state[state + c * V + x] = S[c * columns + x];
// why: This is the ladder's rung v0 for one dtype and one gate. The state stays in shared memory for the whole sequence: in global memory each token would move it twice.
/* The whole recurrence: one block per batch entry and value head, thread x owns column x.

   q, k: [B,T,H,K]; v, o: [B,T,HV,V]; g: [B,T,HV,K] log decays; beta: [B,T,HV];
   initial_state, final_state: [B,HV,K,V]; HV is a multiple of H, value head hv uses key head hv / (HV / H).
   Launched with B * HV blocks of at least V threads and K * columns + 3 * K floats of dynamic shared memory.
       S <- Diag(exp(g)) S,   u = beta (v - S^T k),   S <- S + k u^T,   o = scale S^T q    for t = 0 ... T-1

   Example: two tokens with K = V = 1, S = 0, q = k = 1, g = log 0.5, beta = 1, 0.5, v = 4, 6, scale = 0.5:
   S = 4, then 4 again; o = 2, 2.
*/
__global__ void kda_naive(const float *q, const float *k, const float *v, const float *g, const float *beta,
                          const float *initial_state, float scale, float *o, float *final_state, int T, int H,
                          int HV, int K, int V) {
  extern __shared__ float shared[];
  const int columns = blockDim.x, x = threadIdx.x;
  float *S = shared;              // [K, columns]
  float *q_s = S + K * columns;   // [K]
  float *k_s = q_s + K;           // [K]
  float *d_s = k_s + K;           // [K]  exp(g)
  const int b = blockIdx.x / HV, hv = blockIdx.x % HV;
  const int64_t state = int64_t(blockIdx.x) * K * V;  // where this block's [K,V] begins
  // solution
  for (int c = 0; c < K; ++c) S[c * columns + x] = x < V ? initial_state[state + c * V + x] : 0.0f;
  for (int t = 0; t < T; ++t) {
    const int64_t row = (int64_t(b) * T + t) * HV + hv;
    const int64_t row_qk = (int64_t(b) * T + t) * H + hv / (HV / H);
    __syncthreads();  // the last token's vectors have been read
    for (int c = x; c < K; c += columns) {
      q_s[c] = q[row_qk * K + c];
      k_s[c] = k[row_qk * K + c];
      d_s[c] = expf(g[row * K + c]);
    }
    __syncthreads();  // this token's vectors are there
    if (x < V) {
      float read = 0.0f, sum = 0.0f;
      for (int c = 0; c < K; ++c) {
        S[c * columns + x] *= d_s[c];
        read += k_s[c] * S[c * columns + x];
      }
      const float u = beta[row] * (v[row * V + x] - read);
      for (int c = 0; c < K; ++c) {
        S[c * columns + x] += k_s[c] * u;
        sum += q_s[c] * S[c * columns + x];
      }
      o[row * V + x] = scale * sum;
    }
  }
  if (x < V)
    for (int c = 0; c < K; ++c) final_state[state + c * V + x] = S[c * columns + x];
  // end solution
}

// solution
__device__ float sum_of_lanes(float value) {
  for (int bit = 16; bit > 0; bit /= 2) value += __shfl_xor_sync(0xffffffff, value, bit);
  return value;
}
// end solution

// exercise register_columns: 5 points, 30 minutes, 28 lines
// hint 1: 32 lanes share one column. Which numbers does a lane need that another lane has, and how often per token?
// hint 2: A lane keeps channels lane, lane + 32, ... of its column in s[]. S^T k and S^T q are sums over channels: its own few first, then your warp_sum.
// hint 3: Inside the loop over t, all but one line:
//     float k_r[kPerLane], read = 0.0f, sum = 0.0f;
//     for (int i = 0; i < kPerLane; ++i) {
//       const int c = lane + 32 * i;
//       k_r[i] = c < K ? k[t * K + c] : 0.0f;
//       s[i] *= c < K ? expf(g[t * K + c]) : 0.0f;
//       read += k_r[i] * s[i];
//     }
//     const float u = ...;
//     for (int i = 0; i < kPerLane; ++i) {
//       const int c = lane + 32 * i;
//       s[i] += k_r[i] * u;
//       sum += c < K ? q[t * K + c] * s[i] : 0.0f;
//     }
//     sum = warp_sum(sum);
//     if (lane == 0) o[t * V + x] = scale * sum;
// why: The idea of rung v1: the state never leaves the registers, lanes meet by shuffles, and no block barrier is left. With K fastest in memory the 32 lanes of a warp read 32 neighbours: one line of memory instead of 32.
/* T tokens of one head with the state in registers: one warp per column, its lanes share the channels.

   S: [V,K] memory, K fastest (transposed!), updated in place; q, k, g: [T,K]; v, o: [T,V]; beta: [T]. K is at
   most kMaxK. Launched with blocks of whole warps; warp x of the grid owns column x of the memory, and
   warps beyond V have nothing to do. No shared memory, no __syncthreads.
       S <- Diag(exp(g)) S,   u = beta (v - S^T k),   S <- S + k u^T,   o = scale S^T q    for t = 0 ... T-1

   Example: K = V = 1, T = 1, S = 4, g = log 0.5, q = k = 1, v = 6, beta = 0.5, scale = 0.5: S = 4, o = 2.
*/
__global__ void register_columns(float *S, const float *q, const float *k, const float *v, const float *g,
                                 const float *beta, float scale, float *o, int T, int K, int V) {
  constexpr int kPerLane = kMaxK / 32;  // channels of a lane: lane, lane + 32, ...
  const int lane = threadIdx.x % 32;
  const int x = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;  // this warp's column
  float s[kPerLane];
  // solution
  if (x >= V) return;
  for (int i = 0; i < kPerLane; ++i) {
    const int c = lane + 32 * i;
    s[i] = c < K ? S[x * K + c] : 0.0f;
  }
  for (int t = 0; t < T; ++t) {
    float k_r[kPerLane], read = 0.0f, sum = 0.0f;
    for (int i = 0; i < kPerLane; ++i) {
      const int c = lane + 32 * i;
      k_r[i] = c < K ? k[t * K + c] : 0.0f;
      s[i] *= c < K ? expf(g[t * K + c]) : 0.0f;
      read += k_r[i] * s[i];
    }
    const float u = beta[t] * (v[t * V + x] - sum_of_lanes(read));
    for (int i = 0; i < kPerLane; ++i) {
      const int c = lane + 32 * i;
      s[i] += k_r[i] * u;
      sum += c < K ? q[t * K + c] * s[i] : 0.0f;
    }
    sum = sum_of_lanes(sum);
    if (lane == 0) o[t * V + x] = scale * sum;
  }
  for (int i = 0; i < kPerLane; ++i) {
    const int c = lane + 32 * i;
    if (c < K) S[x * K + c] = s[i];
  }
  // end solution
}
