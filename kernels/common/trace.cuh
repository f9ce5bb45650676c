// What the warps of a block did when, for instrumented builds (-DKDA_TRACE). In all others the macros are empty, and the
// machine code is the same as without them.
//
//   KDA_TRACE_WARP(role);                 at a warp's start: it plays `role`, and its first span begins now
//   KDA_TRACE_STEP(c);                    spans that end from now on belong to step c of the walk; a window of steps is kept
//   KDA_TRACE_SPAN(what, stage, parity);  the span ends now, and the next begins; -1 for no stage, no parity
//
// A warp's spans follow each other without gaps, so that one clock read serves two of them. Times are the SM's clock: they
// can be compared inside a block, not between blocks.
#pragma once

#ifndef KDA_TRACE
#define KDA_TRACE_WARP(role)
#define KDA_TRACE_STEP(c)
#define KDA_TRACE_SPAN(what, stage, parity)
#else
#include <cuda_runtime.h>
#include <stdint.h>

#define KDA_TRACE_WARP(role) ::kda::trace::Warp kda_trace_warp(role)
#define KDA_TRACE_STEP(c) kda_trace_warp.step(c)
#define KDA_TRACE_SPAN(what, stage, parity) kda_trace_warp.span(what, stage, parity)
#endif

namespace kda::trace {

// kda_lab/bench/trace.py has the names, in the same order.
enum Role { LOAD_WARP, LOAD_V_WARP, STORE_WARP, MATH_WARP, ROLES = MATH_WARP + 8 };  // MATH_WARP + i is math warp i
enum What { WAIT, LOAD, STORE, SOLVE, STATE };

#ifdef KDA_TRACE
struct Record {  // kda_lab/hopper/trace.py: RECORD
  uint32_t block;
  uint8_t role, what;
  int8_t stage, phase;
  uint64_t begin, end;
};

// records[blocks][ROLES][spans]; a span that finds no room is not kept.
struct Sink {
  Record *records;
  int32_t blocks, spans, first_step, steps;
};
static __device__ Sink sink;  // one a library: a rung is one translation unit

__device__ inline uint64_t now() {
  uint64_t t;
  asm volatile("mov.u64 %0, %%clock64;" : "=l"(t)::"memory");
  return t;
}

struct Warp {
  int role, kept = 0;
  bool active = false;
  uint64_t begin;

  __device__ explicit Warp(int role) : role(role), begin(now()) {}
  __device__ void step(int c) {
    active = blockIdx.x < sink.blocks && c >= sink.first_step && c < sink.first_step + sink.steps;
  }
  __device__ void span(int what, int stage, int parity) {
    const uint64_t end = now();
    if (active && kept < sink.spans && threadIdx.x % 32 == 0)
      sink.records[(static_cast<int64_t>(blockIdx.x) * ROLES + role) * sink.spans + kept++] = {
          blockIdx.x, static_cast<uint8_t>(role), static_cast<uint8_t>(what), static_cast<int8_t>(stage), static_cast<int8_t>(parity), begin, end};
    begin = end;
  }
};
#endif

}  // namespace kda::trace

#ifdef KDA_TRACE
// Where the kernels of this library shall record from now on: device memory of blocks * ROLES * spans records, zeroed.
extern "C" __attribute__((visibility("default"))) int kda_trace_into(void *records, int32_t blocks, int32_t spans, int32_t first_step, int32_t steps) {
  const kda::trace::Sink to{static_cast<kda::trace::Record *>(records), blocks, spans, first_step, steps};
  return cudaMemcpyToSymbol(kda::trace::sink, &to, sizeof to);
}
#endif
