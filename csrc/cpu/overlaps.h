// Which box is taken by which better box: the common part of NMS and box voting.
#pragma once
#include <cstdint>

#include "../box_math.h"

namespace atss {

enum class Owner { kAny, kBest };

// Go through boxes from the best to the worst. A box whose IoU with a kept, better one is above the limit belongs to
// that one (to the best of several with Owner::kBest); every other box is kept and belongs to itself. `order` lists
// `count` indices into `boxes`; owner[i] is a position in that list. Time grows with the number of boxes, not of pairs,
// if the limit is not small.
void find_owners(
    const Box* boxes, const int32_t* order, int64_t count, float limit, Owner which, int32_t* owner);

} // namespace atss
