#include "memory/zero_page.h"

#include <immintrin.h>

#include <cstdint>

#include "base/ids.h"

namespace godwit::memory {
namespace {

using Test = bool (*)(const std::byte*);

__attribute__((target("avx512f"))) bool test_avx512(const std::byte* page) {
  for (std::size_t at = 0; at < page_bytes; at += 256) {
    const __m512i* p = reinterpret_cast<const __m512i*>(page + at);
    const __m512i any = _mm512_or_si512(_mm512_or_si512(p[0], p[1]), _mm512_or_si512(p[2], p[3]));
    if (_mm512_test_epi64_mask(any, any) != 0) return false;
  }
  return true;
}

__attribute__((target("avx2"))) bool test_avx2(const std::byte* page) {
  for (std::size_t at = 0; at < page_bytes; at += 128) {
    const __m256i* p = reinterpret_cast<const __m256i*>(page + at);
    const __m256i any = _mm256_or_si256(_mm256_or_si256(p[0], p[1]), _mm256_or_si256(p[2], p[3]));
    if (_mm256_testz_si256(any, any) == 0) return false;
  }
  return true;
}

bool test_sse2(const std::byte* page) {
  const __m128i zero = _mm_setzero_si128();
  for (std::size_t at = 0; at < page_bytes; at += 64) {
    const __m128i* p = reinterpret_cast<const __m128i*>(page + at);
    const __m128i any = _mm_or_si128(_mm_or_si128(p[0], p[1]), _mm_or_si128(p[2], p[3]));
    if (_mm_movemask_epi8(_mm_cmpeq_epi8(any, zero)) != 0xffff) return false;
  }
  return true;
}

Test choose() {
  if (__builtin_cpu_supports("avx512f")) return test_avx512;
  if (__builtin_cpu_supports("avx2")) return test_avx2;
  return test_sse2;
}

const Test chosen = choose();

}  // namespace

bool is_zero_page(const std::byte* page) { return chosen(page); }

}  // namespace godwit::memory
