// The standard streams of one capsule on this node: between its godwit-init and whoever is
// attached.
//
// Everything is numbered by byte and acknowledged end to end: init keeps output until the client
// has it, the client keeps input until the program's pipe has it. So this class stores nothing that
// matters, and a daemon that is killed between the two loses nothing: the next one attaches to init
// again, the client to the next daemon, and both say where they were.
//
// Who acknowledges output:
// - with a client: the client, when it has written it;
// - with a client that went without a word (its daemon may have died, the capsule may have moved):
//   nobody, for `grace`; the program blocks when 1 MiB is waiting; then as without;
// - without: this class, at once, so that nothing ever blocks on a reader who doesn't exist.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "base/ids.h"
#include "base/node_env.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "capsule/init_client.h"
#include "rpc/api.h"

namespace godwit::daemon {

class Console {
 public:
  static constexpr std::chrono::seconds grace{10};

  struct Hooks {
    // On the console's thread. The program has ended, and all its output was read.
    std::function<void(int wait_status)> exited;
    // The connection to init is lost: the capsule is gone, or is being taken apart by a migration.
    std::function<void()> lost;
    // Who is attached has changed; 0: nobody.
    std::function<void(std::uint64_t attach_id)> attached;
  };
  struct Setup {
    std::string init_socket;
    NodeId node;
    bool tty = false;
    std::uint64_t expected = 0;     // Client that output is kept for; 0: none.
    bool keep_for_anybody = false;  // After a move: whoever comes within `grace`.
  };

  // Returns once init answered.
  static Result<std::shared_ptr<Console>> start(Setup setup, Hooks hooks);
  ~Console();

  // Serves one attached client until it leaves, the program ends, or `close` is called.
  Result<void> serve(const rpc::Call& call, const api::AttachRequest::Open& open,
                     rpc::AttachChannel& channel);

  // Ends stdin where nobody is or will be attached (a detached run).
  void close_stdin();

  // Tells clients the end, after which they leave; called once the exit status is recorded.
  void announce_exit(int wait_status, const std::string& note);
  // Ends the thread: nothing is read from init anymore. Clients stay until they have read the rest.
  void stop();
  // Sends clients away; they open again, at whichever node the capsule then is.
  void close(const std::string& reason);

 private:
  struct Client;
  using Command = std::function<Result<void>(capsule::InitClient&)>;

  Console(Setup setup, Hooks hooks, capsule::InitClient init, UniqueFd wake);
  Result<std::shared_ptr<Client>> admit(const api::AttachRequest::Open& open);
  Result<void> open_stream(Client& client, const api::AttachRequest::Open& open);
  bool on_request(Client& client, const api::AttachRequest& request);
  void leave(const std::shared_ptr<Client>& client, bool for_good);
  Result<void> run_command(Command command);  // On the console's thread; waits for the result.
  void post(Command command);                 // Likewise, doesn't wait.
  void wake();

  void loop();
  Result<void> turn();
  void on_event(const capsule::InitEvent& event);
  Result<void> acknowledge_unread();
  int poll_timeout_ms();

  Setup setup_;
  Hooks hooks_;
  capsule::InitClient init_;  // Of the console's thread.
  UniqueFd wake_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Command> commands_;
  std::shared_ptr<Client> client_;
  std::uint64_t expected_ = 0;      // Output is kept for it; `any_client`: for anybody.
  std::int64_t keep_until_us_ = 0;  // While nobody is attached.
  bool stop_ = false;
  bool dead_ = false;  // The thread has ended: commands fail.

  std::uint64_t out_seen_ = 0;   // Of the console's thread: end of what init has sent,
  std::uint64_t out_acked_ = 0;  // and of what was acknowledged on nobody's behalf.
  std::thread thread_;
};

}  // namespace godwit::daemon
