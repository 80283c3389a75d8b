// A fiber: one simulated CUDA thread with its own stack, switched cooperatively.
#pragma once

#include <cstddef>
#include <cstdint>

namespace wlib::sim {

class Fiber {
 public:
  static constexpr size_t kStackBytes = 64 * 1024;

  // `stack` points at kStackBytes of writable memory. `entry` must never return.
  void prepare(void* stack, void (*entry)());
  void resume();   // scheduler -> fiber; returns when the fiber calls suspend()
  void suspend();  // fiber -> scheduler
  uintptr_t stack_low() const { return low_; }
  bool owns(uintptr_t address) const { return address - low_ < kStackBytes; }

 private:
  void* sp_ = nullptr;
  void* scheduler_sp_ = nullptr;
  uintptr_t low_ = 0;
};

}  // namespace wlib::sim
