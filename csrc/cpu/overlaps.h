// Which box is taken by which better box: the common part of NMS and box voting.
#pragma once
#include <cstdint>
#include <vector>

#include "../box_math.h"

namespace atss {

// Indices of scores from high to low; equal scores stay in order, NaN comes first as in torch.sort.
std::vector<int32_t> by_falling_score(const float* scores, int64_t count);

// Sort an order by label, boxes of one label staying in order; returns where each label starts, and the end.
std::vector<int64_t> group_by_label(std::vector<int32_t>& order, const int64_t* labels);

enum class Owner { kAny, kBest };

// Go through boxes from the best to the worst. A box whose IoU with a kept, better one is above the limit belongs to
// that one (to the best of several with Owner::kBest); every other box is kept and belongs to itself. `order` lists
// `count` indices into `boxes`; owner[i] is a position in that list. Time grows with the number of boxes, not of pairs,
// if the limit is not small.
void find_owners(
    const Box* boxes, const int32_t* order, int64_t count, float limit, Owner which, int32_t* owner);

} // namespace atss
