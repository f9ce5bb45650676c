// What a CUDA exercise may use. nvcc compiles an exercise for a GPU; a plain C++ compiler compiles it for
// the host, where runtime.cpp runs the threads of a block one after the other, from barrier to barrier,
// and watches every access to memory.
//
// Device functions that are one PTX instruction on the GPU have the same name and the same lane layout in
// both halves: mma_m16n8k16, ldmatrix_x2, ldmatrix_x4, their _trans forms, and the mbarrier functions.
#pragma once

#include <cstdint>

#ifdef __CUDACC__  // ---- on a GPU ---------------------------------------------------------------------

#include <cuda_bf16.h>

using bf16 = __nv_bfloat16;

#define NOT_ATTEMPTED(exercise) __trap()

__device__ inline uint32_t pack_bf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// d += a b: a [16,16] by rows, b [16,8] by columns, d [16,8] in fp32.
__device__ inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline uint32_t shared_address(const void *p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

#define KDA_LDMATRIX_X4(name, suffix)                                                             \
  __device__ inline void name(uint32_t (&r)[4], const void *row) {                                \
    asm volatile("ldmatrix.sync.aligned.m8n8.x4" suffix ".shared.b16 {%0,%1,%2,%3}, [%4];"        \
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])                                 \
                 : "r"(shared_address(row))                                                       \
                 : "memory");                                                                     \
  }
#define KDA_LDMATRIX_X2(name, suffix)                                                             \
  __device__ inline void name(uint32_t (&r)[2], const void *row) {                                \
    asm volatile("ldmatrix.sync.aligned.m8n8.x2" suffix ".shared.b16 {%0,%1}, [%2];"              \
                 : "=r"(r[0]), "=r"(r[1])                                                         \
                 : "r"(shared_address(row))                                                       \
                 : "memory");                                                                     \
  }
KDA_LDMATRIX_X4(ldmatrix_x4, "")
KDA_LDMATRIX_X4(ldmatrix_x4_trans, ".trans")
KDA_LDMATRIX_X2(ldmatrix_x2, "")
KDA_LDMATRIX_X2(ldmatrix_x2_trans, ".trans")

// One 64-bit mbarrier in shared memory: `count` arrivals and all expected bytes end a phase. The first
// phase has parity 0. mbarrier_try_wait_parity(b, p) is true once the phase of parity p is over, and false when
// that takes longer than it likes to wait: ask in a loop.
__device__ inline void mbarrier_init(uint64_t *barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}

// Makes initialised barriers visible to bulk copies.
__device__ inline void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void mbarrier_arrive(uint64_t *barrier) {
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared::cta.b64 state, [%0];\n}" ::"r"(shared_address(barrier))
               : "memory");
}

__device__ inline void mbarrier_arrive_expect_tx(uint64_t *barrier, uint32_t bytes) {
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;\n}" ::"r"(
                   shared_address(barrier)),
               "r"(bytes)
               : "memory");
}

