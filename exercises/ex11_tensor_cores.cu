// Exercises of notebook 11: fragments of mma.sync m16n8k16, and a chunk of KDA built from them.
//
// Everything here is the work of one warp. Its lane is 4 g + t: g = lane / 4, t = lane % 4.
// pack_bf16(low, high) rounds two floats to bf16 and makes one register of them.
#include "kda_exercise.cuh"

constexpr int K = 128;  // key channels

// Given: one of the two bf16 numbers in a register, the low one (0) or the high one (1).
__device__ float number(uint32_t pair, int high) {
  return __bfloat162float(reinterpret_cast<const bf16 *>(&pair)[high]);
}

// ex11.a_fragment: 2 points, 10 minutes, about 5 lines
// A hint: kda-lab hint ex11.a_fragment     Your verdict: kda-lab grade ex11
/* The A operand of mma m16n8k16 in the registers of one lane.

   x: bf16, 16 rows that lie `columns` elements apart. The operand is the 16 x 16 part that starts at
   column `column`. lane: 0 to 31. Fills a[4]: two neighbours of a row in each register, the left one low.

   Registers, in order: row g, columns 2t and 2t+1 · row g+8, the same columns · row g, columns 2t+8 and
   2t+9 · row g+8, the same.

   Example: columns 16, column 0, lane 7 (g = 1, t = 3): a[0] holds x[1][6] and x[1][7], a[1] holds
   x[9][6] and x[9][7], a[2] x[1][14] and x[1][15], a[3] x[9][14] and x[9][15].
*/
__device__ void a_fragment(const bf16 *x, int columns, int column, int lane, uint32_t (&a)[4]) {
  NOT_ATTEMPTED("ex11.a_fragment");
}

// Given: every lane's eight numbers, [32,8].
__global__ void try_a_fragment(const bf16 *x, float *held, int columns, int column) {
  const int lane = threadIdx.x;
  uint32_t a[4];
  a_fragment(x, columns, column, lane, a);
  for (int i = 0; i < 8; ++i) held[lane * 8 + i] = number(a[i / 2], i % 2);
}

// ex11.tile_product: 4 points, 25 minutes, about 13 lines
// A hint: kda-lab hint ex11.tile_product     Your verdict: kda-lab grade ex11
/* c += a b^T over all channels, with tensor cores.

   a, b: bf16 [16, channels], channels a multiple of 16. lane: 0 to 31, all of them call this together.
   c: this lane's accumulators of the [16,16] product: c[0] of columns 0 to 7, c[1] of columns 8 to 15.
   One mma_m16n8k16(d, a, b) adds a 16 x 16 times 16 x 8 product to d (4 floats), from a (4 registers) and b
   (2 registers: column g of the product, channels 2t, 2t+1 and 2t+8, 2t+9 of the step).

   Example: channels 16, c = 0, a and b the identity: lane 0 gets c[0] = {1, 0, 0, 0} and c[1] = {0, 0, 1, 0}.
*/
__device__ void tile_product(const bf16 *a, const bf16 *b, int channels, int lane, float (&c)[2][4]) {
  NOT_ATTEMPTED("ex11.tile_product");
}

// Given: c [16,16] in fp32, changed in place.
__global__ void try_tile_product(const bf16 *a, const bf16 *b, float *c, int channels) {
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  float held[2][4];
  for (int i = 0; i < 8; ++i) held[i / 4][i % 4] = c[(g + 8 * (i / 2 % 2)) * 16 + 8 * (i / 4) + 2 * t + i % 2];
  tile_product(a, b, channels, lane, held);
  for (int i = 0; i < 8; ++i) c[(g + 8 * (i / 2 % 2)) * 16 + 8 * (i / 4) + 2 * t + i % 2] = held[i / 4][i % 4];
}

// ex11.accumulator_to_a: 3 points, 15 minutes, about 4 lines
// A hint: kda-lab hint ex11.accumulator_to_a     Your verdict: kda-lab grade ex11
/* Two neighbouring accumulators become the A operand of the next product.

   left, right: this lane's accumulators of columns 0 to 7 and of columns 8 to 15 of a [16,16] result, fp32.
   Element e of an accumulator: row g (e = 0, 1) or g+8 (e = 2, 3), column 2t (e even) or 2t+1 (e odd).
   Fills a[4] as mma_m16n8k16 wants it, each number rounded to the nearest bf16.

   Example: a lane with left = {1, 2, 3, 4} and right = {5, 6, 7, 8}: a[1] holds 3 (low) and 4 (high).
*/
__device__ void accumulator_to_a(const float (&left)[4], const float (&right)[4], uint32_t (&a)[4]) {
  NOT_ATTEMPTED("ex11.accumulator_to_a");
}

