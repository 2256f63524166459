// Stable radix sorts of boxes.
#pragma once
#include <cstdint>
#include <vector>

namespace atss {

// Indices of scores from high to low; equal scores stay in order, NaN comes first as in torch.sort.
std::vector<int32_t> argsort_descending(const float* scores, int64_t count);

// Sort an order by label, boxes of one label staying in order; returns where each label starts, and the end.
std::vector<int64_t> sort_by_label(std::vector<int32_t>& order, const int64_t* labels);

} // namespace atss
