// The input queue of a pseudo terminal, taken out and put back exactly.
#pragma once

#include <cstddef>

#include "capsule/init/fail.h"

namespace godwit::init {

// Never more than the line discipline holds (4096) plus what it may take while we read, so:
inline constexpr std::size_t cooked_bytes_max = 256 * 1024;

struct Cooked {
  char bytes[cooked_bytes_max];  // CookedRecords, each followed by its bytes.
  std::size_t used = 0;
};

// Takes everything that the program could read or is still being edited. `slave`: non-blocking.
// Precondition: no process that uses the terminal runs.
Fail take_input(int slave, Cooked& out);

// Puts records into the queue as if they had been typed, without echo, signals or editing, and
// leaves the settings as they were. Same precondition.
Fail put_input(int slave, const Cooked& records);

}  // namespace godwit::init
