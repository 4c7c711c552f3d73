// For the tests of this folder: functions that run as programs, and are moved from one shell to
// another.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>

#include "restore/test_support.h"

namespace godwit::restore {

// All of test_support.h in one go: runs `program`, waits until it has written a byte, stops it,
// lets the caller change the image, restores it in a second shell, kills the first, starts it
// there.
struct Moved {
  std::unique_ptr<TestShell> source, target;
  std::unique_ptr<Restorer> restorer;  // Finished, sealed and started.
  image::Capsule image;
  pid_t node_pid = 0;
  std::int64_t prepare_us = 0, finish_us = 0, seal_us = 0, start_us = 0;
};
using ChangeImage = std::function<void(image::Capsule&)>;
// `start`: instead of the restorer's.
using Start = std::function<Result<void>(Moved&)>;
Result<Moved> move_program(const std::function<int()>& program, const ChangeImage& change = {},
                           const Start& start = {});

// Ready is not enough: the program must wait in the call that the test is about.
Result<void> wait_until_asleep(pid_t node_pid);

inline constexpr pid_t program_pid = 50;

// For programs that are moved: what they write to stderr comes to the same pipe as stdout.
#define CHECK_HERE(condition)                                              \
  do {                                                                     \
    if (!(condition)) {                                                    \
      dprintf(2, "line %d: %s (errno %d)\n", __LINE__, #condition, errno); \
      _exit(1);                                                            \
    }                                                                      \
  } while (false)

// Tells the test that the program is ready, then waits in read(2) until it has been moved.
void be_moved();
// Fails the test unless the program ends with status 0.
void finishes_well(Moved& m);

}  // namespace godwit::restore
