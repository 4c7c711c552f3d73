// Page faults that a process takes before it is in a hurry.
#pragma once

#include <cstddef>

namespace godwit::sys {

// Maps what is in memory of the executable and its libraries, copies their writable pages, and
// makes `heap_bytes` of heap that later allocations take without a fault, large ones too. What the
// kernel can't do (before 5.14) is left to the faults. Call while there is one thread.
void prefault_own_memory(std::size_t heap_bytes);

}  // namespace godwit::sys
