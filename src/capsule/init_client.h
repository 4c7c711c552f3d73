// A connection to the godwit-init of a capsule.
//
// Not for use by several threads at once; open a connection for each. Requests wait at most
// `request_ms_max`; events that arrive meanwhile are kept for `next_event`.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "capsule/init_protocol.h"

namespace godwit::capsule {

struct SpawnRequest {
  std::vector<std::string> argv;
  std::vector<std::string> env;  // K=V; PATH of these finds argv[0].
  std::string cwd = "/";
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
  std::vector<std::uint32_t> groups;
  bool tty = false;
  std::uint16_t rows = 24;
  std::uint16_t columns = 80;
  ClockDelta clocks{0, 0};
};

struct Spawned {
  pid_t pid = 0;       // In the capsule.
  pid_t node_pid = 0;  // As this process numbers it; 0 if it ended already.
  UniqueFd pidfd;
};

struct Skeleton {
  pid_t pid = 0;
  pid_t node_pid = 0;
  UniqueFd pidfd;
  UniqueFd channel;  // SOCK_SEQPACKET socketpair; the other end is the skeleton's only descriptor:
  int channel_remote = 0;  // this number there.
};

struct Attached {
  std::uint64_t stdin_next = 0;
  std::uint64_t out_from = 0;
};

struct Stdio {
  StdioInfo info{};
  std::vector<UniqueFd>
      fds;  // Pipes: stdin's read end, stdout's and stderr's write ends. Pty: slave.
};

struct InitEvent {
  Message type{};
  std::uint64_t a = 0;
  std::uint64_t b = 0;
  std::string payload;
};

struct LogChunk {
  std::uint64_t from = 0;
  int stream = 1;
  std::string bytes;  // Empty: the end.
};

class InitClient {
 public:
  static Result<InitClient> connect(const std::string& socket_path);

  int fd() const { return socket_.get(); }      // Readable: call next_event(0) until it gives none.
  pid_t init_pid() const { return init_pid_; }  // As this process numbers it; from SO_PEERCRED.

  Result<Spawned> spawn(const SpawnRequest& request);
  // The time namespace for what is made from now on; the result is for setns in what exists
  // already. `delta`: what the capsule's clocks shall show minus what this node's (our own) show.
  Result<UniqueFd> clocks(const ClockDelta& delta);
  Result<Skeleton> skeleton(pid_t pid);
  Result<pid_t> last_pid();
  Result<void> set_last_pid(pid_t pid);

  // The exact state of stdin and stdout. Preconditions: the tree doesn't run (frozen or stopped).
  // Nothing is relayed afterwards until relay_go, which is also the rollback.
  Result<std::string> relay_get();
  Result<void> relay_put(const std::string& state);
  Result<void> relay_go();
  // Makes the terminal that relay_put will fill, unless it is there already.
  Result<void> make_terminal();

  Result<Attached> attach(std::uint64_t out_from = no_value);
  Result<void> detach();
  Result<void> watch();
  // At most stdin_window_bytes beyond the last stdin_ack. Blocks while the socket is full.
  Result<void> send_stdin(std::uint64_t from, std::span<const std::byte> bytes);
  Result<void> send_stdin_eof(std::uint64_t end);
  Result<void> ack_output(std::uint64_t up_to);

  Result<void> set_winsize(std::uint16_t rows, std::uint16_t columns);
  Result<void> signal(int signal, SignalTo to);
  Result<Status> status();
  Result<UniqueFd> main_pidfd();  // Errc::tracee_gone if there is none that lives.
  Result<Stdio> stdio(bool original = false);
  Result<LogChunk> read_log(std::uint64_t from);

  Result<void> hold_fds(const std::string& tag, std::span<const int> fds);
  Result<std::vector<UniqueFd>> fetch_fds(const std::string& tag);
  Result<void> drop_fds(const std::string& tag);
  Result<void> set_hostname(const std::string& name);
  Result<void> shutdown();

  // timeout_ms 0: only what is there; -1: waits for ever. Errc::peer_lost when init is gone.
  Result<std::optional<InitEvent>> next_event(int timeout_ms);

  static constexpr int request_ms_max = 30'000;

 private:
  struct Packet {
    Header header{};
    std::string payload;
    std::vector<UniqueFd> fds;
  };
  InitClient() = default;
  Result<void> send(Message type, std::uint64_t a, std::uint64_t b,
                    std::span<const std::byte> payload, std::span<const int> fds);
  Result<std::optional<Packet>> receive(int timeout_ms);
  Result<Packet> request(Message type, std::uint64_t a = 0, std::uint64_t b = 0,
                         std::span<const std::byte> payload = {}, std::span<const int> fds = {});

  UniqueFd socket_;
  pid_t init_pid_ = 0;
  std::deque<InitEvent> events_;
};

}  // namespace godwit::capsule
