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

// exercise a_fragment: 2 points, 10 minutes, 5 lines
// hint 1: Find g and t of the lane first. Which two rows has it, and which four columns?
// hint 2: Register r has row g + 8 (r % 2) and columns 2 t + 8 (r / 2) and the next one.
// hint 3: All but one line:
//     const int g = lane / 4, t = lane % 4;
//     for (int r = 0; r < 4; ++r) {
//       const bf16 *from = ...;
//       a[r] = pack_bf16(from[0], from[1]);
//     }
// why: Two neighbours of a row lie side by side in memory, so a register is one 4-byte load; and ldmatrix,
//     which loads all four registers at once, deals them out in this same order.
/* The A operand of mma m16n8k16 in the registers of one lane.

   x: bf16, 16 rows that lie `columns` elements apart. The operand is the 16 x 16 part that starts at
   column `column`. lane: 0 to 31. Fills a[4]: two neighbours of a row in each register, the left one low.

   Registers, in order: row g, columns 2t and 2t+1 · row g+8, the same columns · row g, columns 2t+8 and
   2t+9 · row g+8, the same.

   Example: columns 16, column 0, lane 7 (g = 1, t = 3): a[0] holds x[1][6] and x[1][7], a[1] holds
   x[9][6] and x[9][7], a[2] x[1][14] and x[1][15], a[3] x[9][14] and x[9][15].
*/
__device__ void a_fragment(const bf16 *x, int columns, int column, int lane, uint32_t (&a)[4]) {
  // solution
  const int g = lane / 4, t = lane % 4;
  for (int r = 0; r < 4; ++r) {
    const bf16 *from = x + (g + 8 * (r % 2)) * columns + column + 2 * t + 8 * (r / 2);
    a[r] = pack_bf16(from[0], from[1]);
  }
  // end solution
}

// Given: every lane's eight numbers, [32,8].
__global__ void try_a_fragment(const bf16 *x, float *held, int columns, int column) {
  const int lane = threadIdx.x;
  uint32_t a[4];
  a_fragment(x, columns, column, lane, a);
  for (int i = 0; i < 8; ++i) held[lane * 8 + i] = number(a[i / 2], i % 2);
}

// exercise tile_product: 4 points, 25 minutes, 13 lines
// hint 1: One loop over the channels, 16 at a time. In it: A's registers once, then B's registers
//     and one product for each half of the columns.
// hint 2: For columns 8 n to 8 n + 7 of the product, B's lane holds row g + 8 n of b, at
//     channels 2t, 2t+1 and 2t+8, 2t+9 of the step.
// hint 3: All but one line:
//     for (int step = 0; step < channels; step += 16) {
//       uint32_t fa[4];   // as in a_fragment, from column `step` of a
//       ...
//       for (int n = 0; n < 2; ++n) {
//         const bf16 *from = b + (g + 8 * n) * channels + step + 2 * t;
//         const uint32_t fb[2] = ...;
//         mma_m16n8k16(c[n], fa, fb);
//       }
//     }
// why: B is wanted as [N,K], a row for each column of the product: then two neighbours along the channels
//     share a register, just as keys lie in memory. K K^T needs no transposition at all.
/* c += a b^T over all channels, with tensor cores.

   a, b: bf16 [16, channels], channels a multiple of 16. lane: 0 to 31, all of them call this together.
   c: this lane's accumulators of the [16,16] product: c[0] of columns 0 to 7, c[1] of columns 8 to 15.
   One mma_m16n8k16(d, a, b) adds a 16 x 16 times 16 x 8 product to d (4 floats), from a (4 registers) and b
   (2 registers: column g of the product, channels 2t, 2t+1 and 2t+8, 2t+9 of the step).

   Example: channels 16, c = 0, a and b the identity: lane 0 gets c[0] = {1, 0, 0, 0} and c[1] = {0, 0, 1, 0}.
*/
__device__ void tile_product(const bf16 *a, const bf16 *b, int channels, int lane, float (&c)[2][4]) {
  // solution
  const int g = lane / 4, t = lane % 4;
  for (int step = 0; step < channels; step += 16) {
    uint32_t fa[4];
    for (int r = 0; r < 4; ++r) {
      const bf16 *from = a + (g + 8 * (r % 2)) * channels + step + 2 * t + 8 * (r / 2);
      fa[r] = pack_bf16(from[0], from[1]);
    }
    for (int n = 0; n < 2; ++n) {
      const bf16 *from = b + (g + 8 * n) * channels + step + 2 * t;
      const uint32_t fb[2] = {pack_bf16(from[0], from[1]), pack_bf16(from[8], from[9])};
      mma_m16n8k16(c[n], fa, fb);
    }
  }
  // end solution
}

