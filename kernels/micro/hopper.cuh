// The Hopper instructions that the measuring programs are built from, one wrapper each.
//
// wgmma, A from registers: m64nNk16, bf16 in, fp32 out. Warp w of the warpgroup holds rows 16 w .. 16 w + 15; lane = 4 g + t:
//   A [64,16]: a[0] (g, 2t..2t+1)  a[1] (g+8, 2t..)  a[2] (g, 2t+8..)  a[3] (g+8, 2t+8..)
//   D [64, N]: d[4 j + e] is row g + 8 (e / 2), column 8 j + 2t + (e & 1)
// so two neighbouring 8-column groups of D, rounded to bf16 in pairs, are the A operand of 16 columns.
#pragma once
#include <cstdint>

namespace lab {

constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t d;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  return d;
}
__device__ __forceinline__ float low_bf16(uint32_t x) { return __uint_as_float(x << 16); }
__device__ __forceinline__ float high_bf16(uint32_t x) { return __uint_as_float(x & 0xffff0000u); }
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float tanh_approx(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float rsqrt_approx(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ uint32_t shared_address(const void *p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// ---- mma.sync and its operands

// c [16,8] += a [16,16] b [16,8]
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void ldmatrix(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
__device__ __forceinline__ void ldmatrix_trans(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
__device__ __forceinline__ uint32_t movmatrix_trans(uint32_t x) {
  uint32_t y;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

// ---- wgmma

// B of a wgmma in shared memory, 128-byte swizzle, panels of 128-byte rows in groups of eight (1024 bytes).
//   [N,K] with K contiguous (not transposed): a panel is 64 k wide; 16 k further is 32 bytes further.
//   [K,N] with N contiguous (transposed): a panel is 64 n wide, `panel_bytes` from one to the next; 16 k further is 2048 bytes.
__device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t address, uint32_t panel_bytes = 16) {
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | static_cast<uint64_t>(panel_bytes >> 4) << 16 |
         static_cast<uint64_t>(1024 >> 4) << 32 | uint64_t(1) << 62;
}
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int GROUPS>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(GROUPS) : "memory");
}
// Keeps the compiler from moving reads or writes of accumulators across a wait or a fence.
template <int M>
__device__ __forceinline__ void pin(float (&d)[M]) {
#pragma unroll
  for (int i = 0; i < M; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

#define LAB_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define LAB_D8(i) LAB_D4(i), LAB_D4(i + 4)
#define LAB_D16(i) LAB_D8(i), LAB_D8(i + 8)
#define LAB_D32(i) LAB_D16(i), LAB_D16(i + 16)
#define LAB_D64(i) LAB_D32(i), LAB_D32(i + 32)
#define LAB_R8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define LAB_R16 LAB_R8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define LAB_R24 LAB_R16 ",%16,%17,%18,%19,%20,%21,%22,%23"
#define LAB_R32 LAB_R24 ",%24,%25,%26,%27,%28,%29,%30,%31"
#define LAB_R64                                                                                                            \
  LAB_R32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58," \
          "%59,%60,%61,%62,%63"
// After the M accumulators: four registers of A, the descriptor of B, whether D is kept, whether B is transposed.
#define LAB_WGMMA(n, regs, outs, a0, a1, a2, a3, b, keep, trans)                                                         \
  asm volatile("{.reg .pred p; setp.ne.b32 p, %" #keep ", 0;\n"                                                         \
               "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" regs "}, {%" #a0 ",%" #a1 ",%" #a2 ",%" #a3 "}, %" #b \
               ", p, 1, 1, %" #trans ";}\n"                                                                             \
               : outs                                                                                                   \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor), "r"(keep_d), "n"(TRANSPOSED))

// d (+)= a [64,16] b [16,N]; nothing is kept of d when keep_d is 0.
template <int TRANSPOSED = 0>
__device__ __forceinline__ void wgmma(float (&d)[8], const uint32_t (&a)[4], uint64_t descriptor, int keep_d = 1) {
  LAB_WGMMA(16, LAB_R8, LAB_D8(0), 8, 9, 10, 11, 12, 13, 14);
}
template <int TRANSPOSED = 0>
__device__ __forceinline__ void wgmma(float (&d)[16], const uint32_t (&a)[4], uint64_t descriptor, int keep_d = 1) {
  LAB_WGMMA(32, LAB_R16, LAB_D16(0), 16, 17, 18, 19, 20, 21, 22);
}
template <int TRANSPOSED = 0>
__device__ __forceinline__ void wgmma(float (&d)[32], const uint32_t (&a)[4], uint64_t descriptor, int keep_d = 1) {
  LAB_WGMMA(64, LAB_R32, LAB_D32(0), 32, 33, 34, 35, 36, 37, 38);
}
template <int TRANSPOSED = 0>
__device__ __forceinline__ void wgmma(float (&d)[64], const uint32_t (&a)[4], uint64_t descriptor, int keep_d = 1) {
  LAB_WGMMA(128, LAB_R64, LAB_D64(0), 64, 65, 66, 67, 68, 69, 70);
}

// 16-byte unit `unit` of row `row` of a panel with the 128-byte swizzle.
__host__ __device__ constexpr int panel_offset(int row, int unit) { return row * 128 + ((unit ^ (row & 7)) << 4); }

template <int REGISTERS>
__device__ __forceinline__ void more_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS)); }
template <int REGISTERS>
__device__ __forceinline__ void fewer_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS)); }

