// A pretended accelerator for the tests: torch's PrivateUse1 backend, in host memory, with the rules of a real one.
//
// Streams are threads that work off a queue; copies from pinned memory are queued there and take the time that a link of
// the chosen speed would take, one at a time per direction; copies from pageable memory make the host wait. Every other
// operator waits for the current stream and then runs torch's own CPU kernel on the same bytes. Device memory has a
// capacity, comes from a caching allocator with the rules of CUDA's, and is full of 0xFF bytes (NaN in every float
// format) when it is new, when it has been freed, and where a copy is on its way. Beside what happens to the bytes,
// an order checker (vector clocks over streams, events and host waits) reports every access to bytes that another stream
// wrote or read without an event between them, whether or not the timing of this run made it visible.
//
// Knows nothing of models, layers or Python. Autograd through it is not looked after. simulated_device.py builds it.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/SDPBackend.h>
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/ops/_local_scalar_dense_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/AllocatorConfig.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <pthread.h>
#include <sys/mman.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_set>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kNumDevices = 2;
constexpr int kNumPoolStreams = 32; // as many as torch.cuda hands out before it starts again with the first
constexpr int kStreamsPerDevice = kNumPoolStreams + 1;
constexpr size_t kPageBytes = 4096;
constexpr size_t kCopyChunkBytes = 256 << 10;
constexpr int kPoison = 0xFF;
constexpr size_t kMaxMessages = 100;

// ------------------------------------------------------------------------------------------------- counters, settings

enum Counter {
  kSynchronousCopies, // host-to-device copies with non_blocking=True that made the host wait nevertheless
  kSynchronousCopyBytes,
  kDeviceSynchronisations, // explicit: of a device or a stream
  kEventSynchronisations,
  kBlockingReads, // copies to the host, .item() and operators whose output size depends on device data
  kHazards,
  kBytesToDevice,
  kBytesToHost,
  kWaitingUploads, // host-to-device copies that the host waited for, whether it asked for that or not
  kNumCounters
};

std::array<std::atomic<int64_t>, kNumCounters> counters;
std::array<std::atomic<int64_t>, kNumDevices> capacity_bytes;
std::atomic<double> copy_bytes_per_second{0}; // 0: as fast as memory
std::atomic<int64_t> registrable_bytes{INT64_MAX};

const std::thread::id loading_thread = std::this_thread::get_id(); // the one that computes: others may wait

void count(Counter counter, int64_t amount = 1) {
  counters[counter] += amount;
}

// ------------------------------------------------------------------------------------------------------ order checker

using LogicalTime = std::vector<uint64_t>; // by stream number

void join(LogicalTime& into, const LogicalTime& other) {
  if (into.size() < other.size()) {
    into.resize(other.size());
  }
  for (size_t i = 0; i < other.size(); ++i) {
    into[i] = std::max(into[i], other[i]);
  }
}

struct Range {
  uintptr_t begin;
  uintptr_t end;
  bool is_write;
};

// All host threads share one logical time: what one of them waited for counts as known to the others, because how they
// talk to each other cannot be seen from here. So it reports too little rather than too much.
class OrderChecker {
 public:
  OrderChecker() : streams_(kNumDevices * kStreamsPerDevice) {}

  void operation(int stream, const char* name, const std::vector<Range>& ranges) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto& time = streams_[stream];
    time.resize(streams_.size());
    join(time, host_);
    ++time[stream];
    const Access access{stream, time[stream], name};
    is_reported_ = false;
    for (const auto& range : ranges) {
      range.is_write ? write(range, access) : read(range, access);
    }
  }

  LogicalTime now(int stream) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto time = streams_[stream];
    join(time, host_);
    return time;
  }

  void stream_waits(int stream, const LogicalTime& event) {
    std::lock_guard<std::mutex> lock(mutex_);
    join(streams_[stream], event);
  }

  void host_waits(const LogicalTime& time) {
    std::lock_guard<std::mutex> lock(mutex_);
    join(host_, time);
  }

  void host_waits_for_device(int device) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (int i = 0; i < kStreamsPerDevice; ++i) {
      join(host_, streams_[device * kStreamsPerDevice + i]);
    }
  }

  void forget(const void* pointer, size_t num_bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto begin = reinterpret_cast<uintptr_t>(pointer);
    erase(begin, begin + num_bytes);
  }

  void report(std::string message) {
    std::lock_guard<std::mutex> lock(mutex_);
    add_message(std::move(message));
  }

  std::string message(size_t index) {
    std::lock_guard<std::mutex> lock(mutex_);
    return index < messages_.size() ? messages_[index] : std::string();
  }

  void clear_messages() {
    std::lock_guard<std::mutex> lock(mutex_);
    messages_.clear();
  }

 private:
  struct Access {
    int stream;
    uint64_t tick;
    const char* name;
  };
  struct Span {
    uintptr_t end;
    Access writer{-1, 0, ""};
    std::vector<Access> readers; // the latest of each stream
  };
  using Spans = std::map<uintptr_t, Span>; // by their first byte

  void read(const Range& range, const Access& access) {
    split(range.begin);
    split(range.end);
    auto at = spans_.lower_bound(range.begin);
    for (auto position = range.begin; position < range.end; position = at->second.end, ++at) {
      if (at == spans_.end() || at->first > position) {
        const auto end = at == spans_.end() ? range.end : std::min(range.end, at->first);
        at = spans_.emplace_hint(at, position, Span{end, {-1, 0, ""}, {}});
      }
      auto& span = at->second;
      check(access, "reads", span.writer, "wrote");
      auto same = std::find_if(span.readers.begin(), span.readers.end(), [&](const Access& reader) {
        return reader.stream == access.stream;
      });
      same == span.readers.end() ? span.readers.push_back(access) : void(*same = access);
    }
  }

  void write(const Range& range, const Access& access) {
    split(range.begin);
    split(range.end);
    for (auto at = spans_.lower_bound(range.begin); at != spans_.end() && at->first < range.end; ++at) {
      check(access, "overwrites", at->second.writer, "wrote");
      for (const auto& reader : at->second.readers) {
        check(access, "overwrites", reader, "reads");
      }
    }
    erase(range.begin, range.end);
    spans_.emplace(range.begin, Span{range.end, access, {}});
  }

  void check(const Access& access, const char* does, const Access& earlier, const char* did) {
    const bool is_first = earlier.stream < 0;
    if (is_reported_ || is_first || streams_[access.stream][earlier.stream] >= earlier.tick) {
      return;
    }
    is_reported_ = true; // one message for one operation
    add_message(c10::str(access.name, " on stream ", access.stream, " ", does, " bytes that ", earlier.name,
                         " on stream ", earlier.stream, " ", did, ", and does not wait for it"));
  }

  void add_message(std::string message) {
    count(kHazards);
    if (messages_.size() < kMaxMessages) {
      messages_.push_back(std::move(message));
    }
  }

  void split(uintptr_t address) {
    auto at = spans_.lower_bound(address);
    if (at == spans_.begin()) {
      return;
    }
    --at;
    if (at->first < address && address < at->second.end) {
      Span tail = at->second;
      at->second.end = address;
      spans_.emplace(address, std::move(tail));
    }
  }

  void erase(uintptr_t begin, uintptr_t end) {
    split(begin);
    split(end);
    spans_.erase(spans_.lower_bound(begin), spans_.lower_bound(end));
  }

  std::mutex mutex_;
  LogicalTime host_;
  std::vector<LogicalTime> streams_;
  Spans spans_;
  bool is_reported_ = false;
  std::vector<std::string> messages_;
};

