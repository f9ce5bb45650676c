// Exercises of notebook 10: First kernels.
//
// Device code alone: the course launches it. On a machine without a GPU it is compiled for the host, where
// every access to memory is checked; with a GPU and nvcc it runs there too. fp32 throughout.
#include "kda_exercise.cuh"

constexpr int kMaxK = 128;  // channels that the shared and register arrays below have room for

// ex10.exp_gates: 2 points, 8 minutes, about 3 lines
// A hint: kda-lab hint ex10.exp_gates     Your verdict: kda-lab grade ex10
/* The decays of many channels: d = exp(g), for any number of blocks and threads.

   g: [n] log decays; d: [n], to be filled. Launched with some blocks of some threads, along x only;
   there may be fewer threads than elements, or more.

   Example: n = 3 and g = 0, -1, -2: d = 1, 0.3679, 0.1353.
*/
__global__ void exp_gates(const float *g, float *d, int n) {
  NOT_ATTEMPTED("ex10.exp_gates");
}

// ex10.row_offset: 2 points, 6 minutes, about 1 lines
// A hint: kda-lab hint ex10.row_offset     Your verdict: kda-lab grade ex10
/* Where row (b, t, h) of a tensor [B,T,H,K] begins, counted in elements from the start.

   b, t, h: the row; T, H, K: the sizes. The tensor is contiguous, K fastest. Returns 64 bits: long
   prompts have more than 2^31 elements.

   Example: row (1, 0, 2) of [2,5,3,4] begins at ((1 * 5 + 0) * 3 + 2) * 4 = 68.
*/
__device__ int64_t row_offset(int b, int t, int h, int T, int H, int K) {
  NOT_ATTEMPTED("ex10.row_offset");
}

// Given: thread i asks your row_offset for row (b[i], t[i], h[i]).
__global__ void rows(const int *b, const int *t, const int *h, int T, int H, int K, int64_t *offset, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) offset[i] = row_offset(b[i], t[i], h[i], T, H, K);
}

// ex10.warp_sum: 3 points, 10 minutes, about 2 lines
// A hint: kda-lab hint ex10.warp_sum     Your verdict: kda-lab grade ex10
/* The sum of one number from each lane of a warp, in every lane.

   value: this lane's number. Returns the sum over all 32 lanes, to all 32 lanes. By shuffles alone: no
   shared memory, no barrier.

   Example: the lanes hold 1, 2, ..., 32: every lane gets 528.
*/
__device__ float warp_sum(float value) {
  NOT_ATTEMPTED("ex10.warp_sum");
}

// Given: every thread stores what your warp_sum gives it.
__global__ void warp_sums(const float *x, float *sum) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  sum[i] = warp_sum(x[i]);
}

// ex10.token_step: 4 points, 20 minutes, about 22 lines
// A hint: kda-lab hint ex10.token_step     Your verdict: kda-lab grade ex10
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
  NOT_ATTEMPTED("ex10.token_step");
}

// ex10.kda_naive: 5 points, 30 minutes, about 34 lines
// A hint: kda-lab hint ex10.kda_naive     Your verdict: kda-lab grade ex10
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
  NOT_ATTEMPTED("ex10.kda_naive");
}


// ex10.register_columns: 5 points, 30 minutes, about 28 lines
// A hint: kda-lab hint ex10.register_columns     Your verdict: kda-lab grade ex10
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
  NOT_ATTEMPTED("ex10.register_columns");
}
