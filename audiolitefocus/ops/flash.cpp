// Attention in bfloat16 with AVX512-BF16: softmax(q k^T scale) v, heads 32 wide. See flash.py.
//
// As FlashAttention does it (Dao et al. 2022), a block of keys at a time: scores, their softmax
// with a running maximum and sum, and the weighted sum of the values. Products are of bfloat16 and
// summed in float32; weights are rounded to bfloat16, as PyTorch's kernel does.

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#define AVX512 __attribute__((target("avx512f,avx512bf16")))

namespace {

using bfloat16 = uint16_t;
using pair = uint32_t;  // two bfloat16, which one instruction multiplies and adds up

constexpr int WIDTH = 32;        // of a head
constexpr int LANES = 16;        // float32 in a register
constexpr int QUERIES = 8;       // at a time: with two accumulators each, half of the registers
constexpr int KEYS = 512;        // at a time: their scores stay in the first-level cache
constexpr int STEP = 2 * LANES;  // keys are padded to a multiple of it
constexpr int PAIRS = WIDTH / 2;

struct Strided {  // (b, h, n, WIDTH), the last axis contiguous
  bfloat16* data;
  int64_t batch, head, token;
  bfloat16* row(int64_t b, int64_t h, int64_t n) const {
    return data + b * batch + h * head + n * token;
  }
};

struct Shape {
  int64_t heads, queries, keys;
  int64_t padded() const { return (keys + STEP - 1) / STEP * STEP; }
};

struct Scratch {  // one head's keys and values, in the order in which they are read
  pair* keys;     // (padded / LANES, PAIRS, LANES): of a channel pair, LANES keys together
  pair* values;   // (padded / 2, WIDTH): of two keys, every channel
};

void pack(const Strided& k, const Strided& v, int64_t b, int64_t h, const Shape& shape,
          const Scratch& to) {
  static const bfloat16 zeros[WIDTH] = {};
  for (int64_t n = 0; n < shape.padded(); n += 2) {
    const bfloat16* row[2][2];  // key and value of two tokens
    for (int64_t i : {0, 1}) {
      const bool padding = n + i >= shape.keys;
      row[i][0] = padding ? zeros : k.row(b, h, n + i);
      row[i][1] = padding ? zeros : v.row(b, h, n + i);
      pair* column = to.keys + (n + i) / LANES * PAIRS * LANES + (n + i) % LANES;
      for (int p = 0; p < PAIRS; p++) std::memcpy(column + p * LANES, row[i][0] + 2 * p, 4);
    }
    pair* values = to.values + n / 2 * WIDTH;
    for (int c = 0; c < WIDTH; c++) values[c] = row[0][1][c] | pair(row[1][1][c]) << 16;
  }
}

AVX512 inline __m512bh load(const pair* x) { return (__m512bh)_mm512_load_si512(x); }
AVX512 inline __m512bh broadcast(pair x) { return (__m512bh)_mm512_set1_epi32(int(x)); }

// 2^x for x <= 0, to 2e-7. A NaN stays one, for which the order of `max` matters.
AVX512 inline __m512 exp2(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-126.0f), x);
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 rest = _mm512_sub_ps(x, whole);
  __m512 sum = _mm512_set1_ps(1.5403530393e-4f);  // ln(2)^n / n!
  for (float next : {1.3333558146e-3f, 9.6181291076e-3f, 5.5504108665e-2f, 2.4022650696e-1f,
                     6.9314718056e-1f, 1.0f})
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(next));
  return _mm512_scalef_ps(sum, whole);
}

using Accumulators = __m512[QUERIES][2];

// scores[i][0 .. STEP] of `QUERIES` queries with STEP keys.
AVX512 inline void multiply_keys(const pair (*q)[PAIRS], const pair* keys, float (*scores)[KEYS]) {
  Accumulators sum;
  for (auto& row : sum) row[0] = row[1] = _mm512_setzero_ps();
#pragma GCC unroll 16
  for (int p = 0; p < PAIRS; p++) {
    const __m512bh first = load(keys + p * LANES), second = load(keys + (PAIRS + p) * LANES);
#pragma GCC unroll 8
    for (int i = 0; i < QUERIES; i++) {
      const __m512bh query = broadcast(q[i][p]);
      sum[i][0] = _mm512_dpbf16_ps(sum[i][0], first, query);
      sum[i][1] = _mm512_dpbf16_ps(sum[i][1], second, query);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < QUERIES; i++) {
    _mm512_store_ps(scores[i], sum[i][0]);
    _mm512_store_ps(scores[i] + LANES, sum[i][1]);
  }
}

// The softmax of one query's scores so far: all that is known of it, up to a common factor.
struct Running {
  float maximum = -INFINITY, sum = 0.0f;  // of the scores, to base 2; of the weights
};

// Turns a row of scores to weights, and tells the factor by which all earlier ones shrink.
AVX512 inline float soften(float* scores, int count, float scale, Running& so_far,
                           bfloat16* weights) {
  __m512 highest = _mm512_set1_ps(-INFINITY);
  for (int j = 0; j < count; j += LANES)
    highest = _mm512_max_ps(highest, _mm512_load_ps(scores + j));
  const float maximum = std::max(so_far.maximum, scale * _mm512_reduce_max_ps(highest));
  const __m512 scales = _mm512_set1_ps(scale), offset = _mm512_set1_ps(-maximum);
  __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int j = 0; j < count; j += STEP) {
    __m512 part[2];
    for (int i : {0, 1}) {
      const __m512 score = _mm512_load_ps(scores + j + i * LANES);
      part[i] = exp2(_mm512_fmadd_ps(score, scales, offset));
      sum[i] = _mm512_add_ps(sum[i], part[i]);
    }
    _mm512_store_si512(weights + j, (__m512i)_mm512_cvtne2ps_pbh(part[1], part[0]));
  }
  const float factor = std::exp2(so_far.maximum - maximum);
  so_far.maximum = maximum;
  so_far.sum = factor * so_far.sum + _mm512_reduce_add_ps(_mm512_add_ps(sum[0], sum[1]));
  return factor;
}

