// The address space of a process, without its pages.
#pragma once

#include "capture/describe_files.h"
#include "image/image.pb.h"

namespace godwit::capture {

// `earlier`: the same process's address space as described before; see FrozenTree::describe. May be
// null. `brk` is a guess (the end of [heap]); only the process itself knows, see
// describe_inside.cc.
Result<void> describe_memory(pid_t pid, FileTable& files, const image::Mm* earlier, image::Mm& mm);

// Names (two letters, as in smaps) -> VmaFlag bits of the image.
std::uint64_t vma_flag_bits(const sys::SmapsEntry& entry);

}  // namespace godwit::capture