__device__ inline bool mbarrier_try_wait_parity(uint64_t *barrier, uint32_t parity) {
  uint32_t over;
  asm volatile(
      "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
      : "=r"(over)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return over;
}

// One thread starts a copy of `bytes` (a multiple of 16) from global to shared memory; both addresses are
// multiples of 16. The copy arrives at the barrier with its bytes.
__device__ inline void bulk_copy(void *to, const void *from, uint32_t bytes, uint64_t *barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(to)),
      "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

#else  // ---- on the host ------------------------------------------------------------------------------

#include <cmath>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// One block runs at a time, so one copy does; the section lets runtime.cpp fill it with NaN for each block.
#define __shared__ static __attribute__((section("kda_shared")))

#define NOT_ATTEMPTED(exercise) kda::not_attempted()

struct kda_index {
  unsigned x, y, z;
};
extern kda_index threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

namespace kda {

[[noreturn]] void not_attempted();
[[noreturn]] void misuse(int line, const char *format, ...);
void print(const char *format, ...);

void sync_threads(int line);

// A step that all lanes of `mask` take together. Once each of them has come, `together` sees what every
// lane brought and writes what every lane takes away; lanes that do not take part are null.
struct Lane {
  const void *in;
  void *out;
  int line;
};
using Together = void (*)(Lane *lanes[32]);
void collective(const char *name, int line, unsigned mask, const void *in, void *out, Together together);
struct SyncWarp {
  int line;
  void operator()(unsigned mask = 0xffffffffu) const;
};

void touch(const void *p, int bytes, bool write);  // an access that the compiler does not show
void need_shared(int line, const void *p, const char *what);

void *dynamic_shared_bytes();
template <class T>
T *dynamic_shared() {
  return static_cast<T *>(dynamic_shared_bytes());
}

float atomic_add(float *p, float x);
int atomic_add(int *p, int x);
unsigned atomic_add(unsigned *p, unsigned x);

enum class Pick { kIndex, kXor, kUp, kDown };

template <class T>
struct Shuffle {
  T value;
  Pick pick;
  int number, width;
};

template <class T>
void shuffle_together(Lane *lanes[32]) {
  for (int lane = 0; lane < 32; ++lane) {
    if (!lanes[lane]) continue;
    const auto &mine = *static_cast<const Shuffle<T> *>(lanes[lane]->in);
    const int first = lane / mine.width * mine.width, last = first + mine.width - 1;
    int from = lane;
    if (mine.pick == Pick::kIndex) from = first + (mine.number & (mine.width - 1));
    if (mine.pick == Pick::kXor) from = lane ^ mine.number;
    if (mine.pick == Pick::kUp) from = lane - mine.number;
    if (mine.pick == Pick::kDown) from = lane + mine.number;
    if (from > last || (mine.pick == Pick::kUp && from < first)) from = lane;  // as the hardware does
    if (!lanes[from])
      misuse(mine.number < 0 ? 0 : lanes[lane]->line,
             "lane %d reads from lane %d, which is not in the mask", lane, from);
    *static_cast<T *>(lanes[lane]->out) = static_cast<const Shuffle<T> *>(lanes[from]->in)->value;
  }
}

template <class T>
T shuffle(const char *name, int line, Pick pick, unsigned mask, T value, int number, int width = 32) {
  const Shuffle<T> in{value, pick, number, width};
  T out;
  collective(name, line, mask, &in, &out, shuffle_together<T>);
  return out;
}

unsigned ballot(int line, unsigned mask, bool vote);
void mma_m16n8k16(int line, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void ldmatrix(int line, uint32_t *r, int matrices, bool trans, const void *row);

void init_barrier(int line, uint64_t *barrier, uint32_t count);
void arrive(int line, uint64_t *barrier, uint32_t bytes);
bool wait(int line, uint64_t *barrier, uint32_t parity);
void fence_init();
void copy_bulk(int line, void *to, const void *from, uint32_t bytes, uint64_t *barrier);

// How runtime.cpp starts a kernel: `arguments` point to the values, as for cudaLaunchKernel.
struct Kernel {
  const char *name;
  void (*start)(void **arguments);
};
template <class F, F *kernel>
struct Start;
template <class... A, void (*kernel)(A...)>
struct Start<void(A...), kernel> {
  template <std::size_t... i>
  static void with(void **arguments, std::index_sequence<i...>) {
    kernel(*static_cast<A *>(arguments[i])...);
  }
  static void start(void **arguments) { with(arguments, std::index_sequence_for<A...>()); }
};

}  // namespace kda

#define KDA_KERNEL(name, kernel) \
  kda::Kernel { name, kda::Start<std::remove_pointer_t<decltype(&kernel)>, &kernel>::start }

#define __syncthreads() kda::sync_threads(__LINE__)
#define __syncwarp kda::SyncWarp{__LINE__}
#define __shfl_sync(...) kda::shuffle("__shfl_sync", __LINE__, kda::Pick::kIndex, __VA_ARGS__)
#define __shfl_xor_sync(...) kda::shuffle("__shfl_xor_sync", __LINE__, kda::Pick::kXor, __VA_ARGS__)
#define __shfl_up_sync(...) kda::shuffle("__shfl_up_sync", __LINE__, kda::Pick::kUp, __VA_ARGS__)
#define __shfl_down_sync(...) kda::shuffle("__shfl_down_sync", __LINE__, kda::Pick::kDown, __VA_ARGS__)
#define __ballot_sync(mask, vote) kda::ballot(__LINE__, mask, vote)
#define atomicAdd(p, x) kda::atomic_add(p, x)
#define printf(...) kda::print(__VA_ARGS__)
#define mma_m16n8k16(...) kda::mma_m16n8k16(__LINE__, __VA_ARGS__)
#define ldmatrix_x2(r, row) kda::ldmatrix(__LINE__, r, 2, false, row)
#define ldmatrix_x2_trans(r, row) kda::ldmatrix(__LINE__, r, 2, true, row)
#define ldmatrix_x4(r, row) kda::ldmatrix(__LINE__, r, 4, false, row)
#define ldmatrix_x4_trans(r, row) kda::ldmatrix(__LINE__, r, 4, true, row)
#define mbarrier_init(barrier, count) kda::init_barrier(__LINE__, barrier, count)
#define mbarrier_arrive(barrier) kda::arrive(__LINE__, barrier, 0)
#define mbarrier_arrive_expect_tx(barrier, bytes) kda::arrive(__LINE__, barrier, bytes)
#define mbarrier_try_wait_parity(barrier, parity) kda::wait(__LINE__, barrier, parity)
#define fence_mbarrier_init() kda::fence_init()
#define bulk_copy(...) kda::copy_bulk(__LINE__, __VA_ARGS__)

#define __expf(x) expf(x)
#define rsqrtf(x) (1.0f / sqrtf(x))
#define __ldg(p) (*(p))

template <class A, class B>
std::common_type_t<A, B> min(A a, B b) {
  return a < b ? a : b;
}
template <class A, class B>
std::common_type_t<A, B> max(A a, B b) {
  return a > b ? a : b;
}

struct __align__(8) float2 { float x, y; };
struct __align__(16) float4 { float x, y, z, w; };
struct __align__(8) uint2 { unsigned x, y; };
struct __align__(16) uint4 { unsigned x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct __nv_bfloat16 {
  uint16_t bits;

  __nv_bfloat16() = default;
  __nv_bfloat16(float x) {  // to the nearest, ties to even
    uint32_t u;
    __builtin_memcpy(&u, &x, 4);
    bits = x != x ? 0x7fff : static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
  }
  operator float() const {
    const uint32_t u = static_cast<uint32_t>(bits) << 16;
    float x;
    __builtin_memcpy(&x, &u, 4);
    return x;
  }
};
using bf16 = __nv_bfloat16;
inline bf16 __float2bfloat16(float x) { return bf16(x); }
inline float __bfloat162float(bf16 x) { return x; }
inline uint32_t pack_bf16(float low, float high) {
  return bf16(low).bits | static_cast<uint32_t>(bf16(high).bits) << 16;
}

#endif
