// A fiber: a stack of its own that runs until it pauses, and on from there when resumed. For shim.cpp alone.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <new>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#define PPCMI_SHIM_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define PPCMI_SHIM_ASAN 1
#endif
#endif
#ifdef PPCMI_SHIM_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// swapcontext asks the kernel for the signal mask at every switch, some hundred times what the switch itself takes.
#if !defined(__x86_64__) || !defined(__linux__)
#define PPCMI_SHIM_UCONTEXT 1
#endif

#ifdef PPCMI_SHIM_UCONTEXT
#include <ucontext.h>
#else
// Pushes the registers that a call preserves, stores the stack pointer at *save, goes on from the stack `load`.
extern "C" void ppcmi_shim_switch_stack(void** save, void* load);
#endif

namespace ppcmi::shim {

class Fiber {
 public:
  Fiber() {
    // Below the stack a page that nothing may touch: a kernel that needs more stops there instead of writing on.
    guard_ = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    void* memory = mmap(nullptr, guard_ + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<unsigned char*>(memory);
    mprotect(memory_, guard_, PROT_NONE);
  }
  ~Fiber() { munmap(memory_, guard_ + kStackBytes); }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next resume calls `body`, which must not throw. Only for a fiber that never ran or whose body has returned.
  void start(std::function<void()> body) {
    body_ = std::move(body);
#ifdef PPCMI_SHIM_ASAN
    ASAN_UNPOISON_MEMORY_REGION(stack(), kStackBytes);
    own_fake_stack_ = nullptr;
#endif
    prepare();
  }

  // Runs the fiber until it pauses or its body returns.
  void resume() {
    Fiber* const outer = std::exchange(running(), this);
#ifdef PPCMI_SHIM_ASAN
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, stack(), kStackBytes);
#endif
    switch_in();
#ifdef PPCMI_SHIM_ASAN
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
    running() = outer;
  }

  // From within the fiber: back to who resumed it.
  void pause() {
#ifdef PPCMI_SHIM_ASAN
    __sanitizer_start_switch_fiber(&own_fake_stack_, resumer_stack_, resumer_stack_bytes_);
#endif
    switch_out();
    finish_entry();
  }

 private:
  static constexpr std::size_t kStackBytes = 256 << 10;

  static Fiber*& running() {
    static thread_local Fiber* fiber = nullptr;
    return fiber;
  }

  unsigned char* stack() const { return memory_ + guard_; }

  void finish_entry() {
#ifdef PPCMI_SHIM_ASAN
    __sanitizer_finish_switch_fiber(own_fake_stack_, &resumer_stack_, &resumer_stack_bytes_);
#endif
  }

  static void enter() {
    Fiber* const self = running();
    self->finish_entry();
    self->body_();
#ifdef PPCMI_SHIM_ASAN
    __sanitizer_start_switch_fiber(nullptr, self->resumer_stack_, self->resumer_stack_bytes_);
#endif
    self->switch_out();
  }

#ifdef PPCMI_SHIM_UCONTEXT
  void prepare() {
    getcontext(&own_);
    own_.uc_stack.ss_sp = stack();
    own_.uc_stack.ss_size = kStackBytes;
    own_.uc_link = nullptr;
    makecontext(&own_, &Fiber::enter, 0);
  }
  void switch_in() { swapcontext(&resumer_, &own_); }
  void switch_out() { swapcontext(&own_, &resumer_); }

  ucontext_t own_{}, resumer_{};
#else
  void prepare() {
    // As the switch leaves a stack: six registers, then where to return to. Above it a null return address, which ends
    // every unwinding and stands where a call would have put one, so that the frame of `enter` is aligned.
    void** top = reinterpret_cast<void**>(stack() + kStackBytes);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(&Fiber::enter);
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    own_ = top;
  }
  void switch_in() { ppcmi_shim_switch_stack(&resumer_, own_); }
  void switch_out() { ppcmi_shim_switch_stack(&own_, resumer_); }

  void *own_ = nullptr, *resumer_ = nullptr;
#endif

  std::size_t guard_;
  unsigned char* memory_;
  std::function<void()> body_;
#ifdef PPCMI_SHIM_ASAN
  void* own_fake_stack_ = nullptr;
  const void* resumer_stack_ = nullptr;
  std::size_t resumer_stack_bytes_ = 0;
#endif
};

}  // namespace ppcmi::shim
