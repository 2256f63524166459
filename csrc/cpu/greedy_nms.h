// Greedy suppression within one class: the common part of NMS and box voting.
#pragma once
#include <cstdint>

#include "../box_math.h"

namespace atss {

enum class Suppressor { kAny, kHighestScore };

// Visits boxes by falling score. A box whose IoU with a kept box is above the limit is suppressed by that box (by the
// best of several with Suppressor::kHighestScore); every other box is kept and suppressed by itself. `order` lists `count`
// indices into `boxes`; suppressor[i] is a position in that list. Time is linear in the number of boxes, not in the
// number of pairs, unless the limit is small.
void greedy_nms(
    const Box* boxes, const int32_t* order, int64_t count, float limit, Suppressor choice, int32_t* suppressor);

} // namespace atss