// Adds the values of `count` keys, weighted, to the results of QUERIES queries.
AVX512 inline void add_values(const bfloat16 (*weights)[KEYS], const pair* values, int count,
                              Accumulators& results) {
  Accumulators sum;  // a copy, for the compiler to keep in registers
  std::memcpy(sum, results, sizeof sum);
  for (int j = 0; j < count; j += 2) {
    const __m512bh first = load(values + j / 2 * WIDTH);
    const __m512bh second = load(values + j / 2 * WIDTH + LANES);
#pragma GCC unroll 8
    for (int i = 0; i < QUERIES; i++) {
      pair both;
      std::memcpy(&both, weights[i] + j, 4);
      const __m512bh weight = broadcast(both);
      sum[i][0] = _mm512_dpbf16_ps(sum[i][0], weight, first);
      sum[i][1] = _mm512_dpbf16_ps(sum[i][1], weight, second);
    }
  }
  std::memcpy(results, sum, sizeof sum);
}

// The results of queries [begin, begin + count) of one head, at most QUERIES.
AVX512 void attend(const Strided& q, const Strided& out, int64_t b, int64_t h, int64_t begin,
                   int count, const Shape& shape, float scale, const Scratch& packed) {
  alignas(64) float scores[QUERIES][KEYS];
  alignas(64) bfloat16 weights[QUERIES][KEYS];
  alignas(64) pair queries[QUERIES][PAIRS] = {};
  Running softmax[QUERIES];
  Accumulators results;
  for (auto& row : results) row[0] = row[1] = _mm512_setzero_ps();
  for (int i = 0; i < count; i++) std::memcpy(queries[i], q.row(b, h, begin + i), sizeof *queries);

  for (int64_t first = 0; first < shape.padded(); first += KEYS) {
    const int keys = int(std::min<int64_t>(KEYS, shape.padded() - first));
    const int real = int(std::min<int64_t>(keys, shape.keys - first));
    for (int j = 0; j < keys; j += STEP)
      multiply_keys(queries, packed.keys + (first + j) * PAIRS,
                    reinterpret_cast<float(*)[KEYS]>(scores[0] + j));
    for (int i = 0; i < QUERIES; i++) {
      std::fill(scores[i] + real, scores[i] + keys, -INFINITY);
      const __m512 factor = _mm512_set1_ps(soften(scores[i], keys, scale, softmax[i], weights[i]));
      for (__m512& part : results[i]) part = _mm512_mul_ps(part, factor);
    }
    add_values(weights, packed.values + first / 2 * WIDTH, keys, results);
  }
  for (int i = 0; i < count; i++) {
    const __m512 share = _mm512_set1_ps(1.0f / softmax[i].sum);
    const __m512 low = _mm512_mul_ps(results[i][0], share);
    const __m512 high = _mm512_mul_ps(results[i][1], share);
    _mm512_storeu_si512(out.row(b, h, begin + i), (__m512i)_mm512_cvtne2ps_pbh(high, low));
  }
}

}  // namespace

// q, out: (batch, heads, queries, 32); k, v: (batch, heads, keys, 32). `strides`: of batch, head
// and token, for q, k, v and out, in elements.
extern "C" void flash_attention(bfloat16* q, bfloat16* k, bfloat16* v, bfloat16* out, int64_t batch,
                                int64_t heads, int64_t queries, int64_t keys,
                                const int64_t* strides, float scale, int64_t threads) {
  const auto strided = [&](bfloat16* x, int i) {
    return Strided{x, strides[3 * i], strides[3 * i + 1], strides[3 * i + 2]};
  };
  const Strided from = strided(q, 0), key = strided(k, 1), value = strided(v, 2),
                to = strided(out, 3);
  const Shape shape{heads, queries, keys};
  // A head is one thread's work, unless there are too few of them to share out evenly.
  const int64_t parts = std::clamp<int64_t>(4 * threads / (batch * heads), 1, queries);
  const int64_t part = ((queries + parts - 1) / parts + QUERIES - 1) / QUERIES * QUERIES;
  const float base_2 = scale * 1.44269504089f;
  std::atomic<int64_t> next{0};

  const auto work = [&] {
    std::vector<pair> memory(shape.padded() * WIDTH + LANES);  // and what alignment takes
    const auto address = (reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64;
    pair* start = reinterpret_cast<pair*>(address);
    const Scratch packed{start, start + shape.padded() * PAIRS};
    for (int64_t n; (n = next++) < batch * heads * parts;) {
      const int64_t b = n / parts / heads, h = n / parts % heads;
      const int64_t begin = n % parts * part, end = std::min(begin + part, queries);
      if (begin >= end) continue;
      pack(key, value, b, h, shape, packed);
      for (int64_t i = begin; i < end; i += QUERIES)
        attend(from, to, b, h, i, int(std::min<int64_t>(QUERIES, end - i)), shape, base_2, packed);
    }
  };
  std::vector<std::thread> others;
  for (int64_t i = 1; i < threads; i++) others.emplace_back(work);
  work();
  for (auto& other : others) other.join();
}
