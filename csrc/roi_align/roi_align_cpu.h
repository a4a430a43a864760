// What the forward and the backward pass on the CPU share.
//
// The channels of a pixel are summed together, 64 bytes at a time. A channels-last map is read as it lies. Of a planar
// one, a task (one image, 16 channels) first turns the pixels that its boxes touch into a small channels-last buffer
// that stays in the cache; where boxes are so few that this would cost more than it saves, they are summed plane by
// plane. The backward pass is the same in mirror image.
#pragma once

#include "common/map.h"
#include "common/rois.h"
#include "common/simd.h"
#include "roi_align/roi_align_args.h"
#include "roi_align/roi_align_plan.h"

namespace d2proj {
namespace roi_align {

using simd::Level;
using simd::Wide;

// A compact buffer is worth its making when boxes read a pixel of it this often, on average.
constexpr double kReadsPerPixel = 0.4;
// Bounds a task's buffer: 64 bytes a pixel, so 128 MB.
constexpr int64_t kMaxPixels = int64_t(1) << 21;
// Fewer multiplications than this are not worth a second thread.
constexpr int64_t kGrain = 262144;

}  // namespace roi_align
}  // namespace d2proj
