// What newer kernels offer to programs, and a program's life can depend on: where a target lacks
// it, a program that uses it is refused by name. What only has another way of doing the same (a
// libc that tries a system call first) isn't here.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace godwit::sys {

enum KernelFeature : std::uint64_t {
  kernel_mdwe = 1 << 0,          // 6.3: PR_SET_MDWE
  kernel_memory_merge = 1 << 1,  // 6.4: PR_SET_MEMORY_MERGE
  kernel_exec_seal = 1 << 2,     // 6.3: F_SEAL_EXEC
  kernel_large_rseq = 1 << 3,    // 6.3: rseq(2) takes more than 32 bytes
};
inline constexpr std::uint64_t kernel_features_all = (1 << 4) - 1;
inline constexpr std::uint32_t rseq_bytes_always = 32;

// Of this kernel, by trying.
std::uint64_t kernel_features();

std::vector<std::string> kernel_feature_names(std::uint64_t features);

}  // namespace godwit::sys
