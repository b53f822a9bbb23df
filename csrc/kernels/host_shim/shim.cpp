#include "shim.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fiber.h"

__thread uint3 threadIdx{0, 0, 0};
__thread uint3 blockIdx{0, 0, 0};
__thread dim3 blockDim{1, 1, 1};
__thread dim3 gridDim{1, 1, 1};

#ifndef PPCMI_SHIM_UCONTEXT
__asm__(R"(
.text
.globl ppcmi_shim_switch_stack
.hidden ppcmi_shim_switch_stack
.type ppcmi_shim_switch_stack, @function
ppcmi_shim_switch_stack:
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
.size ppcmi_shim_switch_stack, .-ppcmi_shim_switch_stack
)");
#endif

namespace ppcmi::shim {
namespace {

constexpr std::size_t kMaxSharedBytes = 227 << 10;  // the most that a GPU of any compute capability up to 9.0 gives
constexpr unsigned char kPoison = 0xff;             // NaN as float, half and bfloat16, -1 as int

struct Schedule {
  Order order = Order::forward;
  std::uint64_t seed = 0;
};

std::mutex schedule_mutex;
Schedule schedule_of_process;

// Thrown into the fibers of a block that has failed, to unwind them.
struct Abandoned {};

std::string text(const uint3& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

std::string text(const Site& site) {
  const std::string_view file = site.file;
  return std::string(file.substr(file.find_last_of('/') + 1)) + ":" + std::to_string(site.line);
}

std::string text(const Collective& call) {
  if (std::string_view(call.name) == "__syncthreads") return std::string(call.name) + " at " + text(call.site);
  std::ostringstream out;
  out << call.name << " at " << text(call.site) << " with mask 0x" << std::hex << call.mask;
  return out.str();
}

bool same_text(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }

bool same_call(const Collective& a, const Collective& b) {
  return a.mask == b.mask && a.site.line == b.site.line && same_text(a.name, b.name) &&
         same_text(a.site.file, b.site.file);
}

std::size_t volume(const dim3& size) { return std::size_t{size.x} * size.y * size.z; }

uint3 index_in(const dim3& size, std::size_t linear) {
  return {static_cast<unsigned>(linear % size.x), static_cast<unsigned>(linear / size.x % size.y),
          static_cast<unsigned>(linear / size.x / size.y)};
}

// Numbers 0 .. count - 1 in the order in which to run them.
class Sequence {
 public:
  Sequence(std::size_t count, Order order) : items_(count) {
    std::iota(items_.begin(), items_.end(), std::size_t{0});
    if (order == Order::reverse) std::reverse(items_.begin(), items_.end());
  }
  void shuffle(std::mt19937_64& random) {
    for (std::size_t left = items_.size(); left > 1; --left) std::swap(items_[left - 1], items_[random() % left]);
  }
  auto begin() const { return items_.begin(); }
  auto end() const { return items_.end(); }

 private:
  std::vector<std::size_t> items_;
};

enum class State { fresh, active, waiting, exited };

struct Thread {
  uint3 index;
  Fiber* fiber;
  State state = State::fresh;
  Collective call{};  // what a waiting thread waits at; __syncthreads has mask 0
  const std::uint32_t* mine = nullptr;
  std::uint32_t* gathered = nullptr;

  bool waits_at_barrier() const { return state == State::waiting && call.mask == 0; }
  bool waits_at_collective() const { return state == State::waiting && call.mask != 0; }
  bool waits_at(const Collective& other) const { return state == State::waiting && same_call(call, other); }
};

struct Warp {
  std::size_t first, count;
  Sequence lanes;
  unsigned ready;  // a bit a lane that can run
};

// Stacks are mapped once an OS thread and serve every later block.
Fiber* fiber_of_pool(std::size_t number) {
  static thread_local std::vector<std::unique_ptr<Fiber>> pool;
  while (pool.size() <= number) pool.push_back(std::make_unique<Fiber>());
  return pool[number].get();
}

class Block {
 public:
  Block(std::size_t shared_bytes, Order order, std::mt19937_64& random, const std::function<void()>& kernel)
      : order_(order),
        random_(random),
        kernel_(kernel),
        // Of exactly the size asked for, so that a sanitizer sees the first byte beyond.
        shared_(new unsigned char[shared_bytes]),
        warp_order_((volume(blockDim) + kWarpSize - 1) / kWarpSize, order) {
    std::memset(shared_.get(), kPoison, shared_bytes);
    const std::size_t count = volume(blockDim);
    for (std::size_t i = 0; i < count; ++i) threads_.push_back({index_in(blockDim, i), fiber_of_pool(i)});
    for (std::size_t first = 0; first < count; first += kWarpSize) {
      const std::size_t lanes = std::min<std::size_t>(kWarpSize, count - first);
      warps_.push_back({first, lanes, Sequence(lanes, order), kFullMask >> (kWarpSize - lanes)});
    }
    for (Warp& warp : warps_) reorder(warp);
  }

  void run() {
    while (!failure_) {
      if (Thread* next = next_to_run()) {
        resume(*next);
      } else if (count_if([](const Thread& thread) { return thread.state == State::exited; }) == threads_.size()) {
        return;
      } else if (!release_barrier()) {
        failure_ = std::make_exception_ptr(std::runtime_error(describe_standstill()));
      }
    }
    abandon_threads();
    std::rethrow_exception(failure_);
  }

  void* shared_memory() { return shared_.get(); }
  int lane() const { return static_cast<int>(number_of(*current_) % kWarpSize); }

  void barrier(Site site) {
    current_->call = {"__syncthreads", 0, site};
    current_->state = State::waiting;
    pause();
  }

  void exchange(const Collective& call, int words, const std::uint32_t* mine, std::uint32_t* gathered) {
    if ((call.mask >> lane() & 1) == 0) {
      throw std::runtime_error(place() + text(call) + " is called by lane " + std::to_string(lane()) +
                               ", which the mask does not name; the mask has to name every lane that makes the call");
    }
    current_->call = call;
    current_->mine = mine;
    current_->gathered = gathered;
    current_->state = State::waiting;
    Warp& warp = warps_[number_of(*current_) / kWarpSize];
    if (all_arrived(warp, call)) complete(warp, call, words);
    pause();
  }

  std::string place() const {
    return "block " + text(blockIdx) + (current_ ? ", thread " + text(current_->index) : "") + ": ";
  }

 private:
  template <typename Predicate>
  std::size_t count_if(Predicate predicate) const {
    return static_cast<std::size_t>(std::count_if(threads_.begin(), threads_.end(), predicate));
  }

  std::size_t number_of(const Thread& thread) const { return static_cast<std::size_t>(&thread - threads_.data()); }

  // One warp goes as far as it can before the next one starts: so far apart, warps that lack a barrier show it.
  Thread* next_to_run() {
    for (const std::size_t w : warp_order_) {
      if (warps_[w].ready == 0) continue;
      for (const std::size_t lane : warps_[w].lanes) {
        if (warps_[w].ready >> lane & 1) return &threads_[warps_[w].first + lane];
      }
    }
    return nullptr;
  }

  void resume(Thread& thread) {
    const std::size_t number = number_of(thread);
    warps_[number / kWarpSize].ready &= ~(1u << number % kWarpSize);
    if (thread.state == State::fresh) thread.fiber->start([this, &thread] { run_kernel(thread); });
    thread.state = State::active;
    threadIdx = thread.index;
    current_ = &thread;
    thread.fiber->resume();
    current_ = nullptr;
  }

  void run_kernel(Thread& thread) {
    try {
      kernel_();
    } catch (const Abandoned&) {
    } catch (...) {
      failure_ = std::current_exception();
    }
    thread.state = State::exited;
  }

  void pause() {
    current_->fiber->pause();
    if (failure_) throw Abandoned();
  }

  // Unwinds the threads that stand within the kernel, so that what they own is freed.
  void abandon_threads() {
    for (Thread& thread : threads_) {
      if (thread.state == State::active || thread.state == State::waiting) resume(thread);
    }
  }

  void make_ready(Warp& warp, std::size_t lane) {
    threads_[warp.first + lane].state = State::active;
    warp.ready |= 1u << lane;
  }

  void reorder(Warp& warp) {
    if (order_ != Order::shuffled) return;
    warp_order_.shuffle(random_);
    warp.lanes.shuffle(random_);
  }

  bool release_barrier() {
    const Collective& call = threads_.front().call;
    if (count_if([&](const Thread& thread) { return thread.waits_at(call); }) != threads_.size()) return false;
    for (Warp& warp : warps_) {
      for (std::size_t lane = 0; lane < warp.count; ++lane) make_ready(warp, lane);
      reorder(warp);
    }
    return true;
  }

  bool all_arrived(const Warp& warp, const Collective& call) const {
    for (std::size_t lane = 0; lane < kWarpSize; ++lane) {
      if ((call.mask >> lane & 1) == 0) continue;
      if (lane >= warp.count || !threads_[warp.first + lane].waits_at(call)) return false;
    }
    return true;
  }

  // Every lane takes its turn again after it, the last to arrive as well: that gives it no right to go on first.
  void complete(Warp& warp, const Collective& call, int words) {
    const std::size_t bytes = static_cast<std::size_t>(words) * sizeof(std::uint32_t);
    gathered_.assign(kWarpSize * bytes, kPoison);
    const auto for_each_lane = [&](auto action) {
      for (std::size_t lane = 0; lane < kWarpSize; ++lane) {
        if (call.mask >> lane & 1) action(lane, threads_[warp.first + lane]);
      }
    };
    if (words > 0) {
      for_each_lane([&](std::size_t lane, const Thread& thread) {
        std::memcpy(gathered_.data() + lane * bytes, thread.mine, bytes);
      });
      for_each_lane(
          [&](std::size_t, const Thread& thread) { std::memcpy(thread.gathered, gathered_.data(), gathered_.size()); });
    }
    for_each_lane([&](std::size_t lane, const Thread&) { make_ready(warp, lane); });
    reorder(warp);
  }

  // Why no thread can go on: a collective that waits for a lane in vain, or else a divergent barrier.
  std::string describe_standstill() const {
    for (const Thread& thread : threads_) {
      if (thread.waits_at_collective()) return describe_missing_lane(thread);
    }
    const auto waiting = std::find_if(threads_.begin(), threads_.end(), std::mem_fn(&Thread::waits_at_barrier));
    const auto elsewhere = std::find_if(threads_.begin(), threads_.end(),
                                        [&](const Thread& thread) { return !thread.waits_at(waiting->call); });
    const std::size_t arrived = count_if([&](const Thread& thread) { return thread.waits_at(waiting->call); });
    return place() + "divergent barrier: " + std::to_string(arrived) + " of " + std::to_string(threads_.size()) +
           " threads wait at " + text(waiting->call) + ", but " + whereabouts(*elsewhere) +
           "; every thread of a block has to reach the same barrier, so move it out of the condition";
  }

  std::string describe_missing_lane(const Thread& waiting) const {
    const std::size_t first = number_of(waiting) / kWarpSize * kWarpSize;
    std::string missing;
    for (std::size_t lane = 0; lane < kWarpSize && missing.empty(); ++lane) {
      if ((waiting.call.mask >> lane & 1) == 0) continue;
      const std::string name = "lane " + std::to_string(lane);
      if (first + lane >= threads_.size()) {
        missing = name + ", which the block does not have";
      } else if (!threads_[first + lane].waits_at(waiting.call)) {
        missing = name + ": " + whereabouts(threads_[first + lane]);
      }
    }
    return place() + "thread " + text(waiting.index) + " waits at " + text(waiting.call) + " for " + missing +
           "; every lane that a mask names has to make the same call with the same mask, so name only those that do";
  }

  static std::string whereabouts(const Thread& thread) {
    return "thread " + text(thread.index) +
           (thread.state == State::exited ? " has exited" : " waits at " + text(thread.call));
  }

  const Order order_;
  std::mt19937_64& random_;
  const std::function<void()>& kernel_;
  const std::unique_ptr<unsigned char[]> shared_;
  Sequence warp_order_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<unsigned char> gathered_;  // kept to spare an allocation a collective
  Thread* current_ = nullptr;
  std::exception_ptr failure_;
};

thread_local Block* running_block = nullptr;

Block& block_of_caller(const char* what) {
  if (running_block == nullptr) {
    throw std::runtime_error(std::string(what) + " is called outside a kernel; run the kernel through PPCMI_LAUNCH");
  }
  return *running_block;
}

void check_size(const Site& launch, const char* argument, std::size_t value, std::size_t least, std::size_t most) {
  if (value >= least && value <= most) return;
  throw std::runtime_error(std::string(launch.file) + ":" + std::to_string(launch.line) + ": " + argument +
                           ": expected " + std::to_string(least) + " to " + std::to_string(most) + ", got " +
                           std::to_string(value) + "; a GPU refuses such a launch");
}

void check_launch(const Site& launch, const dim3& grid, const dim3& block, std::size_t shared_bytes) {
  check_size(launch, "grid.x", grid.x, 1, 0x7fffffff);
  check_size(launch, "grid.y", grid.y, 1, 65535);
  check_size(launch, "grid.z", grid.z, 1, 65535);
  check_size(launch, "block.x", block.x, 1, 1024);
  check_size(launch, "block.y", block.y, 1, 1024);
  check_size(launch, "block.z", block.z, 1, 64);
  check_size(launch, "threads of a block", volume(block), 1, 1024);
  check_size(launch, "shared_bytes", shared_bytes, 0, kMaxSharedBytes);
}

}  // namespace

void set_order(Order order, std::uint64_t seed) {
  const std::lock_guard<std::mutex> lock(schedule_mutex);
  schedule_of_process = {order, seed};
}

void run_grid(Site launch, dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& kernel) {
  check_launch(launch, grid, block, shared_bytes);
  if (running_block != nullptr) throw std::runtime_error("a kernel launches a kernel, which the shim does not run");
  Schedule schedule;
  {
    const std::lock_guard<std::mutex> lock(schedule_mutex);
    schedule = schedule_of_process;
  }
  std::mt19937_64 random(schedule.seed);
  Sequence blocks(volume(grid), schedule.order);
  if (schedule.order == Order::shuffled) blocks.shuffle(random);
  gridDim = grid;
  blockDim = block;
  for (const std::size_t number : blocks) {
    blockIdx = index_in(grid, number);
    Block running(shared_bytes, schedule.order, random, kernel);
    running_block = &running;
    const std::unique_ptr<Block*, void (*)(Block**)> reset(&running_block, [](Block** block) { *block = nullptr; });
    running.run();
  }
}

void* shared_memory() { return block_of_caller("PPCMI_DYNAMIC_SHARED").shared_memory(); }
int lane_of_caller() { return block_of_caller("a shuffle").lane(); }
void block_barrier(Site site) { block_of_caller("__syncthreads").barrier(site); }

void exchange(const Collective& collective, int words, const std::uint32_t* mine, std::uint32_t* gathered) {
  block_of_caller(collective.name).exchange(collective, words, mine, gathered);
}

void refuse_shuffle(const Collective& collective, const char* argument, int value, const char* expected) {
  throw std::runtime_error(block_of_caller(collective.name).place() + text(collective) + ": " + argument +
                           ": expected " + expected + ", got " + std::to_string(value));
}

}  // namespace ppcmi::shim