// Singletons are never destroyed: worker threads and tensors may outlive the static destructors.
OrderChecker& order() {
  static auto* checker = new OrderChecker();
  return *checker;
}

// ------------------------------------------------------------------------------------------------- streams and events

// Storages whose last user was a worker. Destroying one may run Python code, so only host threads do it.
class Graveyard {
 public:
  void bury(std::vector<c10::Storage> storages) {
    if (!storages.empty()) {
      std::lock_guard<std::mutex> lock(mutex_);
      std::move(storages.begin(), storages.end(), std::back_inserter(storages_));
    }
  }

  void clear() {
    std::vector<c10::Storage> dead;
    std::lock_guard<std::mutex> lock(mutex_);
    dead.swap(storages_); // destroyed after the lock, which was constructed later
  }

 private:
  std::mutex mutex_;
  std::vector<c10::Storage> storages_;
};

Graveyard& graveyard() {
  static auto* instance = new Graveyard();
  return *instance;
}

class SimStream {
 public:
  SimStream(int device, int64_t id) : device(device), id(id), number(int(device * kStreamsPerDevice + id)) {}

  // `tell` is called once the work counts as done: whoever hears of it finds the stream as idle as it then is.
  void enqueue(std::function<void()> run, std::vector<c10::Storage> keep = {}, std::function<void()> tell = [] {}) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!is_started_) {
      is_started_ = true;
      std::thread([this] { work(); }).detach();
    }
    queue_.push_back({std::move(run), std::move(keep), std::move(tell)});
    ++num_enqueued_;
    wake_.notify_one();
  }

  // For what takes no time: at once if nothing is queued, which nobody can tell from a device that was quick.
  void run_in_order(std::function<void()> run) {
    is_idle() ? run() : enqueue(std::move(run));
  }

  void tell_in_order(std::function<void()> tell) {
    is_idle() ? tell() : enqueue([] {}, {}, std::move(tell));
  }

  bool is_idle() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return num_done_.load() == num_enqueued_.load();
  }

  void drain() {
    std::unique_lock<std::mutex> lock(mutex_);
    const auto target = num_enqueued_.load();
    done_.wait(lock, [&] { return num_done_.load() >= target; });
  }

  const int device;
  const int64_t id;
  const int number; // unique over all devices

 private:
  struct Operation {
    std::function<void()> run;
    std::vector<c10::Storage> keep;
    std::function<void()> tell;
  };

  void work() {
#ifdef __linux__
    prctl(PR_SET_TIMERSLACK, 1UL); // sleeps end on time, not 50 us later
    pthread_setname_np(pthread_self(), "sim-stream");
#endif
    for (;;) {
      Operation operation;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [this] { return !queue_.empty(); });
        operation = std::move(queue_.front());
        queue_.pop_front();
      }
      operation.run();
      graveyard().bury(std::move(operation.keep));
      std::lock_guard<std::mutex> lock(mutex_);
      ++num_done_;
      operation.tell();
      done_.notify_all();
    }
  }

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  std::deque<Operation> queue_;
  bool is_started_ = false;
  std::atomic<uint64_t> num_enqueued_{0};
  std::atomic<uint64_t> num_done_{0};
};

SimStream& stream_of(int device, int64_t id) {
  static auto* streams = [] {
    auto* made = new std::vector<std::unique_ptr<SimStream>>();
    for (int number = 0; number < kNumDevices * kStreamsPerDevice; ++number) {
      made->push_back(std::make_unique<SimStream>(number / kStreamsPerDevice, number % kStreamsPerDevice));
    }
    return made;
  }();
  TORCH_CHECK(0 <= device && device < kNumDevices, "there is no device sim:", device);
  TORCH_CHECK(0 <= id && id < kStreamsPerDevice, "there is no stream ", id, " on device sim:", device);
  return *(*streams)[device * kStreamsPerDevice + id];
}

thread_local int current_device = 0;
thread_local std::array<int64_t, kNumDevices> current_stream_ids{};

SimStream& current_stream(int device) {
  return stream_of(device, current_stream_ids.at(device));
}

void drain_device(int device) {
  for (int64_t id = 0; id < kStreamsPerDevice; ++id) {
    stream_of(device, id).drain();
  }
  order().host_waits_for_device(device);
  graveyard().clear();
}

// One recording of an event; streams and the host may wait for it while the event itself is recorded again.
class Recording {
 public:
  explicit Recording(LogicalTime logical_time) : logical_time(std::move(logical_time)) {}

  void complete() {
    std::lock_guard<std::mutex> lock(mutex_);
    time_ = Clock::now();
    is_done_ = true;
    done_.notify_all();
  }

  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return is_done_; });
  }

  bool is_done() {
    std::lock_guard<std::mutex> lock(mutex_);
    return is_done_;
  }

  Clock::time_point time() {
    std::lock_guard<std::mutex> lock(mutex_);
    return time_;
  }

  const LogicalTime logical_time;

 private:
  std::mutex mutex_;
  std::condition_variable done_;
  bool is_done_ = false;
  Clock::time_point time_;
};

struct SimEvent {
  std::shared_ptr<Recording> latest;
};

// -------------------------------------------------------------------------------------------------------- copy engines

// One direction of a device's link: copies take it in the order in which they arrive at the head of their streams.
class CopyEngine {
 public:
  void copy(void* to, const void* from, size_t num_bytes) {
    const auto ticket = next_ticket_++;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      turn_.wait(lock, [&] { return serving_ == ticket; });
    }
    const auto start = Clock::now();
    const double speed = copy_bytes_per_second.load();
    std::memset(to, kPoison, num_bytes);
    for (size_t done = 0; done < num_bytes;) {
      const auto chunk = std::min(kCopyChunkBytes, num_bytes - done);
      if (speed > 0) { // no byte is there before its time
        const std::chrono::duration<double> seconds(static_cast<double>(done + chunk) / speed);
        std::this_thread::sleep_until(start + std::chrono::duration_cast<Clock::duration>(seconds));
      }
      std::memcpy(static_cast<char*>(to) + done, static_cast<const char*>(from) + done, chunk);
      done += chunk;
    }
    std::lock_guard<std::mutex> lock(mutex_);
    ++serving_;
    turn_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable turn_;
  std::atomic<uint64_t> next_ticket_{0};
  uint64_t serving_ = 0;
};

CopyEngine& copy_engine(int device, bool is_to_device) {
  static auto* engines = new std::array<CopyEngine, 2 * kNumDevices>();
  return (*engines)[2 * device + (is_to_device ? 1 : 0)];
}

// ------------------------------------------------------------------------------------------------------- device memory

size_t round_up(size_t num_bytes, size_t unit) {
  return (num_bytes + unit - 1) / unit * unit;
}

void* map_pages(size_t num_bytes) {
  void* pointer = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  TORCH_CHECK(pointer != MAP_FAILED, "the host has no ", num_bytes, " bytes for the simulated device");
  return pointer;
}

// The rules of c10/cuda/CUDACachingAllocator.cpp without its options, with torch's own constants: sizes are rounded to 512
// bytes; up to 1 MiB they are cut from segments of 2 MiB, up to 10 MiB from segments of 20 MiB, and what is larger gets a
// segment of its own, rounded to 2 MiB. The smallest free block that is large enough is taken and what is left over cut
// off, in large segments only if more than 1 MiB is. Free neighbours are merged; a segment goes back when all of it is free.
using c10::CachingAllocator::kMinBlockSize;
using c10::CachingAllocator::kMinLargeAlloc;
using c10::CachingAllocator::kRoundLarge;
using c10::CachingAllocator::kSmallBuffer;
using c10::CachingAllocator::kSmallSize;
constexpr size_t kLargeBuffer = 20 << 20; // AcceleratorAllocatorConfig::large_segment_size() unless set otherwise

