// What a daemon must find again after it was killed: one file per capsule in RUN_DIR/registry.
//
//   ID.json   node::CapsuleRecord, for people to read too
//   ID.log    node::SavedLog of an ended capsule
//   ID.moved  name of the node to which the capsule went: a hint, others know better
//
// On /run: a reboot ends the processes that these files speak of.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "wire/node.pb.h"

namespace godwit::daemon {

// Threads: any, but for one capsule one at a time.
class Store {
 public:
  static Result<Store> open(const std::string& run_dir);

  // Damaged files are logged and left out; they are not deleted.
  Result<std::vector<node::CapsuleRecord>> load() const;
  Result<void> save(const node::CapsuleRecord& record) const;
  Result<void> remove(const CapsuleId& id) const;  // Record and log; none is fine.

  Result<void> save_log(const CapsuleId& id, const node::SavedLog& log) const;
  Result<node::SavedLog> load_log(const CapsuleId& id) const;

  Result<std::map<std::string, std::string>> load_moved() const;  // id -> node
  Result<void> save_moved(const CapsuleId& id, const NodeId& to) const;
  Result<void> forget_moved(const CapsuleId& id) const;

 private:
  explicit Store(std::string dir) : dir_(std::move(dir)) {}
  std::string path(const CapsuleId& id, const char* suffix) const;

  std::string dir_;
};

}  // namespace godwit::daemon
