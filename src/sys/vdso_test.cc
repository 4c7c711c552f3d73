#include "sys/vdso.h"

#include <gtest/gtest.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <cstring>

#include "base/unique_fd.h"

namespace godwit::sys {
namespace {

constexpr std::size_t page_bytes = 4096;

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

// Memory with code in it; the real vdso of a forwarded program as far as its stubs are concerned.
class Code {
 public:
  explicit Code(std::span<const std::byte> content, std::uint64_t end_at_least = 0)
      : size_((std::max<std::uint64_t>(content.size(), end_at_least) + page_bytes - 1) /
              page_bytes * page_bytes),
        at_(static_cast<std::byte*>(
            mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))) {
    write(0, content);
  }
  ~Code() { munmap(at_, size_); }
  Code(const Code&) = delete;
  Code& operator=(const Code&) = delete;
  void write(std::size_t offset, std::span<const std::byte> content) {
    mprotect(at_, size_, PROT_READ | PROT_WRITE);
    std::copy(content.begin(), content.end(), at_ + offset);
    mprotect(at_, size_, PROT_READ | PROT_EXEC);
  }
  std::uint64_t start() const { return reinterpret_cast<std::uint64_t>(at_); }
  std::uint64_t end() const { return start() + size_; }

 private:
  std::size_t size_;
  std::byte* at_;
};

using ClockGettime = int (*)(clockid_t, timespec*);

std::int64_t read_clock(ClockGettime read) {
  timespec now{};
  EXPECT_EQ(read(CLOCK_MONOTONIC, &now), 0);
  return now.tv_sec * 1'000'000'000LL + now.tv_nsec;
}

struct Forwarded {
  std::string image = own_vdso().value();
  VdsoImage parsed = parse_vdso(bytes_of(image)).value();
  Code stubs{std::span<const std::byte>(), page_bytes};
  Code old{bytes_of(forwarded())};

  std::string forwarded() {
    std::string out = image;
    EXPECT_TRUE(forward_vdso(std::as_writable_bytes(std::span(out)), stubs.end()).ok());
    return out;
  }
  ClockGettime clock_gettime() {
    return reinterpret_cast<ClockGettime>(old.start() + parsed.offsets[0]);
  }
  void lead_to(const VdsoImage& real) {
    stubs.write(page_bytes - vdso_stubs_bytes, make_vdso_stubs(real, getauxval(AT_SYSINFO_EHDR)));
  }
};

TEST(Vdso, TheOneOfThisKernelIsUnderstood) {
  const VdsoImage image = parse_vdso(bytes_of(own_vdso().value())).value();
  EXPECT_GE(image.build_id.size(), 16u);
  for (std::size_t i = 0; i < 5; ++i) EXPECT_NE(image.offsets[i], 0u) << i;
  EXPECT_EQ(own_vdso_build_id().value(), image.build_id);
  const VdsoPlace place = find_vdso(getpid()).value();
  EXPECT_EQ(place.start, getauxval(AT_SYSINFO_EHDR));
  EXPECT_EQ(place.end - place.start, own_vdso().value().size());
}

TEST(Vdso, AForwardedFunctionIsTheRealOne) {
  Forwarded f;
  f.lead_to(f.parsed);
  const std::int64_t before = read_clock(::clock_gettime);
  const std::int64_t between = read_clock(f.clock_gettime());
  const std::int64_t after = read_clock(::clock_gettime);
  EXPECT_LE(before, between);
  EXPECT_LE(between, after);
}

TEST(Vdso, AFunctionThatTheKernelLacksIsASystemCall) {
  Forwarded f;
  f.lead_to(VdsoImage{});
  const std::int64_t before = read_clock(::clock_gettime);
  const std::int64_t between = read_clock(f.clock_gettime());
  const std::int64_t after = read_clock(::clock_gettime);
  EXPECT_LE(before, between);
  EXPECT_LE(between, after);
  timespec now{};
  EXPECT_EQ(f.clock_gettime()(12345, &now), -EINVAL);
}

TEST(Vdso, AForwardedImageIsStillOneAndSaysWhereTheRealOneEnds) {
  Forwarded f;
  const std::string image = f.forwarded();
  const VdsoImage parsed = parse_vdso(bytes_of(image)).value();
  EXPECT_EQ(parsed.build_id, f.parsed.build_id);
  EXPECT_EQ(parsed.offsets, f.parsed.offsets);
  EXPECT_FALSE(forward_vdso(std::as_writable_bytes(std::span(f.image)), 12345).ok());
}

TEST(Vdso, StubsAreTheOnlyThingThatIsNotFreeAtTheEndOfAPage) {
  std::vector<std::byte> page(page_bytes);
  EXPECT_EQ(before_vdso_stubs(page), page_bytes);
  const VdsoStubs stubs = make_vdso_stubs(VdsoImage{}, 0);
  std::memcpy(page.data() + page_bytes - stubs.size(), stubs.data(), stubs.size());
  EXPECT_EQ(before_vdso_stubs(page), page_bytes - vdso_stubs_bytes);
}

TEST(Vdso, NoPrefixAndNoFlippedByteOfAnImageIsReadBeyondItsEnd) {
  const std::string image = own_vdso().value();
  for (std::size_t size = 0; size < image.size(); size += 7) {
    const std::vector<std::byte> exact(bytes_of(image).begin(), bytes_of(image).begin() + size);
    (void)parse_vdso(exact);
  }
  std::vector<std::byte> bytes(bytes_of(image).begin(), bytes_of(image).end());
  for (std::size_t at = 0; at < 0x600; ++at) {
    bytes[at] ^= std::byte{0xff};
    (void)parse_vdso(bytes);
    bytes[at] ^= std::byte{0xff};
  }
}

}  // namespace
}  // namespace godwit::sys
