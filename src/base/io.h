// Whole reads and writes: loops over short counts and EINTR, so that callers don't.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"
#include "base/unique_fd.h"

namespace godwit {

// Fails with Errc::peer_lost when the file ends before `out` is full.
Result<void> read_full(int fd, std::span<std::byte> out);
Result<void> write_full(int fd, std::span<const std::byte> data);

// The whole of a (proc, sys or regular) file.
Result<std::string> read_file(const std::string& path);
Result<std::string> read_file_at(int dirfd, const std::string& path);
Result<void> write_file(const std::string& path, std::string_view data);  // One write.

// Written to a temporary name, synced (if `durable`) and renamed: readers see the old or the new
// content, never a part.
Result<void> replace_file(const std::string& path, std::string_view data, bool durable);

// close-on-exec is added.
Result<UniqueFd> open_fd(const std::string& path, int flags, unsigned mode = 0);
Result<UniqueFd> open_fd_at(int dirfd, const std::string& path, int flags, unsigned mode = 0);

// O_LARGEFILE is 0 for programs of 64 bits, but F_GETFL shows it of whatever was opened by a path,
// and not of what pipe2(2) made.
constexpr int kernel_largefile = 0100000;

// To open what a descriptor of this process refers to once more.
std::string own_fd_path(int fd);

inline std::span<const std::byte> as_bytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// From getrandom(2).
std::string random_hex(std::size_t bytes);

}  // namespace godwit
