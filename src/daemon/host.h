// The capsules of this node: their life from `run` or arrival to their end or departure.
//
// Every capsule has a record (store.h) that says what holds, written before what it announces is
// done and after what it reports has happened; so a daemon that is killed anywhere is followed by
// one that `adopt`s everything. Nothing here is ever stopped in good order: godwitd has no other
// way to end than to be killed.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "daemon/accounts.h"
#include "daemon/config.h"
#include "daemon/console.h"
#include "daemon/spares.h"
#include "daemon/store.h"
#include "sys/cgroup.h"
#include "wire/node.pb.h"

namespace godwit::daemon {

namespace state {
inline constexpr const char* starting = "starting";
inline constexpr const char* running = "running";
inline constexpr const char* frozen = "frozen";
inline constexpr const char* migrating = "migrating";
inline constexpr const char* in_doubt = "in-doubt";
inline constexpr const char* exited = "exited";
}  // namespace state

// One capsule. Fields are guarded by `mutex`; `changed` tells of changes of the record, of an
// operation's end, and that the capsule has left (`left_to`).
struct Hosted {
  std::mutex mutex;
  std::condition_variable changed;
  node::CapsuleRecord record;
  std::shared_ptr<Console> console;
  std::string operation;            // Exclusive: "migrated", "frozen", ...; empty: none.
  std::optional<int> exit_pending;  // The program has ended, the record doesn't say so yet.
  bool init_lost = false;
  std::string left_to;   // Node; the record is history here.
  bool serving = false;  // It runs elsewhere already, pages of it are still here.
  pid_t node_pid = 0;

  // Samples of the control group.
  double cpu = 0;
  std::uint64_t cpu_us = 0;
  std::int64_t sampled_us = 0;

  CapsuleId id() const { return CapsuleId{record.spec().id()}; }  // Never changes.
  bool departed() const { return serving || !left_to.empty(); }
  bool ended() const { return record.state() == state::exited; }
};
using HostedPtr = std::shared_ptr<Hosted>;

class Host;

// The right to change a capsule's state; one at a time. What happened meanwhile is handled at its
// end.
class Operation {
 public:
  Operation(Operation&& other) noexcept
      : host_(std::exchange(other.host_, nullptr)), capsule_(std::move(other.capsule_)) {}
  Operation(const Operation&) = delete;
  Operation& operator=(const Operation&) = delete;
  Operation& operator=(Operation&&) = delete;
  ~Operation();
  const HostedPtr& capsule() const { return capsule_; }

 private:
  friend class Host;
  Operation(Host& host, HostedPtr capsule) : host_(&host), capsule_(std::move(capsule)) {}
  Host* host_;
  HostedPtr capsule_;
};

class Host {
 public:
  static constexpr std::size_t ended_kept_max = 100;

  Host(const Config& config, Store store, Spares& spares);
  ~Host();

  // Finds what runs here. Capsules that a migration had in its hands are returned, not adopted:
  // the records of that migration decide.
  Result<std::vector<HostedPtr>> adopt();

  // Preconditions: name and address are claimed (claim()).
  Result<HostedPtr> run(const api::RunRequest& request, const Account& account,
                        const std::string& id, const std::string& name, const std::string& ip,
                        std::uint32_t prefix_len);

  // By name, id or beginning of an id. Others' capsules aren't found, nor those that are arriving,
  // or have left all but their pages.
  Result<HostedPtr> find(std::uint32_t uid, const std::string& reference);
  bool is_arriving(std::uint32_t uid, const std::string& reference);
  HostedPtr by_id(const std::string& id);
  std::vector<HostedPtr> all();
  std::optional<std::string> moved_to(const std::string& id);

  // Names and addresses are unique in the cluster: whoever starts a capsule notes his claim here,
  // then asks the other nodes whether it is in use there, by a capsule or by such a note. Of two
  // that start at the same time at least one sees the other's note. False: the name is in use here.
  bool claim(const std::string& name, const std::string& ip, const std::string& id, bool& ip_taken);
  bool is_free(const std::string& name, const std::string& ip, const std::string& id,
               bool& ip_taken);
  void unclaim(const std::string& id);

  api::CapsuleInfo info(const HostedPtr& capsule);

  Result<Operation> begin(const HostedPtr& capsule, const std::string& what);
  // Of a capsule that another godwitd had in an operation.
  Operation resume(const HostedPtr& capsule, const std::string& what);
  // Of one that may be running here, while a worker may be taking it apart: may wait for long.
  void try_streams(const HostedPtr& capsule);
  Result<void> update(const HostedPtr& capsule,
                      const std::function<void(node::CapsuleRecord&)>& change);

  // Migrations. `arrive`: the record of a capsule that is coming. `started`: it runs here from now
  // on. `leave`: it doesn't anymore, the shell is gone. `forget`: it never came.
  Result<Operation> arrive(const node::CapsuleRecord& record);
  Result<void> started(const HostedPtr& capsule);
  // `serves`: it runs at its target from now on, and gets its pages from here.
  void serves(const HostedPtr& capsule);
  Result<void> leave(const HostedPtr& capsule, const NodeId& to);
  Result<void> forget(const HostedPtr& capsule);
  // The capsule stayed: state as before, streams again.
  Result<void> stayed(const HostedPtr& capsule, const std::string& note);
  // Its copy here is dead without a status of its own.
  Result<void> ended(const HostedPtr& capsule, int wait_status, const std::string& note);

  Result<sys::CgroupGroup> tree(const HostedPtr& capsule);  // Its control group.

  Result<void> kill(const HostedPtr& capsule);
  Result<void> signal(const rpc::Call& call, const HostedPtr& capsule, int number, bool foreground);
  Result<api::WaitReply> wait(const rpc::Call& call, const HostedPtr& capsule,
                              std::int64_t timeout_us);
  Result<void> attach(const rpc::Call& call, const HostedPtr& capsule,
                      const api::AttachRequest::Open& open, rpc::AttachChannel& channel);
  Result<void> logs(const rpc::Call& call, const HostedPtr& capsule, bool follow,
                    rpc::Sink<api::LogsChunk>& sink);
  Result<void> remove(const HostedPtr& capsule);

  // In use at this moment, by its control group; 0 where there is no group or no controller.
  std::uint64_t memory_bytes(const HostedPtr& capsule);

  void sample();  // Called about once a second.

 private:
  friend class Operation;
  void end_operation(const HostedPtr& capsule);
  Result<void> start_shell(const HostedPtr& capsule, const api::RunRequest& request,
                           const Account& account);
  Result<void> start_console(const HostedPtr& capsule, std::uint64_t expected, bool for_anybody);
  void remove_remains();
  Result<void> adopt_one(const HostedPtr& capsule);
  Result<void> set_cpu_quota(const HostedPtr& capsule);
  Result<void> finish_exit(const HostedPtr& capsule, int wait_status, const std::string& note);
  void reap(const std::string& id);
  void reaper();
  void queue_reap(const std::string& id);
  void prune();

  const Config& config_;
  Store store_;
  Spares& spares_;
  std::mutex mutex_;
  std::map<std::string, HostedPtr> capsules_;  // by id
  std::map<std::string, std::string> moved_;
  struct Claim {
    std::string name, ip;
  };
  std::map<std::string, Claim> claims_;  // by id

  std::mutex reap_mutex_;
  std::condition_variable reap_changed_;
  std::deque<std::string> reap_queue_;
  bool stop_ = false;
  std::thread reaper_;
};

}  // namespace godwit::daemon
