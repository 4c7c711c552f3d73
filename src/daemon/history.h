// Every migration that was tried from this node, kept in SQLite across reboots.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/result.h"
#include "wire/api.pb.h"

struct sqlite3;

namespace godwit::daemon {

// Threads: any.
class History {
 public:
  static constexpr int kept_max = 100'000;  // Older ones are dropped.

  static Result<std::unique_ptr<History>> open(const std::string& path);
  ~History();
  History(const History&) = delete;
  History& operator=(const History&) = delete;

  // One row per migration id: an outcome in doubt is replaced when the doubt ends.
  Result<void> record(const api::MigrationResult& migration);

  struct Filter {
    std::string capsule = {};  // Name or id; empty: all.
    bool any_user = false;
    std::uint32_t uid = 0;  // Unless any_user.
    std::uint32_t limit = 100;
  };
  // Newest first.
  Result<std::vector<api::MigrationResult>> list(const Filter& filter);

 private:
  explicit History(sqlite3* db) : db_(db) {}
  std::mutex mutex_;
  sqlite3* db_;
};

}  // namespace godwit::daemon
