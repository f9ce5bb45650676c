/* The C ABI of the KDA Lab kernels: plain pointers, sizes, strides and a stream.
 *
 * Each rung R (cpu, v0, v1, ...) is one shared library libkda_R that exports four functions:
 *
 *   const char *kda_R_declines(const kda_args *);        NULL, or why R cannot serve this call exactly
 *   int64_t     kda_R_workspace_bytes(const kda_args *); scratch that R needs (0: none)
 *   kda_status  kda_R_forward(const kda_args *);         enqueues the work on args->stream and returns
 *   const char *kda_R_error(void);                       what the last failure in this thread was
 *
 * A rung never allocates device memory, never synchronises, and keeps no pointer after it returns.
 * It writes every row of o: rows past the end of the last sequence become 0 (a skipped sequence's rows
 * are left alone). An empty sequence's final state is its initial state, zero if it has none.
 * The recurrence, per sequence and value head hv with q/k head h = hv / (heads_v / heads_qk):
 *
 *   S <- Diag(exp(g_t)) S;  u = beta_t (v_t - S^T k_t);  S <- S + k_t u^T;  o_t = scale * S^T q_t
 */
#ifndef KDA_LAB_H
#define KDA_LAB_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KDA_ABI_VERSION 1

#if defined(__GNUC__)
#define KDA_API __attribute__((visibility("default"))) /* all else in a rung's library is hidden */
#else
#define KDA_API
#endif

typedef enum {
  KDA_OK = 0,
  KDA_INVALID = 1,     /* an argument contradicts this header */
  KDA_UNSUPPORTED = 2, /* valid, but this rung does not serve it: see kda_R_declines */
  KDA_WORKSPACE = 3,   /* workspace missing, misaligned (256 bytes) or too small */
  KDA_CUDA = 4         /* the CUDA runtime refused: see kda_R_error */
} kda_status;

typedef enum { KDA_F32 = 0, KDA_BF16 = 1 } kda_dtype;

typedef enum {
  KDA_GATE_LOG = 0,         /* g is the log decay, any value <= 0, -inf included */
  KDA_GATE_LOG_BOUNDED = 1, /* g is the log decay and the caller promises g >= -5 */
  KDA_GATE_SOFTPLUS = 2,    /* log decay = -exp(A_log) * softplus(g + dt_bias): unbounded below */
  KDA_GATE_SIGMOID = 3      /* log decay = lower_bound * sigmoid(exp(A_log) * (g + dt_bias)) */
} kda_gate;

typedef enum {
  KDA_BETA_PLAIN = 0,      /* beta is used as it is */
  KDA_BETA_SIGMOID = 1,    /* beta <- sigmoid(beta) */
  KDA_BETA_2SIGMOID = 2    /* beta <- 2 sigmoid(beta) */
} kda_beta;

/* A [batch, tokens, heads, dim] tensor; dim is contiguous, strides are in elements. */
typedef struct {
  void *data;
  int64_t stride_batch, stride_token, stride_head;
  int32_t dtype; /* kda_dtype */
  int32_t reserved;
} kda_tensor;

typedef struct {
  uint32_t abi_version; /* KDA_ABI_VERSION */
  uint32_t struct_bytes; /* sizeof(kda_args) */

  int64_t batch, tokens;      /* B, T (with cu_seqlens: B = 1, T = packed tokens) */
  int64_t sequences;          /* N: batch, or the number of sequences in cu_seqlens */
  int32_t heads_qk, heads_v;  /* H, HV; HV is a multiple of H */
  int32_t dim_k, dim_v;       /* K, V */

  kda_tensor q, k;   /* [B,T,H,K] */
  kda_tensor v, o;   /* [B,T,HV,V] */
  kda_tensor g;      /* [B,T,HV,K] */
  kda_tensor beta;   /* [B,T,HV]: dim is 1 */

  const float *A_log;   /* [HV], or NULL: 0 */
  const float *dt_bias; /* [HV,K] contiguous, or NULL: 0 */
  float scale, lower_bound;
  int32_t gate;   /* kda_gate */
  int32_t beta_kind; /* kda_beta */
  int32_t l2norm; /* q, k <- x * rsqrt(sum x^2 + 1e-6) over K */

  int32_t cu_seqlens_bits; /* 0: none, 32 or 64 */
  const void *cu_seqlens;  /* [N+1] on the device of q; values are clamped to [0, T], never trusted */

  /* States are contiguous [N,HV,K,V], or [N,HV,V,K] with state_v_first; the two may be the same buffer.
   * With state_indices (decode), slot i of sequence n is state_indices[n]: a negative index skips the
   * sequence (nothing is read or written for it), and the state buffers hold state_slots slots. */
  const void *initial_state; /* or NULL: zeros */
  void *final_state;         /* or NULL: not asked for */
  int32_t state_dtype;       /* kda_dtype, of both */
  int32_t state_v_first;
  const int32_t *state_indices; /* [N] or NULL */
  int64_t state_slots;          /* slots in the buffers when state_indices is given */

  void *workspace; /* 256-byte aligned, or NULL */
  int64_t workspace_bytes;
  void *stream;    /* cudaStream_t; for the cpu rung NULL */
  int32_t threads; /* cpu rung: worker threads, 0 = all cores */
  int32_t reserved;
} kda_args;

#define KDA_DECLARE_RUNG(R)                                        \
  KDA_API const char *kda_##R##_declines(const kda_args *args);    \
  KDA_API int64_t kda_##R##_workspace_bytes(const kda_args *args); \
  KDA_API kda_status kda_##R##_forward(const kda_args *args);      \
  KDA_API const char *kda_##R##_error(void) /* text of the last failure in this thread, or "" */

KDA_DECLARE_RUNG(cpu);
KDA_DECLARE_RUNG(v0);
KDA_DECLARE_RUNG(v1);
KDA_DECLARE_RUNG(decode);
KDA_DECLARE_RUNG(v2);
KDA_DECLARE_RUNG(v3);
KDA_DECLARE_RUNG(v4);

#ifdef __cplusplus
}
#endif
#endif
