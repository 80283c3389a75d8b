#include "sim/fiber.h"

#if !defined(__x86_64__)
#error \
    "fiber.cpp has a context switch for x86-64 only; add the callee-saved registers of your ABI here"
#endif

// Saves the callee-saved registers of the System V ABI; ucontext would make a system call, too.
extern "C" void wlib_sim_switch(void** save_sp, void* load_sp);
asm(R"(
.text
.globl wlib_sim_switch
.hidden wlib_sim_switch
.type wlib_sim_switch, @function
wlib_sim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size wlib_sim_switch, .-wlib_sim_switch
)");

namespace wlib::sim {

void Fiber::prepare(void* stack, void (*entry)()) {
  low_ = reinterpret_cast<uintptr_t>(stack);
  // At `entry` the ABI wants rsp = 8 (mod 16), as after a call; a null return ends backtraces.
  auto* top = reinterpret_cast<void**>(low_ + kStackBytes);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  sp_ = top;
}

void Fiber::resume() { wlib_sim_switch(&scheduler_sp_, sp_); }
void Fiber::suspend() { wlib_sim_switch(&sp_, scheduler_sp_); }

}  // namespace wlib::sim
