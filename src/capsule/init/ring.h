// A queue of numbered bytes in a fixed piece of memory, and a bit for each byte.
//
// Bytes are named by their number in the whole sequence, which only grows. The memory isn't copied
// to children (MADV_DONTFORK): nothing of one capsule's traffic is in its program, and forks stay
// cheap.
#pragma once

#include <sys/mman.h>
#include <sys/uio.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "capsule/init/fail.h"

namespace godwit::init {

class ByteRing {
 public:
  // `capacity`: a power of two.
  Fail map(std::size_t capacity) {
    void* memory = ::mmap(nullptr, capacity, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return fail("mmap of a ring");
    if (::madvise(memory, capacity, MADV_DONTFORK) != 0) return fail("madvise of a ring");
    data_ = static_cast<char*>(memory);
    capacity_ = capacity;
    return ok();
  }

  std::uint64_t begin() const { return begin_; }
  std::uint64_t end() const { return end_; }
  std::size_t size() const { return static_cast<std::size_t>(end_ - begin_); }
  std::size_t room() const { return capacity_ - size(); }
  bool empty() const { return begin_ == end_; }

  void reset(std::uint64_t at) { begin_ = end_ = at; }
  void drop_to(std::uint64_t number) { begin_ = std::clamp(number, begin_, end_); }

  // The longest piece that is in one place: from `number` on to be read, at the end to be filled.
  iovec readable(std::uint64_t number) const {
    std::size_t at = number & (capacity_ - 1);
    return {data_ + at, std::min<std::size_t>(end_ - number, capacity_ - at)};
  }
  iovec writable() const {
    std::size_t at = end_ & (capacity_ - 1);
    return {data_ + at, std::min(room(), capacity_ - at)};
  }
  void filled(std::size_t bytes) { end_ += bytes; }

  // Precondition: fits.
  void append(const char* bytes, std::size_t count) {
    while (count > 0) {
      iovec place = writable();
      std::size_t now = std::min(count, place.iov_len);
      std::memcpy(place.iov_base, bytes, now);
      filled(now);
      bytes += now;
      count -= now;
    }
  }

 private:
  char* data_ = nullptr;
  std::size_t capacity_ = 0;
  std::uint64_t begin_ = 0;
  std::uint64_t end_ = 0;
};

// Which stream each byte of a ring came from, addressed by the byte's number.
class StreamBits {
 public:
  Fail map(std::size_t capacity) {
    void* memory = ::mmap(nullptr, capacity / 8, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return fail("mmap of stream bits");
    if (::madvise(memory, capacity / 8, MADV_DONTFORK) != 0) return fail("madvise of stream bits");
    words_ = static_cast<std::uint64_t*>(memory);
    mask_ = capacity - 1;
    return ok();
  }

  bool get(std::uint64_t number) const {
    std::uint64_t at = number & mask_;
    return (words_[at / 64] >> (at % 64) & 1) != 0;
  }
  void set(std::uint64_t number, std::uint64_t count, bool value) {
    for (std::uint64_t i = number; i < number + count;) {
      std::uint64_t at = i & mask_;
      if (at % 64 == 0 && number + count - i >= 64) {
        words_[at / 64] = value ? ~std::uint64_t{0} : 0;
        i += 64;
        continue;
      }
      std::uint64_t bit = std::uint64_t{1} << (at % 64);
      words_[at / 64] = value ? words_[at / 64] | bit : words_[at / 64] & ~bit;
      ++i;
    }
  }
  // How many bytes from `number` on, at most `most`, are of one stream.
  std::size_t run(std::uint64_t number, std::size_t most) const {
    bool value = get(number);
    std::uint64_t whole = value ? ~std::uint64_t{0} : 0;
    std::size_t n = 0;
    while (n < most) {
      std::uint64_t at = (number + n) & mask_;
      if (at % 64 == 0 && most - n >= 64 && words_[at / 64] == whole) {
        n += 64;
      } else if (get(number + n) == value) {
        ++n;
      } else {
        break;
      }
    }
    return n;
  }

 private:
  std::uint64_t* words_ = nullptr;
  std::uint64_t mask_ = 0;
};

}  // namespace godwit::init