std::atomic<bool> has_exact_segments{false}; // each block is then a segment of its own, for checks in little memory

// A part of a segment, which belongs to one stream.
struct Block {
  char* pointer;
  size_t num_bytes;
  size_t num_requested_bytes;
  bool is_small; // cut from segments for small sizes
  SimStream* stream; // the one it was allocated on, whose later work may reuse it
  Block* previous; // its neighbours in the segment, none at the ends
  Block* next;
  bool is_free;
  std::vector<SimStream*> other_users; // streams named by record_stream
  std::atomic<int> num_pending_users{0};
};

using DeviceStats = c10::CachingDeviceAllocator::DeviceStats;

void free_block(void* block);
void free_nothing(void*) {}

class DeviceMemory final : public c10::DeviceAllocator {
 public:
  c10::DataPtr allocate(size_t num_bytes) override {
    const c10::Device device(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(current_device));
    if (num_bytes == 0) {
      return {nullptr, nullptr, &free_nothing, device};
    }
    graveyard().clear();
    auto& stream = current_stream(current_device);
    Block* block = take(stream, num_bytes);
    if (block == nullptr) { // as a real one: give back what is cached, which waits for the device, and try again
      release_cached(stream.device, true);
      block = take(stream, num_bytes);
    }
    if (block == nullptr) {
      fail(stream.device, num_bytes);
    }
    return {block->pointer, block, &free_block, device};
  }

  c10::DeleterFnPtr raw_deleter() const override {
    return nullptr;
  }

  void copy_data(void* to, const void* from, size_t num_bytes) const override {
    default_copy_data(to, from, num_bytes);
  }

  bool initialized() override {
    return true;
  }

  void emptyCache(c10::MempoolId_t) override {
    for (int device = 0; device < kNumDevices; ++device) {
      release_cached(device);
    }
  }

  void recordStream(const c10::DataPtr& pointer, c10::Stream stream) override {
    if (pointer.get_deleter() != &free_block) {
      return;
    }
    auto* block = static_cast<Block*>(pointer.get_context());
    auto* user = &stream_of(stream.device_index(), stream.id());
    std::lock_guard<std::mutex> lock(mutex_);
    auto& users = block->other_users;
    if (user != block->stream && std::find(users.begin(), users.end(), user) == users.end()) {
      users.push_back(user);
    }
  }

  DeviceStats getDeviceStats(c10::DeviceIndex device) override {
    graveyard().clear();
    std::lock_guard<std::mutex> lock(mutex_);
    return stats_.at(device);
  }

  void resetAccumulatedStats(c10::DeviceIndex device) override {
    std::lock_guard<std::mutex> lock(mutex_);
    auto& stats = stats_.at(device);
    for (auto* stat : all_of(stats)) {
      (*stat)[0].reset_accumulated();
    }
    stats.num_alloc_retries = stats.num_ooms = stats.num_device_alloc = stats.num_device_free = 0;
  }

  void resetPeakStats(c10::DeviceIndex device) override {
    std::lock_guard<std::mutex> lock(mutex_);
    auto& stats = stats_.at(device);
    for (auto* stat : all_of(stats)) {
      (*stat)[0].reset_peak();
    }
  }

  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex device) override {
    graveyard().clear();
    std::lock_guard<std::mutex> lock(mutex_);
    const int64_t capacity = capacity_bytes.at(device);
    const int64_t reserved = stats_.at(device).reserved_bytes[0].current;
    return {static_cast<size_t>(std::max<int64_t>(0, capacity - reserved)), static_cast<size_t>(capacity)};
  }

  void free(Block* block) {
    std::vector<SimStream*> users;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      auto& stats = stats_[block->stream->device];
      stats.allocation[0].decrease(1);
      stats.allocated_bytes[0].decrease(block->num_bytes);
      stats.requested_bytes[0].decrease(block->num_requested_bytes);
      users.swap(block->other_users);
    }
    if (users.empty()) {
      recycle(block);
      return;
    }
    block->num_pending_users = static_cast<int>(users.size());
    for (auto* user : users) {
      user->run_in_order([this, block] {
        if (--block->num_pending_users == 0) {
          order().forget(block->pointer, block->num_bytes); // whoever gets it next is ordered after all of them
          recycle(block);
        }
      });
    }
  }

  int64_t num_allocations(size_t at_least_bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    int64_t total = 0;
    for (auto at = num_by_size_.lower_bound(at_least_bytes); at != num_by_size_.end(); ++at) {
      total += at->second;
    }
    return total;
  }

  void reset_allocations() {
    std::lock_guard<std::mutex> lock(mutex_);
    num_by_size_.clear();
  }

 private:
  using FreeBlocks = std::map<std::pair<size_t, char*>, Block*>; // the smallest first

  static std::array<c10::CachingAllocator::StatArray*, 5> all_of(DeviceStats& stats) {
    return {&stats.allocation, &stats.segment, &stats.allocated_bytes, &stats.reserved_bytes, &stats.requested_bytes};
  }

  static size_t segment_bytes(size_t wanted) {
    if (has_exact_segments) {
      return wanted;
    }
    return wanted <= kSmallSize ? kSmallBuffer : wanted < kMinLargeAlloc ? kLargeBuffer : round_up(wanted, kRoundLarge);
  }

  // A free block of this stream, or one of a new segment; nullptr if the capacity does not allow it.
  Block* take(SimStream& stream, size_t num_bytes) {
    const auto wanted = round_up(num_bytes, kMinBlockSize);
    const bool is_small = wanted <= kSmallSize;
    std::lock_guard<std::mutex> lock(mutex_);
    auto& stats = stats_[stream.device];
    auto& free = free_of(stream, is_small);
    Block* block = nullptr;
    const auto at = free.lower_bound({wanted, nullptr});
    if (at != free.end() && (!has_exact_segments || at->first.first == wanted)) {
      block = at->second;
      free.erase(at);
    } else {
      const auto size = segment_bytes(wanted);
      if (stats.reserved_bytes[0].current + static_cast<int64_t>(size) > capacity_bytes[stream.device]) {
        return nullptr;
      }
      block = new Block{static_cast<char*>(map_pages(size)), size, 0, is_small, &stream, nullptr, nullptr, true, {}};
      std::memset(block->pointer, kPoison, size);
      stats.segment[0].increase(1);
      stats.reserved_bytes[0].increase(size);
      ++stats.num_device_alloc;
    }
    const auto left = block->num_bytes - wanted;
    if (is_small ? left >= kMinBlockSize : left > kSmallSize) {
      cut(block, wanted);
    }
    block->is_free = false;
    block->num_requested_bytes = num_bytes;
    stats.allocation[0].increase(1);
    stats.allocated_bytes[0].increase(block->num_bytes);
    stats.requested_bytes[0].increase(num_bytes);
    ++num_by_size_[wanted];
    return block;
  }

  FreeBlocks& free_of(const SimStream& stream, bool is_small) {
    return free_[2 * stream.number + (is_small ? 1 : 0)];
  }

  // Leaves the first bytes to the block; what is behind them becomes a free one.
  void cut(Block* block, size_t num_bytes) {
    auto* rest = new Block{block->pointer + num_bytes, block->num_bytes - num_bytes, 0, block->is_small, block->stream,
                           block, block->next, true, {}};
    if (rest->next != nullptr) {
      rest->next->previous = rest;
    }
    block->next = rest;
    block->num_bytes = num_bytes;
    free_of(*rest->stream, rest->is_small).emplace(std::pair{rest->num_bytes, rest->pointer}, rest);
  }

  // Joins a block with the free one behind it.
  void join(Block* block, Block* behind) {
    block->num_bytes += behind->num_bytes;
    block->next = behind->next;
    if (block->next != nullptr) {
      block->next->previous = block;
    }
    delete behind;
  }

  // Spoils the bytes in the order of the block's own stream and lets that stream have it again.
  void recycle(Block* block) {
    block->stream->run_in_order([pointer = block->pointer, num_bytes = block->num_bytes] {
      std::memset(pointer, kPoison, num_bytes);
    });
    std::lock_guard<std::mutex> lock(mutex_);
    auto& free = free_of(*block->stream, block->is_small);
    if (auto* behind = block->next; behind != nullptr && behind->is_free) {
      free.erase({behind->num_bytes, behind->pointer});
      join(block, behind);
    }
    if (auto* before = block->previous; before != nullptr && before->is_free) {
      free.erase({before->num_bytes, before->pointer});
      join(before, block);
      block = before;
    }
    block->is_free = true;
    free.emplace(std::pair{block->num_bytes, block->pointer}, block);
  }

  void release_cached(int device, bool is_retry = false) {
    drain_device(device);
    drain_device(device); // the first time may have let blocks go that other streams used, and they are spoilt in order
    std::lock_guard<std::mutex> lock(mutex_);
    auto& stats = stats_[device];
    ++stats.num_sync_all_streams;
    stats.num_alloc_retries += is_retry;
    for (int64_t id = 0; id < kStreamsPerDevice; ++id) {
      auto& stream = stream_of(device, id);
      if (!stream.is_idle()) { // another thread is at work there, and a block may still have to be spoilt
        continue;
      }
      for (const bool is_small : {false, true}) {
        auto& free = free_of(stream, is_small);
        for (auto at = free.begin(); at != free.end();) {
          auto* block = at->second;
          if (block->previous != nullptr || block->next != nullptr) { // the rest of its segment is in use
            ++at;
            continue;
          }
          order().forget(block->pointer, block->num_bytes);
          munmap(block->pointer, round_up(block->num_bytes, kPageBytes));
          stats.segment[0].decrease(1);
          stats.reserved_bytes[0].decrease(block->num_bytes);
          ++stats.num_device_free;
          delete block;
          at = free.erase(at);
        }
      }
    }
  }

  [[noreturn]] void fail(int device, size_t num_bytes) {
    const auto [free, total] = getMemoryInfo(static_cast<c10::DeviceIndex>(device));
    std::unique_lock<std::mutex> lock(mutex_);
    auto& stats = stats_[device];
    ++stats.num_ooms;
    const auto allocated = stats.allocated_bytes[0].current;
    lock.unlock();
    TORCH_CHECK_WITH(OutOfMemoryError, false, "sim out of memory. Tried to allocate ", num_bytes, " bytes. Device sim:",
                     device, " has a total capacity of ", total, " bytes of which ", free, " bytes are free; ",
                     allocated, " bytes are allocated.");
  }

  std::mutex mutex_;
  std::array<DeviceStats, kNumDevices> stats_{};
  std::array<FreeBlocks, 2 * kNumDevices * kStreamsPerDevice> free_; // by stream, large and small
  std::map<size_t, int64_t> num_by_size_;
};

