#include "radix_sort.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numeric>

namespace atss {
namespace {

constexpr int kDigitBits = 11;

// One stable pass of a radix sort.
template <typename Key>
void sort_by_digit(std::vector<int32_t>& order, std::vector<int32_t>& spare, const Key* keys, int shift) {
  constexpr int kDigits = 1 << kDigitBits;
  std::array<int32_t, kDigits + 1> start{};
  const auto digit = [&](int32_t i) { return (keys[i] >> shift) & (kDigits - 1); };
  for (const int32_t i : order) ++start[digit(i) + 1];
  std::partial_sum(start.begin(), start.end(), start.begin());
  spare.resize(order.size());
  for (const int32_t i : order) spare[start[digit(i)]++] = i;
  order.swap(spare);
}

// An unsigned number that rises as the score falls.
uint32_t falling_key(float score) {
  if (std::isnan(score)) return 0;
  score += 0.f;  // -0 equals 0
  uint32_t bits;
  std::memcpy(&bits, &score, sizeof bits);
  return bits & 0x80000000u ? bits : ~bits & 0x7fffffffu;
}

} // namespace

std::vector<int32_t> argsort_descending(const float* scores, int64_t count) {
  std::vector<int32_t> order(count), spare;
  std::iota(order.begin(), order.end(), 0);
  std::vector<uint32_t> keys(count);
  std::transform(scores, scores + count, keys.begin(), falling_key);
  for (int shift = 0; shift < 32; shift += kDigitBits) sort_by_digit(order, spare, keys.data(), shift);
  return order;
}

std::vector<int64_t> sort_by_label(std::vector<int32_t>& order, const int64_t* labels) {
  const int64_t count = order.size();
  if (order.empty()) return {0};
  uint64_t differing = 0;  // bits in which labels differ
  for (const int32_t i : order) differing |= static_cast<uint64_t>(labels[i] ^ labels[order[0]]);
  std::vector<int32_t> spare;
  const auto* keys = reinterpret_cast<const uint64_t*>(labels);
  for (int shift = 0; shift < 64 && differing >> shift; shift += kDigitBits) sort_by_digit(order, spare, keys, shift);
  std::vector<int64_t> starts{0};
  for (int64_t i = 1; i < count; ++i)
    if (labels[order[i]] != labels[order[i - 1]]) starts.push_back(i);
  starts.push_back(count);
  return starts;
}

} // namespace atss
