#include "sys/kernel_features.h"

#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include "base/unique_fd.h"

namespace godwit::sys {
namespace {

// Newer than the headers of Debian 12.
constexpr int pr_get_mdwe = 66;
constexpr int pr_get_memory_merge = 68;
constexpr unsigned mfd_exec = 0x10;
constexpr unsigned long at_rseq_feature_size = 27;

std::uint64_t probe() {
  std::uint64_t found = 0;
  if (::prctl(pr_get_mdwe, 0, 0, 0, 0) >= 0) found |= kernel_mdwe;
  if (::prctl(pr_get_memory_merge, 0, 0, 0, 0) >= 0) found |= kernel_memory_merge;
  const UniqueFd memory(::memfd_create("godwit-probe", MFD_CLOEXEC | mfd_exec));
  if (memory.valid()) found |= kernel_exec_seal;
  if (::getauxval(at_rseq_feature_size) != 0) found |= kernel_large_rseq;
  return found;
}

}  // namespace

std::uint64_t kernel_features() {
  static const std::uint64_t features = probe();
  return features;
}

std::vector<std::string> kernel_feature_names(std::uint64_t features) {
  constexpr struct {
    KernelFeature feature;
    const char* name;
  } names[] = {
      {kernel_mdwe, "memory-deny-write-execute (PR_SET_MDWE, Linux 6.3)"},
      {kernel_memory_merge, "merging of all its memory (PR_SET_MEMORY_MERGE, Linux 6.4)"},
      {kernel_exec_seal, "seals of executable memfds (F_SEAL_EXEC, Linux 6.3)"},
      {kernel_large_rseq, "restartable sequences of more than 32 bytes (Linux 6.3)"},
  };
  std::vector<std::string> out;
  for (const auto& [feature, name] : names)
    if ((features & feature) != 0) out.emplace_back(name);
  return out;
}

}  // namespace godwit::sys