DeviceMemory& device_memory() {
  static auto* memory = new DeviceMemory();
  return *memory;
}

void free_block(void* block) {
  device_memory().free(static_cast<Block*>(block));
}

// ------------------------------------------------------------------------------------------------- pinned host memory

enum RegisterCode { kSuccess = 0, kInvalidValue = 1, kOutOfMemory = 2, kAlreadyRegistered = 712, kNotRegistered = 713 };

// Which host bytes the device may read by itself: torch's own pinned memory and foreign memory that was registered.
// The codes are CUDA's. A range that runs over two registrations counts as pageable: whether a driver takes it is open.
class PinnedRanges {
 public:
  RegisterCode add(const void* pointer, size_t num_bytes) {
    const auto begin = reinterpret_cast<uintptr_t>(pointer);
    std::lock_guard<std::mutex> lock(mutex_);
    if (pointer == nullptr || num_bytes == 0) {
      return kInvalidValue;
    }
    auto next = ranges_.lower_bound(begin);
    const bool meets_next = next != ranges_.end() && next->first < begin + num_bytes;
    const bool meets_previous = next != ranges_.begin() && std::prev(next)->second > begin;
    if (meets_next || meets_previous) {
      return kAlreadyRegistered;
    }
    if (static_cast<int64_t>(num_bytes) > registrable_bytes - total_bytes_) {
      return kOutOfMemory;
    }
    ranges_.emplace(begin, begin + num_bytes);
    total_bytes_ += static_cast<int64_t>(num_bytes);
    return kSuccess;
  }

  RegisterCode remove(const void* pointer) {
    const auto begin = reinterpret_cast<uintptr_t>(pointer);
    std::lock_guard<std::mutex> lock(mutex_);
    auto at = ranges_.find(begin);
    if (at == ranges_.end()) {
      return kNotRegistered;
    }
    for (const auto& [copy_begin, copy_end] : in_flight_) {
      if (copy_begin < at->second && begin < copy_end) {
        order().report("host memory was unregistered while a copy from or to it was on its way");
        break;
      }
    }
    order().forget(pointer, at->second - begin);
    total_bytes_ -= static_cast<int64_t>(at->second - begin);
    ranges_.erase(at);
    return kSuccess;
  }

  bool holds(const void* pointer, size_t num_bytes) {
    const auto begin = reinterpret_cast<uintptr_t>(pointer);
    std::lock_guard<std::mutex> lock(mutex_);
    auto next = ranges_.upper_bound(begin);
    return next != ranges_.begin() && begin + num_bytes <= std::prev(next)->second && begin < std::prev(next)->second;
  }

  void copy_begins(const void* pointer, size_t num_bytes) {
    const auto begin = reinterpret_cast<uintptr_t>(pointer);
    std::lock_guard<std::mutex> lock(mutex_);
    in_flight_.emplace(begin, begin + num_bytes);
  }

  void copy_ends(const void* pointer, size_t num_bytes) {
    const auto begin = reinterpret_cast<uintptr_t>(pointer);
    std::lock_guard<std::mutex> lock(mutex_);
    auto [at, last] = in_flight_.equal_range(begin);
    while (at != last && at->second != begin + num_bytes) {
      ++at;
    }
    if (at != last) {
      in_flight_.erase(at);
    }
  }

  int64_t total_bytes() {
    std::lock_guard<std::mutex> lock(mutex_);
    return total_bytes_;
  }

 private:
  std::mutex mutex_;
  std::map<uintptr_t, uintptr_t> ranges_; // begin -> end
  std::multimap<uintptr_t, uintptr_t> in_flight_;
  int64_t total_bytes_ = 0;
};

PinnedRanges& pinned_ranges() {
  static auto* ranges = new PinnedRanges();
  return *ranges;
}

struct PinnedBlock {
  void* pointer;
  size_t num_bytes;
};

