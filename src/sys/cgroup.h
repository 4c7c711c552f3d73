// Control groups, version 1, version 2 or both, wherever they are mounted.
//
// A `Group` is one name in every hierarchy that godwit uses: the v2 hierarchy, if one is mounted
// (with or without controllers), and those v1 hierarchies that offer what v2 doesn't here.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"

namespace godwit::sys {

// One mounted hierarchy.
struct CgroupHierarchy {
  std::string mount;  // Mount point, as this process sees it.
  bool v2 = false;
  std::vector<std::string> controllers;  // v1: by mount options. v2: what the mount's root offers.

  bool has(std::string_view controller) const;
};

// All hierarchies mounted in this process's mount namespace, v2 first, each once.
Result<std::vector<CgroupHierarchy>> mounted_cgroups();

class CgroupGroup {
 public:
  // `name` is relative to each mount point ("godwit/ID/tree"), without "..". Creates the missing
  // directories on the way in each hierarchy; v2 controllers are delegated down to `name`'s parent,
  // which therefore must not hold processes of its own (v2's rule of no internal processes).
  static Result<CgroupGroup> create(const std::string& name);

  // Fails with Errc::not_found unless the group exists in at least one hierarchy.
  static Result<CgroupGroup> open(const std::string& name);

  // The group `name` below this one, in the hierarchies where it exists: cheaper than `open`, which
  // looks for what is mounted. Errc::not_found.
  Result<CgroupGroup> child(const std::string& name) const;

  const std::string& name() const { return name_; }

  // The group's directory in each hierarchy used. `open` leaves out those where it doesn't exist.
  struct Place {
    CgroupHierarchy hierarchy;
    std::string path;
  };
  const std::vector<Place>& places() const { return places_; }

  // Where the group is frozen: the v2 directory where there is one, else that of the v1 freezer.
  Result<std::string> freezer_path() const;
  bool freezer_v2() const;

  Result<void> add(pid_t pid) const;  // The whole process, into every hierarchy.

  // Bounded waits; Errc::timeout when a task doesn't come to rest (uninterruptible sleep).
  Result<void> freeze() const;
  Result<void> thaw() const;
  Result<bool> is_frozen() const;
  // It was told to freeze and not to thaw, whether all have come to rest or not.
  Result<bool> is_held() const;

  // As a fraction of one core: 1.5 is one and a half. 0 removes the limit.
  Result<void> set_cpu_quota(double cores) const;
  // Whether its threads get a processor before those of others (the largest weight there is), or
  // as a new group's do. Errc::unsupported without a cpu controller.
  Result<void> hurry(bool on) const;
  // 0 removes the limit.
  Result<void> set_memory_limit(std::uint64_t bytes) const;
  // Without file pages that the kernel takes back before it lets anybody go short.
  Result<std::uint64_t> memory_usage_bytes() const;
  Result<std::uint64_t> cpu_usage_us() const;

  // Process ids as this process's PID namespace numbers them, of this group and the groups below
  // it.
  Result<std::vector<pid_t>> pids() const;

  // Kills what is in it and below, also if frozen, then waits until it is empty (Errc::timeout).
  Result<void> kill_all() const;

  // kill_all, then removes the directories, children first. A group that is gone is success.
  static Result<void> remove(const std::string& name);

 private:
  CgroupGroup(std::string name, std::vector<Place> places)
      : name_(std::move(name)), places_(std::move(places)) {}
  const Place* with_controller(std::string_view controller) const;
  const Place* v2_place() const;
  const Place* freezer_place() const;
  Result<void> kill_members(bool everywhere) const;
  Result<std::vector<pid_t>> members(bool everywhere) const;

  std::string name_;
  std::vector<Place> places_;
};

}  // namespace godwit::sys