// Given: the A operand made of a result x [16,16]; what each lane holds of it, [32,8].
__global__ void try_accumulator_to_a(const float *x, float *held) {
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  float c[2][4];
  for (int i = 0; i < 8; ++i) c[i / 4][i % 4] = x[(g + 8 * (i / 2 % 2)) * 16 + 8 * (i / 4) + 2 * t + i % 2];
  uint32_t a[4];
  accumulator_to_a(c[0], c[1], a);
  for (int i = 0; i < 8; ++i) held[lane * 8 + i] = number(a[i / 2], i % 2);
}

// ex11.inverse16: 4 points, 20 minutes, about 7 lines
// A hint: kda-lab hint ex11.inverse16     Your verdict: kda-lab grade ex11
/* x = (I + L)^-1 by forward substitution in fp32, a column of x in each of lanes 0 to 15.

   l: [16,16] in shared memory. L is what lies strictly below the diagonal; what lies on it and above means
   nothing and must not be used. x: [16,16], every element is written. lane: 0 to 31.

   Example: L all 0 but L[1][0] = 0.5: x is the identity, but x[1][0] = -0.5.
*/
__device__ void inverse16(const float *l, float *x, int lane) {
  NOT_ATTEMPTED("ex11.inverse16");
}

// Given: L from global memory, through shared memory.
__global__ void try_inverse16(const float *l, float *x) {
  __shared__ float shared[16 * 16];
  for (int i = threadIdx.x; i < 16 * 16; i += 32) shared[i] = l[i];
  __syncwarp();
  inverse16(shared, x, threadIdx.x);
}

// ex11.chunk_step: 5 points, 40 minutes, about 36 lines
// A hint: kda-lab hint ex11.chunk_step     Your verdict: kda-lab grade ex11
/* One chunk of 16 tokens for 16 value channels: one warp, everything transposed.

       R^T = V^T - S^T K_into^T        U^T = R^T T^T
       O^T = S^T Q_into^T + U^T M^T    S^T <- S^T diag(decay) + U^T K_out

   s: this lane's fp32 accumulators of S^T [16 values, K channels]: s[n] has channels 8n to 8n + 7; elements
   0 and 1 are value g at channels 8n + 2t and 8n + 2t + 1, elements 2 and 3 value g + 8. Updated in place.
   v: [16 tokens, 16 values]. k_into, q_into, k_out: [16 tokens, K]. T (with beta inside), M: [16,16]. All
   bf16. decay: fp32 [K]. o: fp32 [16 tokens, 16 values], every element is written. lane: 0 to 31.
   S^T, R^T and U^T are rounded to bf16 where they are operands; s itself never is.

   Example: S = 0, T = M = the identity, v = 3 everywhere: R = U = 3, o = 3 everywhere, and S becomes K_out^T 3.
*/
__device__ void chunk_step(float (&s)[K / 8][4], const bf16 *v, const bf16 *k_into, const bf16 *q_into, const bf16 *k_out,
                           const bf16 *T, const bf16 *M, const float *decay, float *o, int lane) {
  NOT_ATTEMPTED("ex11.chunk_step");
}

// Given: one chunk; S^T [16,K] in fp32, changed in place.
__global__ void try_chunk_step(float *s, const bf16 *v, const bf16 *k_into, const bf16 *q_into, const bf16 *k_out,
                               const bf16 *T, const bf16 *M, const float *decay, float *o) {
  const int lane = threadIdx.x, row = lane / 4, pair = 2 * (lane % 4);
  float held[K / 8][4];
  for (int i = 0; i < K / 2; ++i) held[i / 4][i % 4] = s[(row + 8 * (i / 2 % 2)) * K + 8 * (i / 4) + pair + i % 2];
  chunk_step(held, v, k_into, q_into, k_out, T, M, decay, o, lane);
  for (int i = 0; i < K / 2; ++i) s[(row + 8 * (i / 2 % 2)) * K + 8 * (i / 4) + pair + i % 2] = held[i / 4][i % 4];
}