void free_pinned(void* context) {
  auto* block = static_cast<PinnedBlock*>(context);
  pinned_ranges().remove(block->pointer);
  munmap(block->pointer, block->num_bytes);
  delete block;
}

// Exact sizes and no cache, unlike torch.cuda's; queued copies hold their storages, so freeing needs no events.
class PinnedMemory final : public at::HostAllocator {
 public:
  c10::DataPtr allocate(size_t num_bytes) override {
    if (num_bytes == 0) {
      return {nullptr, nullptr, &free_nothing, c10::Device(c10::DeviceType::CPU)};
    }
    const auto mapped = round_up(num_bytes, kPageBytes);
    void* pointer = map_pages(mapped);
    if (const auto code = pinned_ranges().add(pointer, mapped); code != kSuccess) {
      munmap(pointer, mapped);
      TORCH_CHECK(false, "sim error ", int(code), ": cannot pin ", num_bytes, " bytes of host memory");
    }
    return {pointer, new PinnedBlock{pointer, mapped}, &free_pinned, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override {
    return nullptr;
  }

  void copy_data(void* to, const void* from, size_t num_bytes) const override {
    default_copy_data(to, from, num_bytes);
  }

  bool record_event(void*, void*, c10::Stream) override {
    return true;
  }

  void empty_cache() override {
    graveyard().clear();
  }

  at::HostStats get_stats() override {
    return {};
  }

  void reset_accumulated_stats() override {}
  void reset_peak_stats() override {}
};

PinnedMemory& pinned_memory() {
  static auto* memory = new PinnedMemory();
  return *memory;
}

// ----------------------------------------------------------------------------------------- what torch asks of a device

int checked_device(c10::DeviceIndex index) {
  const int device = index < 0 ? current_device : index;
  TORCH_CHECK(device < kNumDevices, "there is no device sim:", device, ", only ", kNumDevices, " of them");
  return device;
}

c10::Device sim_device(int index) {
  return c10::Device(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(index));
}

struct SimGuard final : public c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override {
    return c10::DeviceType::PrivateUse1;
  }
  c10::Device exchangeDevice(c10::Device device) const override {
    const auto previous = getDevice();
    setDevice(device);
    return previous;
  }
  c10::Device getDevice() const override {
    return sim_device(current_device);
  }
  void setDevice(c10::Device device) const override {
    current_device = checked_device(device.index());
  }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (0 <= device.index() && device.index() < kNumDevices) {
      current_device = device.index();
    }
  }
  c10::Stream getStream(c10::Device device) const override {
    return as_stream(current_stream(checked_device(device.index())));
  }
  c10::Stream getDefaultStream(c10::Device device) const override {
    return as_stream(stream_of(checked_device(device.index()), 0));
  }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override {
    return getNewStream(device, 0);
  }
  c10::Stream getNewStream(c10::Device device, int) const override {
    static std::array<std::atomic<uint64_t>, kNumDevices> num_made{};
    const int index = checked_device(device.index());
    return as_stream(stream_of(index, 1 + int64_t(num_made[index]++ % kNumPoolStreams)));
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    const auto previous = getStream(stream.device());
    current_stream_ids.at(stream.device_index()) = stream.id();
    return previous;
  }
  void* getStreamNativeHandle(const c10::Stream stream) const override {
    return &of(stream);
  }
  void destroyEvent(void* event, c10::DeviceIndex) const noexcept override {
    delete static_cast<SimEvent*>(event);
  }
  void record(void** event, const c10::Stream& stream, c10::DeviceIndex, c10::EventFlag) const override {
    if (*event == nullptr) {
      *event = new SimEvent();
    }
    auto& on = of(stream);
    auto recording = std::make_shared<Recording>(order().now(on.number));
    static_cast<SimEvent*>(*event)->latest = recording;
    on.tell_in_order([recording] { recording->complete(); });
  }
  void block(void* event, const c10::Stream& stream) const override {
    auto recording = static_cast<SimEvent*>(event)->latest;
    auto& on = of(stream);
    order().stream_waits(on.number, recording->logical_time);
    if (!recording->is_done()) {
      on.enqueue([recording] { recording->wait(); });
    }
  }
  bool queryEvent(void* event) const override {
    auto& recording = *static_cast<SimEvent*>(event)->latest;
    if (!recording.is_done()) {
      return false;
    }
    order().host_waits(recording.logical_time);
    return true;
  }
  void synchronizeEvent(void* event) const override {
    count(kEventSynchronisations, std::this_thread::get_id() == loading_thread);
    auto recording = static_cast<SimEvent*>(event)->latest;
    recording->wait();
    order().host_waits(recording->logical_time);
    graveyard().clear();
  }
  double elapsedTime(void* first, void* second, c10::DeviceIndex) const override {
    const auto begin = static_cast<SimEvent*>(first)->latest->time();
    const auto end = static_cast<SimEvent*>(second)->latest->time();
    return std::chrono::duration<double, std::milli>(end - begin).count();
  }
  c10::DeviceIndex deviceCount() const noexcept override {
    return kNumDevices;
  }
  c10::DeviceCapability getDeviceCapability(c10::Device) const override {
    return {};
  }
  bool queryStream(const c10::Stream& stream) const override {
    auto& on = of(stream);
    const auto now = order().now(on.number);
    if (!on.is_idle()) {
      return false;
    }
    order().host_waits(now);
    return true;
  }
  void synchronizeStream(const c10::Stream& stream) const override {
    count(kDeviceSynchronisations);
    auto& on = of(stream);
    on.drain();
    order().host_waits(order().now(on.number));
    graveyard().clear();
  }
  void synchronizeDevice(c10::DeviceIndex device) const override {
    count(kDeviceSynchronisations);
    drain_device(checked_device(device));
  }
  void recordDataPtrOnStream(const c10::DataPtr& pointer, const c10::Stream& stream) const override {
    device_memory().recordStream(pointer, stream);
  }

 private:
  static c10::Stream as_stream(const SimStream& stream) {
    return c10::Stream(c10::Stream::UNSAFE, sim_device(stream.device), stream.id);
  }
  static SimStream& of(const c10::Stream& stream) {
    return stream_of(stream.device_index(), stream.id());
  }
};

// A generator of the device that draws with a CPU generator inside, which is the one that CPU kernels get.
class SimGenerator final : public c10::GeneratorImpl {
 public:
  SimGenerator(int device, at::Generator inner)
      : GeneratorImpl(sim_device(device), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)), inner(std::move(inner)) {}

  void set_current_seed(uint64_t seed) override {
    inner.set_current_seed(seed);
  }
  void set_offset(uint64_t offset) override {
    inner.set_offset(offset);
  }
  uint64_t get_offset() const override {
    return inner.get_offset();
  }
  uint64_t current_seed() const override {
    return inner.current_seed();
  }
  uint64_t seed() override {
    return inner.seed();
  }
  void set_state(const c10::TensorImpl& state) override {
    inner.unsafeGetGeneratorImpl()->set_state(state);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return inner.unsafeGetGeneratorImpl()->get_state();
  }

  at::Generator inner;

 private:
  SimGenerator* clone_impl() const override {
    return new SimGenerator(device().index(), inner.clone());
  }
};

at::Generator new_generator(int device) {
  return at::make_generator<SimGenerator>(device, at::detail::createCPUGenerator());
}

const at::Generator& default_generator(int device) {
  static auto* generators = new std::array<at::Generator, kNumDevices>{new_generator(0), new_generator(1)};
  return generators->at(device);
}