// ---- barriers

__device__ __forceinline__ void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Makes initialised barriers visible to copies and to other blocks of the cluster.
__device__ __forceinline__ void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Waits until the phase of parity `parity` is over. A wait that never ends would hang the machine: it traps.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, int parity) {
  for (int tries = 0;; ++tries) {
    uint32_t done;
    asm volatile("{.reg .pred p; mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2; selp.b32 %0, 1, 0, p;}"
                 : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
    if (done) return;
    if (tries > 1 << 20) __trap();
  }
}
// The same place in the shared memory of block `rank` of the cluster.
__device__ __forceinline__ uint32_t in_block(uint32_t address, int rank) {
  uint32_t remote;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
  return remote;
}
__device__ __forceinline__ void barrier_arrive_in_block(uint32_t barrier, int rank) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(in_block(barrier, rank)) : "memory");
}
// As barrier_wait, for arrivals from other blocks of the cluster.
__device__ __forceinline__ void barrier_wait_cluster(uint32_t barrier, int parity) {
  for (int tries = 0;; ++tries) {
    uint32_t done;
    asm volatile("{.reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; selp.b32 %0, 1, 0, p;}"
                 : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
    if (done) return;
    if (tries > 1 << 20) __trap();
  }
}
__device__ __forceinline__ void cluster_sync() {
  __syncwarp();
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ __forceinline__ int cluster_rank() {
  uint32_t r;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return static_cast<int>(r);
}
// What ordinary stores have written to shared memory becomes visible to wgmma and to bulk copies.
__device__ __forceinline__ void async_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- copies

__device__ __forceinline__ void cp_async(uint32_t shared, const void *global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int GROUPS>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
}
// Contiguous bytes, a multiple of 16; the barrier counts them as they land.
__device__ __forceinline__ void bulk_load(uint32_t shared, const void *global, uint32_t bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               ::"r"(shared), "l"(global), "r"(bytes), "r"(barrier) : "memory");
}
// To the same place in every block of `mask`; each block's own barrier counts what lands there.
__device__ __forceinline__ void bulk_load_multicast(uint32_t shared, const void *global, uint32_t bytes, uint32_t barrier, uint16_t mask) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;"
               ::"r"(shared), "l"(global), "r"(bytes), "r"(barrier), "h"(mask) : "memory");
}
// From this block's shared memory to another's; `remote` and `remote_barrier` come from in_block.
__device__ __forceinline__ void bulk_send(uint32_t remote, uint32_t shared, uint32_t bytes, uint32_t remote_barrier) {
  asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               ::"r"(remote), "r"(shared), "r"(bytes), "r"(remote_barrier) : "memory");
}
__device__ __forceinline__ void bulk_store(void *global, uint32_t shared, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global), "r"(shared), "r"(bytes) : "memory");
}
__device__ __forceinline__ void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int GROUPS>  // at most GROUPS of this thread's groups still read shared memory
__device__ __forceinline__ void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(GROUPS) : "memory");
}
template <int GROUPS>  // at most GROUPS of this thread's groups are not yet visible
__device__ __forceinline__ void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(GROUPS) : "memory");
}

// True in one thread of each warp: the one that issues copies.
__device__ __forceinline__ bool elected() { return (threadIdx.x & 31) == 0; }

}  // namespace lab
