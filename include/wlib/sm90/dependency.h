// Programmatic dependent launch: a kernel may start while the launch before it on the stream still
// runs, and says itself from where on it depends on that one.
//
// Until grid_dependency_wait() returns, the launch before may still write what this one reads and
// read what this one writes. What both leave alone (settled memory: weights, perhaps) may be read
// sooner. Every CTA waits, or this launch could end before the one before it.
#pragma once

#include "wlib/sm90/platform.h"

namespace wlib::sm90 {

#if WLIB_ON_DEVICE

// Until the launches before have finished and all that they wrote is visible to this grid. Passes
// at once in a launch that was not told to start early.
WLIB_DEVICE void grid_dependency_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
// The next launch may start once every CTA has said so or ended. After the wait, so that at most
// two launches overlap: what the next one reads early must be settled for this launch alone.
WLIB_DEVICE void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;"); }

#else

inline void grid_dependency_wait() { sim::dev::grid_dependency_wait(); }
inline void launch_dependents() { sim::dev::launch_dependents(); }

#endif

}  // namespace wlib::sm90