at::Generator inner_of(const at::Generator& generator) {
  return static_cast<SimGenerator*>(generator.unsafeGetGeneratorImpl())->inner;
}

struct SimHooks final : public at::PrivateUse1HooksInterface {
  void init() const override {}
  bool isBuilt() const override {
    return true;
  }
  bool isAvailable() const override {
    return true;
  }
  bool hasPrimaryContext(c10::DeviceIndex) const override {
    return true;
  }
  c10::DeviceIndex deviceCount() const override {
    return kNumDevices;
  }
  void setCurrentDevice(c10::DeviceIndex device) const override {
    current_device = checked_device(device);
  }
  c10::DeviceIndex getCurrentDevice() const override {
    return static_cast<c10::DeviceIndex>(current_device);
  }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex device) const override {
    const auto previous = getCurrentDevice();
    setCurrentDevice(device);
    return previous;
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex device) const override {
    return exchangeDevice(device);
  }
  bool isPinnedPtr(const void* pointer) const override {
    return pinned_ranges().holds(pointer, 1);
  }
  c10::Allocator* getPinnedMemoryAllocator() const override {
    return &pinned_memory();
  }
  c10::Device getDeviceFromPtr(void*) const override {
    return sim_device(current_device);
  }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex device) const override {
    return default_generator(checked_device(device));
  }
  at::Generator getNewGenerator(c10::DeviceIndex device) const override {
    return new_generator(checked_device(device));
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t num_bytes) const override {
    auto* impl = storage.unsafeGetStorageImpl();
    const c10::DeviceGuard guard(impl->device());
    auto& stream = current_stream(impl->device().index());
    stream.drain();
    auto resized = device_memory().allocate(num_bytes);
    if (const auto kept = std::min(num_bytes, impl->nbytes()); kept > 0) {
      std::memcpy(resized.get(), impl->data(), kept);
    }
    impl->set_data_ptr(std::move(resized));
    impl->set_nbytes(num_bytes);
  }
};

// --------------------------------------------------------------------------------------- tensors as the CPU sees them

bool is_sim(const at::Tensor& tensor) {
  return tensor.defined() && tensor.is_privateuseone();
}

size_t span_bytes(const at::Tensor& tensor) {
  return at::detail::computeStorageNbytes(tensor.sizes(), tensor.strides(), tensor.itemsize());
}

Range range_of(const at::Tensor& tensor, bool is_write) {
  const auto begin = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  return {begin, begin + span_bytes(tensor), is_write};
}

// CPU tensors over the bytes of device tensors. Tensors that share a storage share its CPU twin too, so that a kernel
// sees which of its arguments overlap; a twin that the kernel made larger is brought back by `write_back`.
class CpuTwins {
 public:
  at::Tensor of(const at::Tensor& tensor) {
    auto twin = at::detail::make_tensor<c10::TensorImpl>(
        storage_of(tensor.storage()), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
    auto* impl = twin.unsafeGetTensorImpl();
    impl->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
    if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) {
      impl->set_wrapped_number(true);
    }
    pairs_.push_back({tensor, twin});
    return twin;
  }

  // The device tensor whose twin `result` is, a view of one, or a copy of what the kernel made.
  at::Tensor to_device(const at::Tensor& result) const {
    for (const auto& [tensor, twin] : pairs_) {
      if (result.is_same(twin)) {
        return tensor;
      }
    }
    for (const auto& [tensor, twin] : pairs_) {
      if (result.is_alias_of(twin)) {
        auto view = at::detail::make_tensor<c10::TensorImpl>(
            c10::TensorImpl::VIEW, c10::Storage(tensor.storage()), tensor.key_set(), result.dtype());
        view.unsafeGetTensorImpl()->set_sizes_and_strides(result.sizes(), result.strides(), result.storage_offset());
        return view;
      }
    }
    at::Tensor made = at::detail::empty_strided_generic(
        result.sizes(), result.strides(), &device_memory(), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
        result.scalar_type());
    if (const auto num_bytes = span_bytes(result); num_bytes > 0) {
      std::memcpy(made.mutable_data_ptr(), result.const_data_ptr(), num_bytes);
    }
    return made;
  }

  void write_back() const {
    for (const auto& [tensor, twin] : pairs_) {
      const bool has_moved = twin.storage().data() != tensor.storage().data();
      if (has_moved || twin.sizes() != tensor.sizes() || twin.strides() != tensor.strides()) {
        at::native::resize_(tensor, twin.sizes(), std::nullopt);
        tensor.unsafeGetTensorImpl()->set_sizes_and_strides(twin.sizes(), twin.strides(), tensor.storage_offset());
        if (has_moved && twin.numel() > 0) {
          std::memcpy(tensor.mutable_data_ptr(), twin.const_data_ptr(), span_bytes(twin));
        }
      }
    }
  }

 private:
  c10::Storage storage_of(const c10::Storage& storage) {
    for (const auto& [known, twin] : storages_) {
      if (known == storage.unsafeGetStorageImpl()) {
        return twin;
      }
    }
    auto* data = const_cast<void*>(storage.data());
    c10::DataPtr borrowed(data, data, &free_nothing, c10::Device(c10::DeviceType::CPU));
    c10::Storage twin(c10::make_intrusive<c10::StorageImpl>(
        c10::StorageImpl::use_byte_size_t(), storage.nbytes(), std::move(borrowed), c10::GetCPUAllocator(), true));
    storages_.emplace_back(storage.unsafeGetStorageImpl(), twin);
    return twin;
  }

  std::vector<std::pair<at::Tensor, at::Tensor>> pairs_;
  std::vector<std::pair<c10::StorageImpl*, c10::Storage>> storages_;
};

// ----------------------------------------------------------------------------------------------- every other operator

bool is_indexing(const std::string& name) {
  static const std::unordered_set<std::string> names{
      "aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"};
  return names.count(name) > 0;
}

bool is_mask(const at::Tensor& tensor) {
  return tensor.defined() && (tensor.scalar_type() == at::kBool || tensor.scalar_type() == at::kByte);
}

// Operators whose result's size depends on device data, for which a real device makes the host wait.
bool waits_for_device(const std::string& name, bool has_mask) {
  static const std::unordered_set<std::string> names{
      "aten::equal", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim",
      "aten::unique_consecutive", "aten::repeat_interleave"};
  return names.count(name) > 0 || (has_mask && name != "aten::index" && is_indexing(name)); // index calls nonzero first
}

class OperatorCall {
 public:
  OperatorCall(const c10::OperatorHandle& op, torch::jit::Stack* stack) : schema_(op.schema()), stack_(stack) {
    const auto& arguments = schema_.arguments();
    first_ = stack->size() - arguments.size();
    for (size_t i = 0; i < arguments.size(); ++i) {
      const bool is_write = arguments[i].alias_info() != nullptr && arguments[i].alias_info()->isWrite();
      inspect((*stack)[first_ + i], is_write);
    }
    TORCH_CHECK(device_ >= 0, schema_.name(), " was sent to the simulated device without anything that lies on it");
  }

