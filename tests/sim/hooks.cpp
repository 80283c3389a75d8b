// The functions that -fsanitize=thread makes the kernel call at every load and store; they stand in
// for that sanitizer's runtime.
#include "sim/machine.h"

static inline void hook(void* p, size_t bytes, bool write, bool aligned, const void* pc) {
  using wlib::sim::machine;
  if (!machine || !machine->self) return;
  machine->enter(pc).access(reinterpret_cast<uintptr_t>(p), bytes, write, aligned);
}

#define WLIB_CALLER __builtin_return_address(0)
// The compiler calls the unaligned variants where the type does not promise alignment to its size.
#define WLIB_HOOK(n)                                                                \
  void __tsan_read##n(void* p) { hook(p, n, false, true, WLIB_CALLER); }            \
  void __tsan_write##n(void* p) { hook(p, n, true, true, WLIB_CALLER); }            \
  void __tsan_unaligned_read##n(void* p) { hook(p, n, false, false, WLIB_CALLER); } \
  void __tsan_unaligned_write##n(void* p) { hook(p, n, true, false, WLIB_CALLER); }

extern "C" {
WLIB_HOOK(1)
WLIB_HOOK(2)
WLIB_HOOK(4)
WLIB_HOOK(8)
WLIB_HOOK(16)
void __tsan_read_range(void* p, unsigned long n) { hook(p, n, false, false, WLIB_CALLER); }
void __tsan_write_range(void* p, unsigned long n) { hook(p, n, true, false, WLIB_CALLER); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
