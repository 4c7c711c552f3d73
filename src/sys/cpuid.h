// What this processor offers to programs: the raw feature leaves of CPUID and XCR0, comparable
// between nodes. A program may go to a target only if the target has every feature it could have
// seen at its start, since libraries choose their code by it once and never look again.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace godwit::sys {

// Packed, little-endian: a version byte, a count byte, then records of {u32 leaf, u32 subleaf, u32
// eax, ebx, ecx, edx}. XCR0 is the record of leaf 0xffffffff (eax low, edx high); subleaves of 0xd
// say where in the XSAVE area each part that it enables is (eax bytes, ebx offset). Opaque to
// others.
const std::string& cpu_features();

// Features of `source` that `target` lacks, in words ("avx512f"; "leaf 7.1 eax bit 9" where it has
// no name here). Empty: everything is there. Fails on bytes that are not from cpu_features().
Result<std::vector<std::string>> missing_features(std::string_view source, std::string_view target);

// `features` without those, named as above. Errc::invalid if a name is nobody's.
Result<std::string> without_features(std::string_view features,
                                     const std::vector<std::string>& hidden);
// Parts of the XSAVE area that both have at different places: a signal frame of one, which lies in
// the program's memory, makes no sense to the other.
Result<std::vector<std::string>> moved_xsave_parts(std::string_view source,
                                                   std::string_view target);

// `xstate` (NT_X86_XSTATE of `source`) without the parts that `target` hasn't. The answer: names of
// those that were in use, so that something is lost. A program that started on a lesser processor
// comes back to one with nothing in them.
Result<std::vector<std::string>> drop_unknown_xstate(std::string& xstate, std::string_view source,
                                                     std::string_view target);

// All that are there, in words, for doctor.
Result<std::vector<std::string>> feature_names(std::string_view features);

// Size in bytes of the XSAVE area (standard form) for what XCR0 enables.
std::uint32_t xsave_bytes();
// The same for other features, as signal frames have it: without the parts that a process must have
// a permission for (AMX).
Result<std::uint32_t> signal_xsave_bytes(std::string_view features);

// "Intel(R) Xeon(R) ...", trimmed.
std::string cpu_model();

}  // namespace godwit::sys
