// RemoteBatch: a list of calls and their data, laid out as the injected code reads it.
#include <sys/syscall.h>

#include <algorithm>

#include "sys/remote.h"
#include "sys/remote_code.h"

namespace godwit::sys {

using remote_code::ArenaHeader;

RemoteBatch::RemoteBatch(const RemoteProcess& process)
    : arena_(process.arena()), arena_bytes_(process.arena_bytes()) {
  INVARIANT(process.has_arena());
  // The two entries around the calls: block signals now, unblock later; run() fills them in.
  append(SYS_rt_sigprocmask, {});
}

bool RemoteBatch::has_room(std::size_t calls, std::size_t data_bytes) const {
  constexpr std::size_t own = 4 * sizeof(Entry) + 64;  // unblock, marker, end; masks.
  return sizeof(ArenaHeader) + (entries_.size() + calls) * sizeof(Entry) + own + data_bytes_ +
             data_bytes + 16 <=
         arena_bytes_;
}

std::size_t RemoteBatch::append(long nr, std::array<std::uint64_t, 6> args) {
  INVARIANT(has_room(1, 0), "a batch of {} calls is too large", entries_.size());
  Entry& entry = entries_.emplace_back();
  entry.nr_plus_1 = static_cast<std::uint64_t>(nr) + 1;
  std::copy(args.begin(), args.end(), entry.args);
  entry.result = 0;
  return entries_.size() - 1;
}

RemoteAddr RemoteBatch::space(std::size_t bytes) {
  INVARIANT(has_room(0, bytes), "a batch with {} bytes of data is too large", data_bytes_ + bytes);
  data_bytes_ += (bytes + 15) & ~std::size_t{15};
  if (data_.size() < data_bytes_) {
    std::vector<std::byte> larger(std::max(data_bytes_, data_.size() * 2));
    std::copy(data_.begin(), data_.end(), larger.end() - static_cast<std::ptrdiff_t>(data_.size()));
    data_ = std::move(larger);
  }
  return {arena_.value + arena_bytes_ - data_bytes_};
}

RemoteAddr RemoteBatch::put(std::span<const std::byte> data) {
  RemoteAddr at = space(data.size());
  std::copy(data.begin(), data.end(), data_.end() - static_cast<std::ptrdiff_t>(data_bytes_));
  return at;
}

void RemoteBatch::pause(std::function<Result<void>()> look) {
  // A tgkill whose signal run() chooses.
  pauses_.push_back({append(SYS_tgkill, {}), std::move(look)});
}

std::int64_t RemoteBatch::result(std::size_t index) const {
  INVARIANT(index < entries_.size());
  return entries_[index].result;
}

const std::byte* RemoteBatch::view(RemoteAddr from, std::size_t bytes) const {
  std::uint64_t low = arena_.value + arena_bytes_ - data_bytes_;
  INVARIANT(from.value >= low && from.value + bytes <= arena_.value + arena_bytes_);
  return data_.data() + (data_.size() - data_bytes_) + (from.value - low);
}

RemoteBatch::Memory RemoteBatch::memory() {
  Memory m;
  m.local[0] = {entries_.data(), entries_.size() * sizeof(Entry)};
  m.local[1] = {data_.data() + (data_.size() - data_bytes_), data_bytes_};
  m.remote[0] = {reinterpret_cast<void*>(arena_.value + sizeof(ArenaHeader)), m.local[0].iov_len};
  m.remote[1] = {reinterpret_cast<void*>(arena_.value + arena_bytes_ - data_bytes_), data_bytes_};
  m.bytes = static_cast<ssize_t>(m.local[0].iov_len + m.local[1].iov_len);
  return m;
}

}  // namespace godwit::sys
