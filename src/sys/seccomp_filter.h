// What seccomp filters would answer to a system call, found out without making it. Pure.
#pragma once

#include <linux/seccomp.h>

#include <cstdint>
#include <span>

#include "sys/tracing.h"

namespace godwit::sys {

// SECCOMP_RET_*, with its data: of all filters the answer that is most severe, as the kernel takes
// it. A program that the kernel would not have accepted kills.
std::uint32_t seccomp_verdict(std::span<const SeccompProgram> filters, const seccomp_data& call);

}  // namespace godwit::sys