  void run(const c10::OperatorHandle& op) {
    const c10::DeviceGuard guard(sim_device(device_));
    auto& stream = current_stream(device_);
    stream.drain();
    graveyard().clear();
    order().operation(stream.number, schema_.name().c_str(), ranges_);
    for (size_t i = 0; i < schema_.arguments().size(); ++i) {
      auto& value = (*stack_)[first_ + i];
      value = to_cpu(value, schema_.arguments()[i]);
    }
    {
      const at::AutoDispatchBelowADInplaceOrView below_autograd;
      op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack_);
    }
    twins_.write_back();
    for (size_t i = first_; i < stack_->size(); ++i) {
      (*stack_)[i] = to_device((*stack_)[i]);
    }
    if (waits_for_device(schema_.name(), has_mask_)) {
      count(kBlockingReads);
      order().host_waits(order().now(stream.number));
    }
  }

 private:
  void inspect(const c10::IValue& value, bool is_write) {
    if (value.isTensor()) {
      inspect_tensor(value.toTensor(), is_write);
    } else if (value.isDevice()) {
      if (const auto device = value.toDevice(); device.is_privateuseone()) {
        meet(checked_device(device.index()));
      }
    } else if (value.isList()) {
      for (const auto& element : value.toListRef()) {
        if (element.isTensor()) {
          inspect_tensor(element.toTensor(), is_write);
          has_mask_ = has_mask_ || is_mask(element.toTensor());
        }
      }
    }
  }

  void inspect_tensor(const at::Tensor& tensor, bool is_write) {
    if (!tensor.defined()) {
      return;
    }
    if (!tensor.is_privateuseone()) {
      TORCH_CHECK((tensor.dim() == 0 && !is_write) || is_indexing(schema_.name()),
                  "Expected all tensors to be on the same device, but ", schema_.name(),
                  " found one on the simulated device and one of shape ", tensor.sizes(), " on ", tensor.device());
      return;
    }
    meet(tensor.device().index());
    if (tensor.numel() > 0) {
      ranges_.push_back(range_of(tensor, is_write));
    }
  }

  void meet(int device) {
    TORCH_CHECK(device_ < 0 || device_ == device, "Expected all tensors to be on the same device, but ", schema_.name(),
                " found sim:", device_, " and sim:", device);
    device_ = device;
  }

  c10::IValue to_cpu(const c10::IValue& value, const c10::Argument& argument) {
    if (value.isTensor()) {
      return is_sim(value.toTensor()) ? twins_.of(value.toTensor()) : value;
    }
    if (value.isDevice()) {
      return value.toDevice().is_privateuseone() ? c10::Device(c10::DeviceType::CPU) : value.toDevice();
    }
    if (value.isTensorList()) {
      auto tensors = value.toTensorVector();
      for (auto& tensor : tensors) {
        tensor = is_sim(tensor) ? twins_.of(tensor) : tensor;
      }
      return tensors;
    }
    if (value.isOptionalTensorList()) {
      auto tensors = value.toOptionalTensorList();
      for (size_t i = 0; i < tensors.size(); ++i) {
        if (const std::optional<at::Tensor> tensor = tensors.get(i); tensor.has_value() && is_sim(*tensor)) {
          tensors.set(i, twins_.of(*tensor));
        }
      }
      return tensors;
    }
    if (value.isGenerator()) {
      const auto generator = value.toGenerator();
      return generator.device().is_privateuseone() ? inner_of(generator) : generator;
    }
    if (value.isNone() && argument.type()->isSubtypeOf(*c10::OptionalType::create(c10::GeneratorType::get()))) {
      return inner_of(default_generator(device_));
    }
    return value;
  }

  c10::IValue to_device(const c10::IValue& value) const {
    if (value.isTensor() && value.toTensor().defined()) {
      return twins_.to_device(value.toTensor());
    }
    if (value.isTensorList()) {
      auto tensors = value.toTensorVector();
      for (auto& tensor : tensors) {
        tensor = twins_.to_device(tensor);
      }
      return tensors;
    }
    return value;
  }

  const c10::FunctionSchema& schema_;
  torch::jit::Stack* stack_;
  size_t first_;
  int device_ = -1;
  bool has_mask_ = false;
  std::vector<Range> ranges_;
  CpuTwins twins_;
};

void run_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  OperatorCall(op, stack).run(op);
}

// -------------------------------------------------------------------------------------------------------------- copies

bool has_same_bytes(const at::Tensor& from, const at::Tensor& to) {
  const bool is_same_layout = (from.is_contiguous() && to.is_contiguous()) ||
      (from.is_non_overlapping_and_dense() && from.strides() == to.strides());
  return from.scalar_type() == to.scalar_type() && is_same_layout;
}

// Strides or types differ: torch's CPU kernel does it, when everything before it on these streams is done.
void convert(const at::Tensor& from, const at::Tensor& to, SimStream& stream) {
  stream.drain();
  std::vector<Range> ranges;
  if (is_sim(from)) {
    ranges.push_back(range_of(from, false));
  }
  if (is_sim(to)) {
    ranges.push_back(range_of(to, true));
  }
  order().operation(stream.number, "a copy", ranges);
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  CpuTwins twins;
  auto target = is_sim(to) ? twins.of(to) : to;
  target.copy_(is_sim(from) ? twins.of(from) : from);
}

void copy_inside(const at::Tensor& from, const at::Tensor& to) {
  auto& stream = current_stream(to.device().index());
  if (from.device() != to.device()) {
    auto& other = current_stream(from.device().index());
    other.drain();
    order().stream_waits(stream.number, order().now(other.number));
  }
  if (!has_same_bytes(from, to)) {
    convert(from, to, stream);
    return;
  }
  order().operation(stream.number, "a copy", {range_of(from, false), range_of(to, true)});
  stream.run_in_order([target = to.mutable_data_ptr(), source = from.const_data_ptr(), num_bytes = span_bytes(to)] {
    std::memmove(target, source, num_bytes);
  });
}

void copy_over_link(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  const bool is_to_device = is_sim(to);
  const int device = (is_to_device ? to : from).device().index();
  const at::Tensor& on_host = is_to_device ? from : to;
  const auto num_bytes = span_bytes(to);
  auto& stream = current_stream(device);
  const bool is_raw = has_same_bytes(from, to);
  const bool is_pinned = pinned_ranges().holds(on_host.const_data_ptr(), span_bytes(on_host));
  const bool is_async = non_blocking && is_raw && is_pinned;
  if (is_to_device) {
    count(kBytesToDevice, static_cast<int64_t>(num_bytes));
    count(kWaitingUploads, !is_async);
    count(kSynchronousCopies, non_blocking && !is_async);
    count(kSynchronousCopyBytes, non_blocking && !is_async ? static_cast<int64_t>(num_bytes) : 0);
  } else {
    count(kBytesToHost, static_cast<int64_t>(num_bytes));
    count(kBlockingReads, !is_async);
  }
  if (is_raw) {
    std::vector<Range> ranges{range_of(is_to_device ? to : from, is_to_device)};
    std::vector<c10::Storage> keep;
    if (is_pinned) {
      ranges.push_back(range_of(on_host, !is_to_device));
      keep.push_back(on_host.storage());
    }
    order().operation(stream.number, is_to_device ? "a copy from the host" : "a copy to the host", ranges);
    auto* target = to.mutable_data_ptr();
    const auto* source = from.const_data_ptr();
    const auto* host_bytes = on_host.const_data_ptr();
    pinned_ranges().copy_begins(host_bytes, num_bytes);
    stream.enqueue(
        [=] {
          copy_engine(device, is_to_device).copy(target, source, num_bytes);
          pinned_ranges().copy_ends(host_bytes, num_bytes);
        },
        std::move(keep));
  } else {
    convert(from, to, stream);
  }
  if (!is_async) {
    stream.drain();
    order().host_waits(order().now(stream.number));
  }
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& to, bool non_blocking) {
  graveyard().clear();
  if (to.numel() == 0) {
    return to;
  }
  const auto from = self.sizes() == to.sizes() ? self : self.expand(to.sizes());
  const c10::DeviceGuard guard(is_sim(to) ? to.device() : from.device());
  is_sim(from) && is_sim(to) ? copy_inside(from, to) : copy_over_link(from, to, non_blocking);
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& to) {
  to.resize_(self.sizes());
  return copy_from(self, to, false);
}

