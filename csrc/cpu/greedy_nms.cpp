#include "greedy_nms.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "multiversion.h"

namespace atss {
namespace {

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
constexpr int64_t kSmall = 512;
// Below this limit the near ones are too many to be worth looking for.
constexpr float kSmallestLimitForGrid = 0.2f;
// So many powers of two lie between a fifth and five times a number, and some to spare.
constexpr int kMaxLevels = 8;

constexpr int kLanes = 16;

// Kept boxes side by side in slots, for comparing one box with many. Empty slots hold NaN, which overlaps nothing.
struct KeptBoxes {
  std::vector<float> x1, y1, x2, y2, areas;
  std::vector<int32_t> positions;

  explicit KeptBoxes(int64_t num_slots) : positions(num_slots) {
    // A comparison of kLanes slots may reach beyond the last one.
    for (auto* values : {&x1, &y1, &x2, &y2, &areas})
      values->assign(num_slots + kLanes, std::numeric_limits<float>::quiet_NaN());
  }

  void fill(int64_t slot, const Box& box, int32_t position) {
    x1[slot] = box.x1;
    y1[slot] = box.y1;
    x2[slot] = box.x2;
    y2[slot] = box.y2;
    areas[slot] = area(box);
    positions[slot] = position;
  }

  // Returns the first slot, from `begin` to before `end`, whose box overlaps this one by more than the limit, or -1.
  int64_t find(int64_t begin, int64_t end, const Box& box, float limit) const {
    return find_overlap(
        x1.data(), y1.data(), x2.data(), y2.data(), areas.data(), begin, end, box, area(box), limit);
  }

 private:
  ATSS_MULTIVERSION
  static int64_t find_overlap(
      const float* x1, const float* y1, const float* x2, const float* y2, const float* areas, int64_t begin,
      int64_t end, const Box& box, float box_area, float limit) {
    for (int64_t start = begin; start < end; start += kLanes) {
      float overlaps[kLanes];
#pragma omp simd
      for (int lane = 0; lane < kLanes; ++lane) {
        const int64_t i = start + lane;
        overlaps[lane] = iou({x1[i], y1[i], x2[i], y2[i]}, areas[i], box, box_area);
      }
      int num_hits = 0;
#pragma omp simd reduction(+ : num_hits)
      for (int lane = 0; lane < kLanes; ++lane) num_hits += overlaps[lane] > limit;
      if (num_hits == 0) continue;
      int64_t hit = start;
      while (!(overlaps[hit - start] > limit)) ++hit;
      return hit < end ? hit : -1;
    }
    return -1;
  }
};

void greedy_nms_pairwise(const Box* boxes, const int32_t* order, int64_t count, float limit, int32_t* suppressor) {
  KeptBoxes kept(count);
  int64_t num_kept = 0;
  for (int32_t i = 0; i < count; ++i) {
    const Box& box = boxes[order[i]];
    const int64_t hit = kept.find(0, num_kept, box, limit);
    suppressor[i] = hit < 0 ? i : kept.positions[hit];
    if (hit < 0) kept.fill(num_kept++, box, i);
  }
}

// Only boxes with positive, finite sides can overlap another (see iou).
bool has_area(const Box& box) {
  const float width = box.x2 - box.x1, height = box.y2 - box.y1;
  return width > 0 && height > 0 && std::isfinite(width) && std::isfinite(height);
}

// A hash grid of boxes by size and position. An IoU above t needs sides within a factor t of each other and centres near each other:
// with widths v and w, an overlap of width at least t * max(v, w) leaves the centres at most
// (v + w) / 2 - t * max(v, w) apart. So boxes are binned by the powers of two of their sides, and in each bin by cells
// twice as large as its largest box. Kept boxes of a bin overlap little, hence a cell holds few, and a box is compared with
// a few others only, however many there are. Each cell has a slot for each of its boxes, should all be kept.
class Grid {
 public:
  Grid(const Box* boxes, const int32_t* order, int64_t count, float limit)
      : limit_(limit), margin_(limit * (1 - 1e-4)), cell_of_(count), kept_(count) {
    int bits = 4;
    while ((int64_t{1} << bits) < 2 * count) ++bits;
    shift_ = 64 - bits;
    table_.assign(size_t{1} << bits, Entry{0, -1});
    std::vector<int64_t> sizes;
    for (int64_t i = 0; i < count; ++i) {
      if (!has_area(boxes[order[i]])) continue;
      const Query query(boxes[order[i]], margin_);
      Entry& entry = table_[entry_of(own_key(query))];
      if (entry.cell < 0) {
        entry = {own_key(query), static_cast<int32_t>(sizes.size())};
        sizes.push_back(0);
        occupied_[query.y.level & 255][query.x.level & 255] = true;
      }
      cell_of_[i] = entry.cell;
      ++sizes[entry.cell];
    }
    cells_.resize(sizes.size());
    int64_t slot = 0;
    for (size_t cell = 0; cell < sizes.size(); ++cell) {
      cells_[cell] = {slot, slot};
      slot += sizes[cell];
    }
  }

