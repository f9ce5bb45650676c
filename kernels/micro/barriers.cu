// What does it cost two parts of a block, or two blocks of a cluster, to wait for each other?
//
// Why it decides: the fused kernel hands a chunk from the warps that prepare to the warps that hold the state, and stages back; each
// hand-over that stands on the chain of a chunk (about 1,500 cycles) counts.
// Method: one block an SM (or clusters of two); 512 turns of nothing but the barrier. A round trip is there and back again.
// Prediction: __syncthreads of 256 threads 30 cycles, a named barrier of 128 the same; mbarrier: arrive and try_wait go to shared memory, about 25
// cycles each plus polling: 60 one way, 120 a round trip between two warps, 140 with 128 arrivals; a remote arrive crosses the SM-to-SM
// network, 180 more: 2 x 240 = 480; barrier.cluster 250.
#include "harness.cuh"
#include "hopper.cuh"

using namespace lab;

constexpr int TURNS = 512;

enum What { SYNCTHREADS, NAMED, WARPS, WARPGROUPS, CLUSTER, REMOTE };

__global__ void __launch_bounds__(256) turns(What what, long long *clocks) {
  __shared__ __align__(8) uint64_t ping, pong;
  const uint32_t a = shared_address(&ping), b = shared_address(&pong);
  const int side = what == REMOTE ? cluster_rank() : threadIdx.x / 128;
  const bool first_warp = threadIdx.x % 128 < 32;
  if (threadIdx.x == 0) {
    barrier_init(a, what == WARPGROUPS ? 128 : 1);
    barrier_init(b, what == WARPGROUPS ? 128 : 1);
    barrier_init_fence();
  }
  if (what == CLUSTER || what == REMOTE) cluster_sync();
  else __syncthreads();
  const long long begin = clock64();
  if (what == SYNCTHREADS) {
#pragma unroll 1
    for (int i = 0; i < TURNS; ++i) __syncthreads();
  } else if (what == NAMED) {
#pragma unroll 1
    for (int i = 0; i < TURNS; ++i) named_barrier(1 + side, 128);
  } else if (what == CLUSTER) {
#pragma unroll 1
    for (int i = 0; i < TURNS; ++i) cluster_sync();
  } else if (what == WARPGROUPS || (what == WARPS && first_warp)) {
#pragma unroll 1
    for (int i = 0; i < TURNS; ++i) {
      if (side == 0) {
        if (what == WARPGROUPS || elected()) barrier_arrive(a);
        barrier_wait(b, i & 1);
      } else {
        barrier_wait(a, i & 1);
        if (what == WARPGROUPS || elected()) barrier_arrive(b);
      }
      __syncwarp();  // no lane may fall two phases behind: parity could not tell
    }
  } else if (what == REMOTE && threadIdx.x < 32) {
#pragma unroll 1
    for (int i = 0; i < TURNS; ++i) {
      if (side == 0) {
        if (elected()) barrier_arrive_in_block(a, 1);
        barrier_wait_cluster(b, i & 1);
      } else {
        barrier_wait_cluster(a, i & 1);
        if (elected()) barrier_arrive_in_block(b, 0);
      }
      __syncwarp();
    }
  }
  const long long end = clock64();
  if (threadIdx.x == 0) clocks[blockIdx.x] = end - begin;
  if (what == CLUSTER || what == REMOTE) cluster_sync();
}

int main() {
  const int blocks = sms() / 2 * 2;
  auto measure = [&](const char *name, What what, double predicted) {
    const double c = cycles(blocks, [&](long long *clocks) {
      cudaLaunchConfig_t config = {};
      config.gridDim = blocks;
      config.blockDim = 256;
      cudaLaunchAttribute cluster;
      cluster.id = cudaLaunchAttributeClusterDimension;
      cluster.val.clusterDim.x = what == CLUSTER || what == REMOTE ? 2 : 1;
      cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
      config.attrs = &cluster;
      config.numAttrs = 1;
      LAB_CHECK(cudaLaunchKernelEx(&config, turns, what, clocks));
    });
    row(name, c / TURNS, "cycles", predicted);
  };
  measure("__syncthreads, 256 threads", SYNCTHREADS, 30);
  measure("named barrier, 128 of 256 threads", NAMED, 30);
  measure("mbarrier round trip, two warps", WARPS, 120);
  measure("mbarrier round trip, two warpgroups", WARPGROUPS, 140);
  measure("barrier.cluster, 2 blocks", CLUSTER, 250);
  measure("mbarrier round trip, two blocks of a cluster", REMOTE, 480);
}