// Given: c [16,16] in fp32, changed in place.
__global__ void try_tile_product(const bf16 *a, const bf16 *b, float *c, int channels) {
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  float held[2][4];
  for (int i = 0; i < 8; ++i) held[i / 4][i % 4] = c[(g + 8 * (i / 2 % 2)) * 16 + 8 * (i / 4) + 2 * t + i % 2];
  tile_product(a, b, channels, lane, held);
  for (int i = 0; i < 8; ++i) c[(g + 8 * (i / 2 % 2)) * 16 + 8 * (i / 4) + 2 * t + i % 2] = held[i / 4][i % 4];
}

// exercise accumulator_to_a: 3 points, 15 minutes, 4 lines
// hint 1: Write down which rows and columns left[0..3] and right[0..3] are, then which rows and
//     columns the four registers of A want.
// hint 2: Nothing changes lane. left[0], left[1] are row g at columns 2t and 2t+1: exactly
//     the first register of A.
// hint 3: All but one line:
//     a[0] = pack_bf16(left[0], left[1]);
//     a[1] = pack_bf16(left[2], left[3]);
//     a[2] = ...;
//     a[3] = pack_bf16(right[2], right[3]);
// why: Four conversions and no exchange. Whoever designed the fragments wanted products to be chained.
/* Two neighbouring accumulators become the A operand of the next product.

   left, right: this lane's accumulators of columns 0 to 7 and of columns 8 to 15 of a [16,16] result, fp32.
   Element e of an accumulator: row g (e = 0, 1) or g+8 (e = 2, 3), column 2t (e even) or 2t+1 (e odd).
   Fills a[4] as mma_m16n8k16 wants it, each number rounded to the nearest bf16.

   Example: a lane with left = {1, 2, 3, 4} and right = {5, 6, 7, 8}: a[1] holds 3 (low) and 4 (high).
*/
__device__ void accumulator_to_a(const float (&left)[4], const float (&right)[4], uint32_t (&a)[4]) {
  // solution
  a[0] = pack_bf16(left[0], left[1]);
  a[1] = pack_bf16(left[2], left[3]);
  a[2] = pack_bf16(right[0], right[1]);
  a[3] = pack_bf16(right[2], right[3]);
  // end solution
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

// exercise inverse16: 4 points, 20 minutes, 7 lines
// hint 1: A lane needs no other lane: column j of the inverse depends on L and on itself only.
//     Which lanes have a column?
// hint 2: x_i = e_i - sum over j < i of L_ij x_j, with e_i = 1 where the row is the lane's
//     own column, else 0.
// hint 3: All but one line:
//     if (lane >= 16) return;
//     float column[16];
//     for (int i = 0; i < 16; ++i) {
//       column[i] = i == lane ? 1.f : 0.f;
//       for (int j = 0; j < i; ++j) ...;
//       x[i * 16 + lane] = column[i];
//     }
// why: All lanes read the same l[i][j] in the same step, which shared memory delivers as one broadcast, and no
//     power of L is ever formed: repeated keys are harmless.
/* x = (I + L)^-1 by forward substitution in fp32, a column of x in each of lanes 0 to 15.

   l: [16,16] in shared memory. L is what lies strictly below the diagonal; what lies on it and above means
   nothing and must not be used. x: [16,16], every element is written. lane: 0 to 31.

   Example: L all 0 but L[1][0] = 0.5: x is the identity, but x[1][0] = -0.5.
*/
__device__ void inverse16(const float *l, float *x, int lane) {
  // solution
  if (lane >= 16) return;
  float column[16];
  for (int i = 0; i < 16; ++i) {
    column[i] = i == lane ? 1.f : 0.f;
    for (int j = 0; j < i; ++j) column[i] -= l[i * 16 + j] * column[j];
    x[i * 16 + lane] = column[i];
  }
  // end solution
}

// Given: L from global memory, through shared memory.
__global__ void try_inverse16(const float *l, float *x) {
  __shared__ float shared[16 * 16];
  for (int i = threadIdx.x; i < 16 * 16; i += 32) shared[i] = l[i];
  __syncwarp();
  inverse16(shared, x, threadIdx.x);
}

// exercise chunk_step: 5 points, 40 minutes, 36 lines
// hint 1: Follow the table of notebook 11 row by row. Two things come again and again: packing two
//     accumulators into an A operand, and one product with 8 rows of a B operand. Write a lambda for each.
// hint 2: S^T, R^T and U^T are A operands (packed), everything else is B. The state is
//     packed before it decays: reads see it as it was, and fp32 is only copied, never rounded.
// hint 3: All but one line, the two lambdas `pack` and `multiply` taken as written:
//     for step: pack(s[2 * step], s[2 * step + 1], a); multiply r[n] with k_into, out[n] with q_into
//     r[n][e] = v of its token and value - r[n][e]
//     pack(r[0], r[1], a); multiply u[n] with T
//     pack(u[0], u[1], a); multiply out[n] with M
//     for each 8 channels n of the state: decay s[n][e], then mma_m16n8k16(s[n], a, pair), where
//       pair = ...
//     store out[n][e] at its token and value
// why: This is v2's inner loop without its pipeline. All left operands are results that never left their
//     lanes; all right operands were made before the walk began.
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
  // solution
  const int row = lane / 4, pair = 2 * (lane % 4);
  const auto pack = [](const float(&left)[4], const float(&right)[4], uint32_t(&a)[4]) {
    a[0] = pack_bf16(left[0], left[1]), a[1] = pack_bf16(left[2], left[3]);
    a[2] = pack_bf16(right[0], right[1]), a[3] = pack_bf16(right[2], right[3]);
  };
  const auto multiply = [&](float(&c)[4], const uint32_t(&a)[4], const bf16 *b, int stride) {  // b: 8 rows of 16
    const bf16 *from = b + row * stride + pair;
    const uint32_t fb[2] = {pack_bf16(from[0], from[1]), pack_bf16(from[8], from[9])};
    mma_m16n8k16(c, a, fb);
  };
  uint32_t a[4];
  float r[2][4] = {}, u[2][4] = {}, out[2][4] = {};
  for (int step = 0; step < K / 16; ++step) {
    pack(s[2 * step], s[2 * step + 1], a);
    for (int n = 0; n < 2; ++n) multiply(r[n], a, k_into + 8 * n * K + 16 * step, K);
    for (int n = 0; n < 2; ++n) multiply(out[n], a, q_into + 8 * n * K + 16 * step, K);
  }
  for (int n = 0; n < 2; ++n)
    for (int e = 0; e < 4; ++e)
      r[n][e] = __bfloat162float(v[(8 * n + pair + e % 2) * 16 + row + 8 * (e / 2)]) - r[n][e];
  pack(r[0], r[1], a);
  for (int n = 0; n < 2; ++n) multiply(u[n], a, T + 8 * n * 16, 16);
  pack(u[0], u[1], a);
  for (int n = 0; n < 2; ++n) multiply(out[n], a, M + 8 * n * 16, 16);
  for (int n = 0; n < K / 8; ++n) {
    for (int e = 0; e < 4; ++e) s[n][e] *= decay[8 * n + pair + e % 2];
    const bf16 *from = k_out + pair * K + 8 * n + row;  // two tokens below each other, not two channels
    const uint32_t fb[2] = {pack_bf16(from[0], from[K]), pack_bf16(from[8 * K], from[9 * K])};
    mma_m16n8k16(s[n], a, fb);
  }
  for (int n = 0; n < 2; ++n)
    for (int e = 0; e < 4; ++e) o[(8 * n + pair + e % 2) * 16 + row + 8 * (e / 2)] = out[n][e];
  // end solution
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