at::Scalar local_scalar_dense(const at::Tensor& self) {
  auto& stream = current_stream(self.device().index());
  stream.drain();
  order().operation(stream.number, "aten::_local_scalar_dense", {range_of(self, false)});
  order().host_waits(order().now(stream.number));
  count(kBlockingReads);
  CpuTwins twins;
  return at::native::_local_scalar_dense_cpu(twins.of(self));
}

// ---------------------------------------------------------------------------------------------------- making tensors

c10::Device device_or_current(std::optional<c10::Device> device) {
  return device.has_value() && device->has_index() ? *device : sim_device(current_device);
}

at::Tensor empty_memory_format(
    at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<c10::Device> device, std::optional<bool> pin_memory, std::optional<at::MemoryFormat> format) {
  TORCH_CHECK(!pin_memory.value_or(false), "Only dense CPU tensors can be pinned");
  const c10::DeviceGuard guard(device_or_current(device));
  return at::detail::empty_generic(size, &device_memory(), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(
    at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<c10::Device> device, std::optional<bool> pin_memory) {
  TORCH_CHECK(!pin_memory.value_or(false), "Only dense CPU tensors can be pinned");
  const c10::DeviceGuard guard(device_or_current(device));
  return at::detail::empty_strided_generic(size, stride, &device_memory(),
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

const at::Tensor& resize(const at::Tensor& self, at::IntArrayRef size, std::optional<at::MemoryFormat> format) {
  const c10::DeviceGuard guard(self.device());
  current_stream(self.device().index()).drain();
  return at::native::resize_(self, size, format);
}

at::Tensor& set_storage(
    at::Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  return at::native::set_storage_cpu_(self, std::move(source), offset, size, stride);
}

at::Tensor& set_empty(at::Tensor& self) {
  const c10::DeviceGuard guard(self.device());
  auto none = device_memory().allocate(0);
  c10::Storage storage(c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), 0, std::move(none), &device_memory(), true));
  return set_storage(self, std::move(storage), 0, {0}, {});
}

void record_stream(at::Tensor& self, c10::Stream stream) {
  device_memory().recordStream(self.storage().data_ptr(), stream);
}

// Attention without a matrix of scores and by strides, as CUDA's memory-efficient kernel computes it, where torch's
// CPU kernel can; step by step elsewhere.
int64_t fused_sdp_choice(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const std::optional<at::Tensor>&, double,
    bool, std::optional<double>, bool) {
  const bool has_equal_heads = query.dim() == 4 && query.size(1) == key.size(1) && query.size(1) == value.size(1) &&
      query.size(3) == key.size(3) && query.size(3) == value.size(3);
  const bool is_contiguous_inside = query.stride(-1) == 1 && key.stride(-1) == 1 && value.stride(-1) == 1;
  return static_cast<int64_t>(
      has_equal_heads && is_contiguous_inside ? at::SDPBackend::flash_attention : at::SDPBackend::math);
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty_memory_format);
  m.impl("empty_strided", &empty_strided);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("unfold", &at::native::unfold);
  m.impl("resize_", &resize);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("set_.source_Tensor", &at::native::set_tensor_);
  m.impl("set_.source_Storage", &at::native::set_);
  m.impl("set_", &set_empty);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &local_scalar_dense);
  m.impl("record_stream", &record_stream);
  m.impl("_fused_sdp_choice", &fused_sdp_choice);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
}

const bool is_registered = [] {
  for (auto& capacity : capacity_bytes) {
    capacity = int64_t{1} << 30;
  }
  c10::SetAllocator(c10::DeviceType::PrivateUse1, &device_memory());
  at::setHostAllocator(c10::DeviceType::PrivateUse1, &pinned_memory());
  at::RegisterPrivateUse1HooksInterface(new SimHooks());
  c10::impl::registerDeviceGuard(c10::DeviceType::PrivateUse1, new SimGuard());
  return true;
}();

} // namespace

namespace at::native {
REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &fused_sdp_choice)
}

// ------------------------------------------------------------------------------------- the controls, called by ctypes

extern "C" {

void sim_set_capacity_bytes(int device, int64_t num_bytes) {
  capacity_bytes.at(device) = num_bytes;
}

void sim_set_exact_segments(bool are_exact) {
  has_exact_segments = are_exact;
}

void sim_set_copy_bytes_per_second(double speed) {
  copy_bytes_per_second = speed;
}

void sim_set_registrable_bytes(int64_t num_bytes) {
  registrable_bytes = num_bytes;
}

int sim_host_register(const void* pointer, size_t num_bytes) {
  return pinned_ranges().add(pointer, num_bytes);
}

int sim_host_unregister(const void* pointer) {
  return pinned_ranges().remove(pointer);
}

int64_t sim_registered_bytes() {
  graveyard().clear();
  return pinned_ranges().total_bytes();
}

int64_t sim_counter(int counter) {
  return counters.at(counter);
}

int64_t sim_num_allocations(int64_t at_least_bytes) {
  return device_memory().num_allocations(static_cast<size_t>(at_least_bytes));
}

void sim_reset_counters() {
  for (auto& counter : counters) {
    counter = 0;
  }
  order().clear_messages();
  device_memory().reset_allocations();
}

// The index-th hazard's message in `text`; returns its length, 0 where there is none.
size_t sim_hazard(size_t index, char* text, size_t num_bytes) {
  const auto message = order().message(index);
  if (num_bytes > 0) {
    const auto kept = std::min(message.size(), num_bytes - 1);
    std::memcpy(text, message.data(), kept);
    text[kept] = '\0';
  }
  return message.size();
}

// Keeps the current stream of the current device busy; the host goes on.
void sim_delay(double seconds) {
  current_stream(current_device).enqueue([seconds] {
    std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
  });
}

void sim_manual_seed(uint64_t seed) {
  for (int device = 0; device < kNumDevices; ++device) {
    auto generator = default_generator(device);
    const std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_current_seed(seed);
  }
}

// Copies the state of a device's generator into `state` if it fits; returns its size.
size_t sim_rng_state(int device, void* state, size_t num_bytes) {
  const auto current = default_generator(device).unsafeGetGeneratorImpl()->get_state();
  const auto size = static_cast<size_t>(current->numel());
  if (num_bytes >= size) {
    std::memcpy(state, current->data(), size);
  }
  return size;
}

void sim_set_rng_state(int device, const void* state, size_t num_bytes) {
  at::Tensor bytes = at::detail::empty_cpu({static_cast<int64_t>(num_bytes)}, at::kByte);
  std::memcpy(bytes.mutable_data_ptr(), state, num_bytes);
  default_generator(device).unsafeGetGeneratorImpl()->set_state(*bytes.unsafeGetTensorImpl());
}

int sim_device_count() {
  return kNumDevices;
}

int sim_current_device() {
  return current_device;
}

int sim_set_device(int device) {
  if (device < 0 || device >= kNumDevices) {
    return kInvalidValue;
  }
  current_device = device;
  return kSuccess;
}
}
