// How a capsule's init comes into being: `godwit-init --start`.
#pragma once

#include "capsule/init/children.h"
#include "capsule/init/fail.h"

namespace godwit::init {

struct CgroupMount {
  bool v2;
  const char* controllers;  // v1: the mount's option.
  const char* path;
};

struct StartOrder {
  const char* run_dir = nullptr;  // Where init.sock goes.
  const char* tmp_dir = nullptr;  // Becomes the capsule's /tmp.
  const char* hostname = nullptr;
  const char* tree_v2 = nullptr;  // Groups, as paths.
  const char* init_v2 = nullptr;
  const char* tree_freezer = nullptr;  // v1, where it is what freezes.
  const char* init_freezer = nullptr;
  const char* tree_v1[cgroups_max];  // All others of v1.
  const char* init_v1[cgroups_max];
  int tree_v1_count = 0;
  int init_v1_count = 0;
  CgroupMount cgroup_mounts[cgroups_max];
  int cgroup_mounts_count = 0;
  const char* hidden[8];  // Directories of the node that the capsule must not see.
  int hidden_count = 0;
  int report = 3;  // Where "pid N" or "error TEXT" is said.
};

// In PID 1 of the capsule: everything private is mounted.
Fail mount_private(const StartOrder& order);

// Makes the namespaces and forks PID 1, which goes on in `serve`. Returns the exit status of the
// starter.
int start(const StartOrder& order);

}  // namespace godwit::init
