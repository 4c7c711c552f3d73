// The vdso, and how a program lives on with the one of another kernel. See the essay in vdso.cc.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"

namespace godwit::sys {

// The functions that a vdso may offer, by their place among the stubs.
inline constexpr std::size_t vdso_functions = 7;

struct VdsoImage {
  std::string build_id;                                 // Same id, same code.
  std::array<std::uint32_t, vdso_functions> offsets{};  // 0: not there.
  std::vector<std::uint32_t> unknown;                   // Functions that we know nothing of.
};
Result<VdsoImage> parse_vdso(std::span<const std::byte> image);

// The [vdso] of this process: of every process of this kernel. Whole pages, an ELF image.
Result<std::string> own_vdso();
Result<std::string> own_vdso_build_id();

// Of a forwarded program nothing else is in these bytes before the end of its real vdso.
inline constexpr std::uint64_t vdso_room = 64 * 1024;

// Where in the last page of a program's real vdso the stubs are; never used for anything else.
inline constexpr std::size_t vdso_stubs_bytes = 128;
using VdsoStubs = std::array<std::byte, vdso_stubs_bytes>;
// Stubs that lead to the functions of the vdso which lies at `start`.
VdsoStubs make_vdso_stubs(const VdsoImage& real, std::uint64_t start);
// How much of the page isn't the stubs': all of it, unless they are there.
std::size_t before_vdso_stubs(std::span<const std::byte> last_page);

// Makes of a vdso's image one whose functions lead to the stubs at the end of the vdso that ends at
// `real_end`, on whichever kernel that is.
Result<void> forward_vdso(std::span<std::byte> image, std::uint64_t real_end);

// Where a process has its real vdso: at least its end, and a start that isn't above it. {0, 0}
// without one. Reads auxv and the header of what that names: a few microseconds.
struct VdsoPlace {
  std::uint64_t start = 0, end = 0;
  bool contains(std::uint64_t address) const { return address >= start && address < end; }
};
Result<VdsoPlace> find_vdso(pid_t pid);

}  // namespace godwit::sys