  // Returns the position of a kept box that overlaps this one by more than the limit (with Suppressor::kHighestScore the smallest
  // position), or -1. The box, at `position`, must have an area.
  int32_t find(const Box& box, int64_t position, Suppressor choice) const {
    int32_t best = -1;
    const auto visit = [&](int32_t cell) {
      const int64_t slot = kept_.find(cells_[cell].begin, cells_[cell].end, box, limit_);
      if (slot >= 0 && (best < 0 || kept_.positions[slot] < best)) best = kept_.positions[slot];
      return best >= 0 && choice == Suppressor::kAny;
    };
    if (visit(cell_of_[position])) return best;  // where most duplicates are
    const Query query(box, margin_);
    std::array<Range, kMaxLevels> ranges_x;
    for (int column = query.x.first_level; column <= query.x.last_level; ++column)
      ranges_x[column - query.x.first_level] = query.x.cells(column);
    for (int row = query.y.first_level; row <= query.y.last_level; ++row) {
      const Range y = query.y.cells(row);
      for (int column = query.x.first_level; column <= query.x.last_level; ++column) {
        if (!occupied_[row & 255][column & 255]) continue;
        const Range x = ranges_x[column - query.x.first_level];
        for (int64_t cell_y = y.first; cell_y <= y.last; ++cell_y)
          for (int64_t cell_x = x.first; cell_x <= x.last; ++cell_x) {
            const int32_t cell = table_[entry_of(key_of(column, row, cell_x, cell_y))].cell;
            if (cell >= 0 && cell != cell_of_[position] && visit(cell)) return best;
          }
      }
    }
    return best;
  }

  // Keeps the box at `position`, which must have an area.
  void keep(const Box& box, int32_t position) {
    kept_.fill(cells_[cell_of_[position]].end++, box, position);
  }

 private:
  struct Entry {
    uint64_t key;
    int32_t cell;  // -1: none
  };
  struct Range {
    int64_t first, last;
  };
  struct Slots {
    int64_t begin, end;  // of the kept boxes
  };

  // One axis of a box. Level l holds sides from 2^l up to below 2^(l + 1), in cells of 2^(l + 2).
  struct Axis {
    double center, side, limit;
    int level, first_level, last_level;

    Axis(double first, double last, double limit_)
        : center((first + last) / 2),
          side(last - first),
          limit(limit_),
          level(level_of(side)),
          first_level(level_of(side * limit)),
          last_level(level_of(side / limit)) {}

    static int64_t cell(int cell_level, double position) {
      constexpr double kFarthest = int64_t{1} << 52;
      const double scaled = std::clamp(position * power_of_two(-cell_level - 2), -kFarthest, kFarthest);
      const auto truncated = static_cast<int64_t>(scaled);
      return truncated - (scaled < truncated);
    }

    // The cells of a level in which an overlapping box can have its centre.
    Range cells(int cell_level) const {
      const double smallest = std::max(power_of_two(cell_level), side * limit);
      const double largest = std::max(smallest, std::min(power_of_two(cell_level + 1), side / limit));
      const auto reach = [&](double other) { return (side + other) / 2 - limit * std::max(side, other); };
      // The reach rises with the other side up to this one's, then falls or, for limits below a half, rises on.
      const double farthest = std::max(reach(std::clamp(side, smallest, largest)), reach(largest));
      return {cell(cell_level, center - farthest), cell(cell_level, center + farthest)};
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

  // Where a key stands in the table, or would: open addressing, at most half full.
  size_t entry_of(uint64_t key) const {
    size_t entry = key * 0x9E3779B97F4A7C15u >> shift_;
    while (table_[entry].cell >= 0 && table_[entry].key != key) entry = (entry + 1) & (table_.size() - 1);
    return entry;
  }

  float limit_;
  double margin_;  // a little below the limit, for what rounding the IoU can add
  int shift_;
  std::vector<Entry> table_;
  std::vector<Slots> cells_;
  std::vector<int32_t> cell_of_;  // by position; boxes without an area have none
  KeptBoxes kept_;
  bool occupied_[256][256] = {};  // which levels have boxes
};

void greedy_nms_grid(
    const Box* boxes, const int32_t* order, int64_t count, float limit, Suppressor choice, int32_t* suppressor) {
  Grid grid(boxes, order, count, limit);
  for (int32_t i = 0; i < count; ++i) {
    const Box& box = boxes[order[i]];
    suppressor[i] = i;
    if (!has_area(box)) continue;
    const int32_t hit = grid.find(box, i, choice);
    if (hit < 0)
      grid.keep(box, i);
    else
      suppressor[i] = hit;
  }
}

} // namespace

void greedy_nms(
    const Box* boxes, const int32_t* order, int64_t count, float limit, Suppressor choice, int32_t* suppressor) {
  if (count <= kSmall || limit < kSmallestLimitForGrid)
    greedy_nms_pairwise(boxes, order, count, limit, suppressor);
  else
    greedy_nms_grid(boxes, order, count, limit, choice, suppressor);
}

} // namespace atss
