// The instructions of Hopper that v4 is built from, one wrapper each.
//
// wgmma: four warps (a warpgroup) multiply A [64,16] by B [16,N] into D [64,N]. A is held in registers, B stands in shared
// memory and is named by a 64-bit descriptor, D is fp32 in registers. Warp w holds rows 16 w + 0..15 of A and D; with
// lane = 4 g + t (g = lane / 4, t = lane % 4) a thread has of 16 columns
//     A  a[0] (g, 2t..2t+1)  a[1] (g+8, 2t..)  a[2] (g, 2t+8..)  a[3] (g+8, 2t+8..)       bf16 pairs
//     D  d[0], d[1] (g, 2t..2t+1)  d[2], d[3] (g+8, 2t..)  d[4], d[5] (g, 2t+8..)  d[6], d[7] (g+8, 2t+8..)
// so eight numbers of D, rounded in pairs, are the A operand of a next product: results never change their thread.
// Accumulators are arrays of such groups of eight: D [64,N] is float[N / 16][8].
#pragma once
#include <cstdint>

namespace kda::v4 {

constexpr unsigned ALL_LANES = 0xffffffffu;

// Two fp32 to one register of bf16, round to nearest even; `low` lands in the low half (the lower column).
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t d;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  return d;
}
// bf16 is the upper half of fp32, so unpacking is exact and costs one integer instruction.
__device__ __forceinline__ float low_bf16(uint32_t x) { return __uint_as_float(x << 16); }
__device__ __forceinline__ float high_bf16(uint32_t x) { return __uint_as_float(x & 0xffff0000u); }

__device__ __forceinline__ uint32_t shared_address(const void *p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Four 8x8 bf16 matrices, transposed on the way; lane l gives the address of row l % 8 of matrix l / 8 and has elements
// (2t..2t+1, g) of each.
__device__ __forceinline__ void ldmatrix_trans(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
__device__ __forceinline__ void stmatrix_trans(uint32_t address, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};"
               ::"r"(address), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
}

__device__ __forceinline__ uint4 load_shared(uint32_t address) {
  uint4 x;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(address) : "memory");
  return x;
}
// 16 bytes from global to shared memory, past the registers and the L1 cache; zeros if not `valid`.
__device__ __forceinline__ void cp_async(uint32_t shared, const void *global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(valid ? 16 : 0) : "memory");
}

// ---- mbarrier: 8 bytes of shared memory that count arrivals and bytes. Each time both counts are met, a phase ends.
__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void barrier_init_fence() {  // shows the initialised barriers to the copy engine
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void barrier_arrive_expect(uint32_t barrier, int bytes) {  // and `bytes` are still to land
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_arrive_after_copies(uint32_t barrier) {  // when this thread's cp_async have landed
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
}
// Waits for the end of the phase of this parity: a barrier's first phase is 0, the next 1, then 0 again.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(barrier), "r"(parity) : "memory");
}

// One thread starts a copy of a whole block of bytes (a multiple of 16) by the copy engine, which reports to `barrier`.
__device__ __forceinline__ void bulk_copy(uint32_t shared, const void *global, int bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               ::"r"(shared), "l"(global), "r"(bytes), "r"(barrier) : "memory");
}
// Orders what this thread read or wrote before it against later accesses of the copy engine and of wgmma.
__device__ __forceinline__ void async_proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Returns when the kernel before this one in the stream has ended and its writes can be seen. Only for a kernel launched
// with programmatic stream serialization, which starts earlier.
__device__ __forceinline__ void wait_for_kernel_before() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// The registers of a block are shared out by warpgroup: COUNT a thread from here on, a multiple of 8.
template <int COUNT>
__device__ __forceinline__ void give_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT)); }
template <int COUNT>  // waits until the others have given enough
__device__ __forceinline__ void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT)); }

// ---- wgmma
// Descriptor of a B operand with the 128-byte swizzle, in units of 16 bytes: start (bits 0-13), leading offset (16-29),
// stride offset (32-45), layout (62-63, 1 = 128-byte swizzle). Eight rows of a panel are 1024 bytes: the stride offset.
//   rows are n: the four k-steps of a panel begin 32 bytes apart, inside the swizzled rows; the leading offset is not used
//   rows are k (wgmma transposes): a k-step is 16 rows, and the leading offset leads from 64 columns to the next 64
struct Operand {
  uint32_t start, leading;  // in units of 16 bytes
  __device__ __forceinline__ Operand operator+(int bytes) const { return {start + bytes / 16, leading}; }
  __device__ __forceinline__ uint64_t descriptor() const {
    return static_cast<uint64_t>((1u << 30) | (1024 / 16)) << 32 | (leading << 16 | start);
  }
};
__device__ __forceinline__ Operand rows_are_n(uint32_t address) { return {address / 16, 1}; }
__device__ __forceinline__ Operand rows_are_k(uint32_t address, int panel_bytes) {
  return {address / 16, static_cast<uint32_t>(panel_bytes / 16)};
}

// Before the first product, and after any instruction that touched a register which a product will read or add to.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

#define KDA_8(d) "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
#define KDA_32(d) KDA_8(d[0]), KDA_8(d[1]), KDA_8(d[2]), KDA_8(d[3])

// Returns when at most GROUPS committed groups are under way. `d` is what was waited for: named here, it cannot be read,
// and its registers cannot be moved, before.
template <int GROUPS>
__device__ __forceinline__ void wgmma_wait(float (&d)[4][8]) {
  asm volatile("wgmma.wait_group.sync.aligned %32;" : KDA_32(d) : "n"(GROUPS) : "memory");
}
template <int GROUPS>
__device__ __forceinline__ void wgmma_wait(float (&d)[8][8]) {
  asm volatile("wgmma.wait_group.sync.aligned %32;" : KDA_32(d) : "n"(GROUPS) : "memory");
  asm volatile("" : KDA_8(d[4]), KDA_8(d[5]), KDA_8(d[6]), KDA_8(d[7])::"memory");
}

// d [64,16] (+)= a [64,16] b [16,16], rows of b in memory are n. `add` is a constant after inlining.
__device__ __forceinline__ void wgmma(float (&d)[8], const uint32_t (&a)[4], Operand b, bool add = true) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %13, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9,%10,%11}, %12, add, 1, 1, 0;\n"
      "}"
      : KDA_8(d)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.descriptor()), "r"(static_cast<int>(add)));
}
// d [64,64] (+)= SIGN a [64,16] b [16,64], rows of b in memory are n.
template <int SIGN = 1>
__device__ __forceinline__ void wgmma(float (&d)[4][8], const uint32_t (&a)[4], Operand b, bool add = true) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
      "{%32,%33,%34,%35}, %36, add, %38, 1, 0;\n"
      "}"
      : KDA_32(d)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.descriptor()), "r"(static_cast<int>(add)), "n"(SIGN));
}
// d [64,128] += a [64,16] b [16,128], rows of b in memory are k.
__device__ __forceinline__ void wgmma_transposed(float (&d)[8][8], const uint32_t (&a)[4], Operand b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
      "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,"
      "%62,%63}, {%64,%65,%66,%67}, %68, 1, 1, 1, 1;\n"
      : KDA_32(d), KDA_8(d[4]), KDA_8(d[5]), KDA_8(d[6]), KDA_8(d[7])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.descriptor()));
}

#undef KDA_8
#undef KDA_32

}  // namespace kda::v4
