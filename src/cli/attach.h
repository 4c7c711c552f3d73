// A terminal, or pipes, attached to a capsule.
//
// The connection may break at any time: the daemon is restarted, the capsule moves. Then this side
// opens again and says which byte of output it wants next; the other side says which byte of input
// it wants next. Output is acknowledged after it was written here, input is kept until it is with
// the program. So nothing is lost or doubled, whatever happens in between, as long as this process
// lives.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"
#include "rpc/client.h"

namespace godwit::cli {

struct AttachOptions {
  std::string capsule;
  std::uint64_t attach_id = 0;
  bool from_start = false;  // `run`: all output from the first byte on; else from now on.
  bool take_over = false;
  bool use_stdin = true;
  bool tty = false;  // Standard input is a terminal that shall be raw meanwhile.
};

struct AttachEnd {
  bool detached = false;  // By ^P ^Q: the capsule runs on.
  int wait_status = 0;
  std::string note;
};

// How long a lost daemon or capsule is looked for before giving up; the capsule runs on.
inline constexpr int reconnect_s_max = 60;

// Must be called before the process has threads (it takes signals over): see `Signals`.
class Signals {
 public:
  Signals();  // Blocks those that are passed on to the program.
};

Result<AttachEnd> attach(rpc::ApiClient& client, const AttachOptions& options);

std::uint64_t random_attach_id();
api::WindowSize window_size();  // Of the terminal; zero without.

}  // namespace godwit::cli
