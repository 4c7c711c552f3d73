// Protection keys (pkeys(7)).
#pragma once

#include <sys/mman.h>

#include <cstdint>

namespace godwit::sys {

constexpr std::uint32_t protection_keys_max = 16;  // Of x86-64; every mapping has 0 by default.

// Memory that can only be executed gets a key by itself, the lowest that is free, which no thread
// has rights for. A process that has no keys of its own gets it again from the same mmap or
// mprotect.
constexpr bool is_execute_only_key(std::uint32_t key, std::uint32_t prot) {
  return key == 1 && prot == PROT_EXEC;
}

}  // namespace godwit::sys
