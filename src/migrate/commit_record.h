// The durable half of the commit: one small file per capsule and role, changed in place by
// compare-and-set under a file lock, so that a worker and a daemon that decide at the same moment
// agree (docs/NOTES.md, "Fencing").
//
// A record is 128 bytes, written with one pwrite into one sector: a torn write shows as a wrong
// checksum and is an error, never a state. Made ready before the freeze; the one fdatasync on the
// critical path costs about 0.1 ms here, where creating a file and syncing its folder costs 1 to 4.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/ids.h"
#include "base/node_env.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "migrate/commit.h"

namespace godwit::migrate {

struct RecordContent {
  std::uint32_t state = 0;  // SourceState or TargetState.
  Epoch epoch;
  std::string boot;  // Incarnation of the node that the record speaks of: source journals
                     // hold the target's, target records their own. At most 40 bytes.
  std::int32_t worker_pid = 0;           // In the node's PID namespace,
  std::uint64_t worker_start_ticks = 0;  // with its start time, since PIDs are reused.
};

// Threads: any; each call locks the file. Errors: Errc::os; Errc::invalid for a damaged record.
class CommitRecord {
 public:
  // Replaces what is there. `durable` records are synced (file and folder), now and at each change.
  static Result<CommitRecord> create(const std::string& path, const RecordContent& content,
                                     bool durable);
  // Errc::not_found if there is none.
  static Result<CommitRecord> open(const std::string& path, bool durable);

  Result<RecordContent> read() const;

  // Sets `to` if the state is `from` and the epoch is `epoch`. Returns the state that then stands:
  // `to`, or the other one that was there first. After an error the record is as it was; should
  // even that be impossible, the process ends.
  Result<std::uint32_t> change(Epoch epoch, std::uint32_t from, std::uint32_t to);

 private:
  CommitRecord(UniqueFd fd, std::string path, bool durable)
      : fd_(std::move(fd)), path_(std::move(path)), durable_(durable) {}
  Result<RecordContent> read_locked() const;
  Result<void> write_locked(const RecordContent& content) const;
  void take_back(const RecordContent& before) const;

  UniqueFd fd_;
  std::string path_;
  bool durable_;
};

std::string journal_path(const NodeEnv& env, const CapsuleId& id);  // Source side, on /run.
std::string grant_path(const NodeEnv& env, const CapsuleId& id);    // Target side, on disk.

// Start time of a process in clock ticks since boot (field 22 of /proc/PID/stat).
Result<std::uint64_t> process_start_ticks(std::int32_t pid);
// Whether the worker that wrote the record still lives.
bool worker_alive(const RecordContent& content);

}  // namespace godwit::migrate
