#include "overlaps.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "multiversion.h"

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

// 2^exponent, for what the sides of float32 boxes need.
double power_of_two(int exponent) {
  const uint64_t bits = static_cast<uint64_t>(1023 + exponent) << 52;
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// The exponent of the highest power of two not above a positive number; no float32 is subnormal as a double.
int level_of(double side) {
  uint64_t bits;
  std::memcpy(&bits, &side, sizeof bits);
  return static_cast<int>(bits >> 52) - 1023;
}

// Up to this many boxes, comparing with all kept ones at once is faster than looking for the near ones
// (benchmarks/ops.py).
constexpr int64_t kSmall = 256;
// Below this limit the near ones are too many to be worth looking for.
constexpr float kSmallestLimitForGrid = 0.2f;
// So many powers of two lie between a fifth and five times a number, and some to spare.
constexpr int kMaxLevels = 8;

constexpr int kLanes = 16;

// Kept boxes side by side, for comparing one box with many.
struct KeptRow {
  std::vector<float> x1, y1, x2, y2, areas;
  int64_t count = 0;

  explicit KeptRow(int64_t capacity) {
    // Lanes beyond the last box hold NaN: they overlap nothing.
    const size_t size = (capacity + kLanes - 1) / kLanes * kLanes;
    for (auto* values : {&x1, &y1, &x2, &y2, &areas}) values->assign(size, std::numeric_limits<float>::quiet_NaN());
  }

  void add(const Box& box, float box_area) {
    x1[count] = box.x1;
    y1[count] = box.y1;
    x2[count] = box.x2;
    y2[count] = box.y2;
    areas[count] = box_area;
    ++count;
  }
};

int lowest_bit(int bits) {
  int position = 0;
  while (!(bits >> position & 1)) ++position;
  return position;
}

// Returns the first of `count` kept boxes that overlaps the box by more than the limit, or -1.
ATSS_MULTIVERSION
int64_t first_overlap(
    const float* x1, const float* y1, const float* x2, const float* y2, const float* areas, int64_t count,
    const Box& box, float box_area, float limit) {
  for (int64_t start = 0; start < count; start += kLanes) {
    int hits = 0;
#pragma omp simd reduction(| : hits)
    for (int lane = 0; lane < kLanes; ++lane) {
      const int64_t i = start + lane;
      const Box other{x1[i], y1[i], x2[i], y2[i]};
      hits |= (iou(other, areas[i], box, box_area) > limit) << lane;
    }
    if (hits) return start + lowest_bit(hits);
  }
  return -1;
}

void find_owners_among_few(const Box* boxes, const int32_t* order, int64_t count, float limit, int32_t* owner) {
  KeptRow kept(count);
  std::vector<int32_t> position;
  for (int64_t i = 0; i < count; ++i) {
    const Box& box = boxes[order[i]];
    const float box_area = area(box);
    const int64_t hit = first_overlap(
        kept.x1.data(), kept.y1.data(), kept.x2.data(), kept.y2.data(), kept.areas.data(), kept.count, box, box_area,
        limit);
    owner[i] = hit < 0 ? static_cast<int32_t>(i) : position[hit];
    if (hit < 0) {
      kept.add(box, box_area);
      position.push_back(static_cast<int32_t>(i));
    }
  }
}

// Kept boxes by size and place. An IoU above t needs sides within a factor t of each other and centres near each
// other: with widths v and w, an overlap of width at least t * max(v, w) leaves the centres at most
// (v + w) / 2 - t * max(v, w) apart. So boxes are binned by the powers of two of their sides, and in each bin by cells
// as large as its largest box. Kept boxes of a bin overlap little, hence a cell holds few, and a box is compared with
// a few others only, however many there are.
class KeptGrid {
 public:
  KeptGrid(int64_t capacity, float limit) : limit_(limit), margin_(limit * (1 - 1e-4)) {
    int bits = 4;
    while ((int64_t{1} << bits) < 2 * capacity) ++bits;
    shift_ = 64 - bits;
    cells_.assign(size_t{1} << bits, Cell{0, -1});
    kept_.reserve(capacity);
  }

  // Returns the position of a kept box that overlaps this one by more than the limit (with Owner::kBest the smallest
  // position), or -1. The box must have an area.
  int32_t find(const Box& box, Owner which) const {
    const Query query(box, margin_);
    const float box_area = area(box);
    int32_t best = -1;
    const auto visit = [&](uint64_t key) {
      for (int32_t k = head(key); k >= 0; k = kept_[k].next) {
        const Kept& other = kept_[k];
        if ((best < 0 || other.position < best) && iou(other.box, other.area, box, box_area) > limit_) {
          best = other.position;
          if (which == Owner::kAny) return true;
        }
      }
      return false;
    };
    if (which == Owner::kAny && visit(own_key(query))) return best;  // where most duplicates are
    std::array<Range, kMaxLevels> ranges_x;
    for (int column = query.x.first_level; column <= query.x.last_level; ++column)
      ranges_x[column - query.x.first_level] = query.x.cells(column);
    for (int row = query.y.first_level; row <= query.y.last_level; ++row) {
      const Range y = query.y.cells(row);
      for (int column = query.x.first_level; column <= query.x.last_level; ++column) {
        if (!occupied_[row & 255][column & 255]) continue;
        const Range x = ranges_x[column - query.x.first_level];
        for (int64_t cell_y = y.first; cell_y <= y.last; ++cell_y)
          for (int64_t cell_x = x.first; cell_x <= x.last; ++cell_x)
            if (visit(key_of(column, row, cell_x, cell_y))) return best;
      }
    }
    return best;
  }

  void add(const Box& box, int32_t position) {
    const Query query(box, margin_);
    const uint64_t key = own_key(query);
    occupied_[query.y.level & 255][query.x.level & 255] = true;
    size_t slot = first_slot(key);
    while (cells_[slot].head >= 0 && cells_[slot].key != key) slot = (slot + 1) & (cells_.size() - 1);
    kept_.push_back({box, area(box), position, cells_[slot].head});
    cells_[slot] = {key, static_cast<int32_t>(kept_.size() - 1)};
  }

 private:
  struct Kept {
    Box box;
    float area;
    int32_t position, next;
  };
  struct Cell {
    uint64_t key;
    int32_t head;
  };
  struct Range {
    int64_t first, last;
  };

  // One axis of a box. Level l holds sides from 2^l up to below 2^(l + 1), in cells of 2^(l + 1).
  struct Axis {
    double center, side, limit;
    int level, first_level, last_level;

    Axis(double first, double last, double limit_) : center((first + last) / 2), side(last - first), limit(limit_) {
      level = level_of(side);
      first_level = level_of(side * limit);
      last_level = level_of(side / limit);
    }

    static int64_t cell(int cell_level, double place) {
      constexpr double kFarthest = int64_t{1} << 52;
      const double scaled = std::clamp(place * power_of_two(-cell_level - 1), -kFarthest, kFarthest);
      const auto truncated = static_cast<int64_t>(scaled);
      return truncated - (scaled < truncated);
    }

    // The cells of a level in which an overlapping box can have its centre.
    Range cells(int cell_level) const {
      const double smallest = std::max(power_of_two(cell_level), side * limit);
      const double largest = std::min(power_of_two(cell_level + 1), side / limit);
      const auto reach = [&](double other) { return (side + other) / 2 - limit * std::max(side, other); };
      // The reach rises with the other side up to this one's, then falls or, for limits below a half, rises on.
      const double reach_here = std::max(reach(std::clamp(side, smallest, std::max(smallest, largest))), reach(largest));
      return {cell(cell_level, center - reach_here), cell(cell_level, center + reach_here)};
    }
  };

  struct Query {
    Axis x, y;
    Query(const Box& box, double limit) : x(box.x1, box.x2, limit), y(box.y1, box.y2, limit) {}
  };

  static uint64_t key_of(int column, int row, int64_t cell_x, int64_t cell_y) {
    // Far cells may share a key: that costs comparisons, not correctness.
    constexpr uint64_t kCellMask = (1 << 24) - 1;
    return (static_cast<uint64_t>(column & 255) << 56) | (static_cast<uint64_t>(row & 255) << 48) |
        ((static_cast<uint64_t>(cell_x) & kCellMask) << 24) | (static_cast<uint64_t>(cell_y) & kCellMask);
  }

  static uint64_t own_key(const Query& query) {
    const Axis &x = query.x, &y = query.y;
    return key_of(x.level, y.level, x.cell(x.level, x.center), y.cell(y.level, y.center));
  }

  size_t first_slot(uint64_t key) const {
    return key * 0x9E3779B97F4A7C15u >> shift_;
  }

  int32_t head(uint64_t key) const {
    size_t slot = first_slot(key);
    while (cells_[slot].head >= 0 && cells_[slot].key != key) slot = (slot + 1) & (cells_.size() - 1);
    return cells_[slot].head;
  }

  float limit_;
  double margin_;  // a little below the limit, for what rounding the IoU can add
  int shift_;
  std::vector<Cell> cells_;  // open addressing, at most half full
  std::vector<Kept> kept_;
  bool occupied_[256][256] = {};
};

// Only boxes with positive, finite sides can overlap another (see iou).
bool has_area(const Box& box) {
  const float width = box.x2 - box.x1, height = box.y2 - box.y1;
  return width > 0 && height > 0 && std::isfinite(width) && std::isfinite(height);
}

void find_owners_among_many(
    const Box* boxes, const int32_t* order, int64_t count, float limit, Owner which, int32_t* owner) {
  KeptGrid kept(count, limit);
  for (int64_t i = 0; i < count; ++i) {
    const Box& box = boxes[order[i]];
    owner[i] = static_cast<int32_t>(i);
    if (!has_area(box)) continue;
    const int32_t hit = kept.find(box, which);
    if (hit < 0)
      kept.add(box, owner[i]);
    else
      owner[i] = hit;
  }
}

} // namespace

std::vector<int32_t> by_falling_score(const float* scores, int64_t count) {
  std::vector<int32_t> order(count), spare;
  std::iota(order.begin(), order.end(), 0);
  std::vector<uint32_t> keys(count);
  std::transform(scores, scores + count, keys.begin(), falling_key);
  for (int shift = 0; shift < 32; shift += kDigitBits) sort_by_digit(order, spare, keys.data(), shift);
  return order;
}

std::vector<int64_t> group_by_label(std::vector<int32_t>& order, const int64_t* labels) {
  if (order.empty()) return {0};
  const int64_t count = order.size();
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

void find_owners(
    const Box* boxes, const int32_t* order, int64_t count, float limit, Owner which, int32_t* owner) {
  if (count <= kSmall || limit < kSmallestLimitForGrid)
    find_owners_among_few(boxes, order, count, limit, owner);
  else
    find_owners_among_many(boxes, order, count, limit, which, owner);
}

} // namespace atss
