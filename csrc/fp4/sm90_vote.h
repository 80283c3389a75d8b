// A question to all threads of a CTA.
#pragma once

#include "wlib/sm90/sync.h"

namespace wlib::fp4 {

// Whether any thread of the CTA found something; all of them ask.
template <int kWarps>
WLIB_DEVICE bool any_thread(bool found, uint32_t (&votes)[kWarps]) {
  const int warp = sm90::warp_index();
  const uint32_t of_warp = sm90::warp_ballot(found);
  if (sm90::lane_index() == 0) votes[warp] = of_warp;
  sm90::block_sync();
  uint32_t any = 0;
  for (const uint32_t vote : votes) any |= vote;
  return any != 0;
}

}  // namespace wlib::fp4
