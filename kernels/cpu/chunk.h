/* One chunk of up to 16 tokens of one value head, written once and compiled for several instruction sets.
 *
 * No include guard: cpu.cpp includes this file once for each instruction set, after defining
 *   KDA_ISA    the namespace that holds this copy
 *   KDA_WIDTH  floats in a vector register
 *   KDA_ROWS   rows of a register tile: KDA_ROWS x 2 accumulators, 2 operands and 1 factor fit the registers
 *
 * Decays between two tokens of a chunk are running products of a = exp(g): every factor is at most 1,
 * so nothing overflows and no gate, -inf included, needs special care. What crosses a chunk border is
 * exp(sum of g) instead, and for slow decays expm1 of it, so that 65,536 tokens of g = -1e-4 do not add
 * up 4,096 equal rounding errors.
 */
namespace KDA_ISA {

constexpr int W = KDA_WIDTH;      /* lanes */
constexpr int PW = 2 * W;         /* columns of a state panel */
constexpr int ROWS = KDA_ROWS;

typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
#define KDA_INLINE static inline __attribute__((always_inline))

KDA_INLINE vf load(const float *p) {
  vf x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
KDA_INLINE void store(float *p, vf x) { std::memcpy(p, &x, sizeof x); }
KDA_INLINE vf splat(float x) { return x - vf{}; }
KDA_INLINE vi as_int(vf x) { return (vi)x; }
KDA_INLINE vf as_float(vi x) { return (vf)x; }
KDA_INLINE vf choose(vi mask, vf yes, vf no) { return as_float((mask & as_int(yes)) | (~mask & as_int(no))); }

KDA_INLINE float sum(vf x) {
  if constexpr (W == 4) {
    return (x[0] + x[2]) + (x[1] + x[3]);
  } else {
    float half[W];
    std::memcpy(half, &x, sizeof x);
    typedef float quarter __attribute__((vector_size(16)));
    quarter s{}, t;
    for (int i = 0; i < W; i += 4) {
      std::memcpy(&t, half + i, sizeof t);
      s += t;
    }
    return (s[0] + s[2]) + (s[1] + s[3]);
  }
}

/* exp(x) = power * (1 + rest), power = 2^n, |rest| < 0.42: the two parts, for x <= 88. */
struct Exp {
  vf power, rest;
  vf value() const { return power + power * rest; }
};

KDA_INLINE Exp split_exp(vf x) {
  const float round = 12582912.f; /* 1.5 * 2^23: adding it rounds to an integer, in the low bits */
  vf shifted = x * 1.44269504f + round;
  vf n = shifted - round;
  vf r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f; /* ln 2 in two parts */
  vf p = splat(1.f / 5040);
  p = p * r + 1.f / 720;
  p = p * r + 1.f / 120;
  p = p * r + 1.f / 24;
  p = p * r + 1.f / 6;
  p = p * r + 0.5f;
  p = p * r * r + r;
  vi bits = (as_int(shifted) - as_int(splat(round)) + 127) << 23;
  vi vanished = x < -87.3f; /* also keeps -inf away from the bits */
  return {choose(vanished, vf{}, as_float(bits)), choose(vanished, vf{}, p)};
}

KDA_INLINE vf exp_of(vf x) { return split_exp(choose(x > 88.f, splat(88.f), x)).value(); }

KDA_INLINE vf sigmoid(vf x) { return 1.f / (1.f + exp_of(-x)); }

/* max(x,0) + log1p(exp(-|x|)), the logarithm as 2 atanh(y / (2 + y)). */
KDA_INLINE vf softplus(vf x) {
  vf positive = choose(x > 0.f, x, vf{});
  vf y = exp_of(x - 2.f * positive);
  vf z = y / (2.f + y), z2 = z * z;
  vf p = splat(1.f / 17);
  p = p * z2 + 1.f / 15;
  p = p * z2 + 1.f / 13;
  p = p * z2 + 1.f / 11;
  p = p * z2 + 1.f / 9;
  p = p * z2 + 1.f / 7;
  p = p * z2 + 1.f / 5;
  p = p * z2 + 1.f / 3;
  return positive + 2.f * (z + z * z2 * p);
}

/* A row of a tensor as floats, zeros up to `padded`. */
KDA_INLINE void read_row(float *to, const kda_tensor &x, int64_t b, int64_t t, int64_t h, int n, int padded) {
  const int64_t at = b * x.stride_batch + t * x.stride_token + h * x.stride_head;
  if (x.dtype == KDA_F32) {
    std::memcpy(to, static_cast<const float *>(x.data) + at, sizeof(float) * n);
  } else {
    const uint16_t *from = static_cast<const uint16_t *>(x.data) + at;
    for (int c = 0; c < n; ++c) to[c] = from_bf16(from[c]);
  }
  for (int c = n; c < padded; ++c) to[c] = 0.f;
}

KDA_INLINE void write_row(const kda_tensor &x, int64_t b, int64_t t, int64_t h, const float *from, int n) {
  const int64_t at = b * x.stride_batch + t * x.stride_token + h * x.stride_head;
  if (x.dtype == KDA_F32) {
    std::memcpy(static_cast<float *>(x.data) + at, from, sizeof(float) * n);
  } else {
    uint16_t *to = static_cast<uint16_t *>(x.data) + at;
    for (int c = 0; c < n; ++c) to[c] = to_bf16(from[c]);
  }
}

/* The rows of the next chunk, asked for a few cache lines at a time while this one computes: they lie pages apart,
 * out of the processor's own foresight, and all at once they would hold up its other loads. */
class Foresight {
  struct Row {
    const char *at, *end;
  };
  Row rows[5 * CHUNK];
  int count = 0, row = 0, portion = 0;

 public:
  void add(const kda_tensor &x, int64_t b, int64_t t, int64_t h, int n) {
    const int bytes = x.dtype == KDA_F32 ? 4 : 2;
    const int64_t at = b * x.stride_batch + t * x.stride_token + h * x.stride_head;
    const char *begin = static_cast<const char *>(x.data) + at * bytes;
    rows[count++] = {begin, begin + n * bytes};
    portion += n * bytes / 64 + 1;
  }
  void spread_over(int calls) { portion = portion / calls + 1; }
  KDA_INLINE_MEMBER void some() {
    for (int i = 0; i < portion && row < count; ++i) {
      Row &r = rows[row];
      __builtin_prefetch(r.at, 0, 2);
      r.at += 64;
      row += r.at >= r.end;
    }
  }
};

KDA_INLINE float dot(const float *x, const float *y, int n) {
  vf s{};
  for (int c = 0; c < n; c += W) s += load(x + c) * load(y + c);
  return sum(s);
}

/* g -> the decay a = exp(g) of each token, and what the chunk does to the state: (keep + change) S. */
KDA_INLINE void decays(const kda_args &args, const Scratch &s, int64_t hv, int n) {
  const float A = args.A_log ? std::exp(args.A_log[hv]) : 1.f;
  const float *bias = args.dt_bias ? args.dt_bias + hv * args.dim_k : nullptr;
  for (int c = args.dim_k; c < s.Kp; ++c) s.bias[c] = 0.f;
  for (int c = 0; c < args.dim_k; ++c) s.bias[c] = bias ? bias[c] : 0.f;
  for (int c = 0; c < s.Kp; c += W) {
    vf total{};
    for (int i = 0; i < n; ++i) {
      float *at = s.a + i * s.Kp + c;
      vf g = load(at);
      if (args.gate == KDA_GATE_SOFTPLUS) g = -A * softplus(g + load(s.bias + c));
      if (args.gate == KDA_GATE_SIGMOID) g = args.lower_bound * sigmoid(A * (g + load(s.bias + c)));
      total += g;
      store(at, split_exp(g).value());
    }
    const Exp chunk = split_exp(total);
    const vi slow = chunk.power == 1.f;
    store(s.keep + c, choose(slow, splat(1.f), vf{}));
    store(s.change + c, choose(slow, chunk.rest, chunk.value()));
  }
}

/* k, q -> what reads the state (k_in, q_in: decayed from the chunk's start) and what writes it (k_out: to its end). */
KDA_INLINE void operands(const Scratch &s, int n) {
  const int Kp = s.Kp;
  for (int c = 0; c < Kp; c += W) {
    vf since = splat(1.f), until = splat(1.f);
    for (int i = 0; i < n; ++i) {
      const int at = i * Kp + c;
      since *= load(s.a + at);
      store(s.k_in + at, load(s.k + at) * since);
      store(s.q_in + at, load(s.q + at) * since);
    }
    for (int i = n; i-- > 0;) {
      const int at = i * Kp + c;
      store(s.k_out + at, load(s.k + at) * until);
      until *= load(s.a + at);
    }
  }
}

/* Row i of L and M for J neighbouring tokens j before it, whose keys `carried` are decayed one token on, to i. */
template <int J>
KDA_INLINE void pairs(const Scratch &s, float *carried, int i, int j) {
  const int Kp = s.Kp;
  const float *a = s.a + i * Kp, *k = s.k + i * Kp, *q = s.q + i * Kp;
  vf L[J] = {}, M[J] = {};
  for (int c = 0; c < Kp; c += W) {
    const vf ac = load(a + c), kc = load(k + c), qc = load(q + c);
    for (int m = 0; m < J; ++m) {
      const vf x = load(carried + m * Kp + c) * ac;
      store(carried + m * Kp + c, x);
      L[m] += x * kc;
      M[m] += x * qc;
    }
  }
  for (int m = 0; m < J; ++m) {
    s.L[i * CHUNK + j + m] = s.beta[i] * sum(L[m]);
    s.M[i * CHUNK + j + m] = sum(M[m]);
  }
}

/* L_ij = beta_i <k_i, D k_j> for j < i and M_ij = <q_i, D k_j> for j <= i, D the decay after j up to i. */
KDA_INLINE void inside(const Scratch &s, int n) {
  const int Kp = s.Kp;
  for (int i = 0; i < n; ++i)
    for (int j = i; j < CHUNK; ++j) s.L[i * CHUNK + j] = s.M[i * CHUNK + j] = 0.f;
  for (int i = 0; i < n; ++i) s.M[i * CHUNK + i] = dot(s.q + i * Kp, s.k + i * Kp, Kp);
  for (int j = 0; j < n; j += 4) {
    std::memcpy(s.carried, s.k + j * Kp, sizeof(float) * 4 * Kp);
    if (j + 1 < n) pairs<1>(s, s.carried, j + 1, j);
    if (j + 2 < n) pairs<2>(s, s.carried, j + 2, j);
    if (j + 3 < n) pairs<3>(s, s.carried, j + 3, j);
    for (int i = j + 4; i < n; ++i) pairs<4>(s, s.carried, i, j);
  }
}

/* acc[r] = rows[r] . S for a panel S [K][PW]. */
template <int R>
KDA_INLINE void through_state(vf (&acc)[R][2], const float *rows, int Kp, const float *S, int K) {
  for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = vf{};
  for (int c = 0; c < K; ++c) {
    const vf s0 = load(S + c * PW), s1 = load(S + c * PW + W);
    for (int r = 0; r < R; ++r) {
      acc[r][0] += rows[r * Kp + c] * s0;
      acc[r][1] += rows[r * Kp + c] * s1;
    }
  }
}

/* R corrections from token i on: U_i = beta_i (v_i - k_in_i . S) - sum over j < i of L_ij U_j. */
template <int R>
KDA_INLINE void corrections(const Scratch &s, const float *S, int panel, int i, int K) {
  vf u[R][2];
  through_state<R>(u, s.k_in + i * s.Kp, s.Kp, S, K);
  const float *v = s.v + i * s.Vp + panel * PW;
  for (int r = 0; r < R; ++r) {
    u[r][0] = s.beta[i + r] * (load(v + r * s.Vp) - u[r][0]);
    u[r][1] = s.beta[i + r] * (load(v + r * s.Vp + W) - u[r][1]);
  }
  for (int j = 0; j < i; ++j) {
    const vf u0 = load(s.U + j * PW), u1 = load(s.U + j * PW + W);
    for (int r = 0; r < R; ++r) {
      const float L = s.L[(i + r) * CHUNK + j];
      u[r][0] -= L * u0;
      u[r][1] -= L * u1;
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int p = 0; p < r; ++p) {
      const float L = s.L[(i + r) * CHUNK + i + p];
      u[r][0] -= L * u[p][0];
      u[r][1] -= L * u[p][1];
    }
    store(s.U + (i + r) * PW, u[r][0]);
    store(s.U + (i + r) * PW + W, u[r][1]);
  }
}

/* R outputs from token i on: o_i = q_in_i . S + sum over j <= i of M_ij U_j (q carries the scale). */
template <int R>
KDA_INLINE void outputs(const Scratch &s, const float *S, int panel, int i, int K) {
  vf o[R][2];
  through_state<R>(o, s.q_in + i * s.Kp, s.Kp, S, K);
  auto add = [&](int j, int from) __attribute__((always_inline)) {
    const vf u0 = load(s.U + j * PW), u1 = load(s.U + j * PW + W);
    for (int r = from; r < R; ++r) {
      const float M = s.M[(i + r) * CHUNK + j];
      o[r][0] += M * u0;
      o[r][1] += M * u1;
    }
  };
  for (int j = 0; j < i; ++j) add(j, 0);
  for (int p = 0; p < R; ++p) add(i + p, p); /* nothing, not even a NaN, comes from a later token */
  float *to = s.o + i * s.Vp + panel * PW;
  for (int r = 0; r < R; ++r) {
    store(to + r * s.Vp, o[r][0]);
    store(to + r * s.Vp + W, o[r][1]);
  }
}

/* R rows of the state from channel c on: S <- (keep + change) S + k_out^T U. */
template <int R>
KDA_INLINE void advance(const Scratch &s, float *S, int c, int n) {
  vf acc[R][2];
  for (int r = 0; r < R; ++r) {
    acc[r][0] = s.change[c + r] * load(S + (c + r) * PW);
    acc[r][1] = s.change[c + r] * load(S + (c + r) * PW + W);
  }
  for (int i = 0; i < n; ++i) {
    const vf u0 = load(s.U + i * PW), u1 = load(s.U + i * PW + W);
    for (int r = 0; r < R; ++r) {
      const float k = s.k_out[i * s.Kp + c + r];
      acc[r][0] += k * u0;
      acc[r][1] += k * u1;
    }
  }
  for (int r = 0; r < R; ++r) {
    float *row = S + (c + r) * PW;
    store(row, s.keep[c + r] * load(row) + acc[r][0]);
    store(row + W, s.keep[c + r] * load(row + W) + acc[r][1]);
  }
}

/* Calls tile.template go<R>(at) for tiles of ROWS rows and one smaller tile for the rest. */
template <int R = ROWS, class Tile>
KDA_INLINE void in_tiles(int at, int end, const Tile &tile) {
  for (; at + R <= end; at += R) tile.template go<R>(at);
  if constexpr (R > 1) {
    if (at < end) in_tiles<R - 1>(at, end, tile);
  }
}

struct Corrections {
  const Scratch &s;
  const float *S;
  int panel, K;
  template <int R>
  KDA_INLINE_MEMBER void go(int i) const { corrections<R>(s, S, panel, i, K); }
};
struct Outputs {
  const Scratch &s;
  const float *S;
  int panel, K;
  template <int R>
  KDA_INLINE_MEMBER void go(int i) const { outputs<R>(s, S, panel, i, K); }
};
struct Advance {
  const Scratch &s;
  float *S;
  int n;
  Foresight &next;
  template <int R>
  KDA_INLINE_MEMBER void go(int c) const {
    next.some();
    advance<R>(s, S, c, n);
  }
};

/* n tokens from t on of batch b in value head hv. */
struct Place {
  int64_t b, t, hv;
  int n;
};

/* One chunk, in the state panels [first, last); `then` is where the thread goes next. */
static void chunk(const kda_args &args, const Scratch &s, float *state, const Place &at, const Place &then, int first,
                  int last) {
  const int K = args.dim_k, Kp = s.Kp, n = at.n;
  const int64_t b = at.b, t = at.t, hv = at.hv, group = args.heads_v / args.heads_qk, h = hv / group;
  const int column = first * PW, columns = std::min<int>(last * PW, args.dim_v) - column;
  kda_tensor v = args.v, o = args.o;
  const int bytes_v = v.dtype == KDA_F32 ? 4 : 2;
  v.data = static_cast<char *>(v.data) + column * bytes_v;
  o.data = static_cast<char *>(o.data) + column * (o.dtype == KDA_F32 ? 4 : 2);
  for (int i = 0; i < n; ++i) {
    read_row(s.k + i * Kp, args.k, b, t + i, h, K, Kp);
    read_row(s.q + i * Kp, args.q, b, t + i, h, K, Kp);
    read_row(s.a + i * Kp, args.g, b, t + i, hv, K, Kp);
    read_row(s.v + i * s.Vp + column, v, b, t + i, hv, columns, (last - first) * PW);
    float beta;
    read_row(&beta, args.beta, b, t + i, hv, 1, 1);
    if (args.beta_kind != KDA_BETA_PLAIN) beta = (args.beta_kind == KDA_BETA_2SIGMOID ? 2.f : 1.f) / (1.f + std::exp(-beta));
    s.beta[i] = beta;
    float *k = s.k + i * Kp, *q = s.q + i * Kp;
    float k_factor = 1.f, q_factor = args.scale;
    if (args.l2norm) {
      k_factor /= std::sqrt(dot(k, k, Kp) + 1e-6f);
      q_factor /= std::sqrt(dot(q, q, Kp) + 1e-6f);
    }
    for (int c = 0; c < Kp; c += W) {
      store(k + c, k_factor * load(k + c));
      store(q + c, q_factor * load(q + c));
    }
  }
  decays(args, s, hv, n);
  operands(s, n);
  inside(s, n);
  Foresight next;
  for (int i = 0; i < then.n; ++i) {
    next.add(args.k, then.b, then.t + i, then.hv / group, K);
    next.add(args.q, then.b, then.t + i, then.hv / group, K);
    next.add(args.g, then.b, then.t + i, then.hv, K);
    next.add(v, then.b, then.t + i, then.hv, columns);
    next.add(o, then.b, then.t + i, then.hv, columns);
  }
  next.spread_over((last - first) * ((K + ROWS - 1) / ROWS));
  for (int panel = first; panel < last; ++panel) {
    float *S = state + static_cast<int64_t>(panel) * PW * Kp;
    in_tiles(0, n, Corrections{s, S, panel, K});
    in_tiles(0, n, Outputs{s, S, panel, K});
    in_tiles(0, K, Advance{s, S, n, next});
  }
  for (int i = 0; i < n; ++i) write_row(o, b, t + i, hv, s.o + i * s.Vp + column, columns);
}

/* The state of (sequence n, value head hv) into panels [K][PW], or zeros. */
static void read_state(const kda_args &args, float *S, int Kp, int64_t n, int64_t hv, int first, int last) {
  const int K = args.dim_k, V = args.dim_v;
  const float *state = static_cast<const float *>(args.initial_state);
  if (state) state += (n * args.heads_v + hv) * K * V;
  for (int panel = first; panel < last; ++panel)
    for (int c = 0; c < K; ++c)
      for (int x = 0; x < PW; ++x) {
        const int64_t col = panel * PW + x;
        S[(static_cast<int64_t>(panel) * Kp + c) * PW + x] =
            !state || col >= V ? 0.f : args.state_v_first ? state[col * K + c] : state[static_cast<int64_t>(c) * V + col];
      }
}

static void write_state(const kda_args &args, const float *S, int Kp, int64_t n, int64_t hv, int first, int last) {
  const int K = args.dim_k, V = args.dim_v;
  float *state = static_cast<float *>(args.final_state);
  if (!state) return;
  state += (n * args.heads_v + hv) * K * V;
  for (int panel = first; panel < last; ++panel)
    for (int c = 0; c < K; ++c)
      for (int x = 0; x < PW; ++x) {
        const int64_t col = panel * PW + x;
        if (col >= V) break;
        (args.state_v_first ? state[col * K + c] : state[static_cast<int64_t>(c) * V + col]) =
            S[(static_cast<int64_t>(panel) * Kp + c) * PW + x];
      }
}

/* All tokens of one sequence in neighbouring value heads, chunk by chunk: their rows share memory pages. */
static void task(const kda_args &args, const Scratch &s, const Task &work) {
  const int64_t floats = static_cast<int64_t>(s.Kp) * s.Vp; /* of one head's state */
  for (int i = 0; i < work.heads; ++i)
    read_state(args, s.S + i * floats, s.Kp, work.sequence, work.head + i, work.first, work.last);
  auto place = [&](int64_t t, int i) {
    const int64_t n = std::max<int64_t>(0, std::min<int64_t>(CHUNK, work.end - t));
    return Place{work.batch, t, work.head + i, static_cast<int>(n)};
  };
  for (int64_t t = work.begin; t < work.end; t += CHUNK)
    for (int i = 0; i < work.heads; ++i) {
      const Place then = i + 1 < work.heads ? place(t, i + 1) : place(t + CHUNK, 0);
      chunk(args, s, s.S + i * floats, place(t, i), then, work.first, work.last);
    }
  for (int i = 0; i < work.heads; ++i)
    write_state(args, s.S + i * floats, s.Kp, work.sequence, work.head + i, work.first, work.last);
}

#undef KDA_INLINE
}  // namespace KDA_ISA
#undef KDA_ISA
#undef KDA_WIDTH
#undef KDA_ROWS
