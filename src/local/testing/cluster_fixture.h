// For tests of the local cluster: clusters with names that nobody else has, removed whatever
// happens, and a look into their nodes.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

#include "base/io.h"
#include "local/local_cluster.h"
#include "sys/cgroup.h"

#define ASSERT_OK(expr)                                    \
  do {                                                     \
    auto&& outcome_ = (expr);                              \
    ASSERT_TRUE(outcome_.ok()) << outcome_.error().what(); \
  } while (false)

#define EXPECT_OK(expr)                                    \
  do {                                                     \
    auto&& outcome_ = (expr);                              \
    EXPECT_TRUE(outcome_.ok()) << outcome_.error().what(); \
  } while (false)

namespace godwit::local {

inline std::string own_directory() {
  return std::filesystem::read_symlink("/proc/self/exe").parent_path();
}

inline std::string unique_name() { return "test-" + random_hex(5); }

inline UpOptions options_for(const std::string& name, int nodes) {
  UpOptions options;
  options.name = name;
  options.nodes = nodes;
  options.daemon_path = own_directory() + "/local_test_daemon";
  return options;
}

// What of the cluster can still be seen anywhere; empty: nothing.
inline std::string leftovers(const std::string& name) {
  std::string found;
  for (const std::string& path :
       {"/run/godwit/local/" + name, "/run/godwit/local/" + name + ".lock",
        "/var/lib/godwit-local/" + name})
    if (std::filesystem::exists(path)) found += path + "\n";
  Result<std::vector<sys::CgroupHierarchy>> hierarchies = sys::mounted_cgroups();
  if (!hierarchies.ok()) return hierarchies.error().what();
  for (const sys::CgroupHierarchy& hierarchy : *hierarchies) {
    std::string path = hierarchy.mount + "/godwit-" + name;
    if (std::filesystem::exists(path)) found += path + "\n";
  }
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", ignored)) {
    Result<std::string> command = read_file(entry.path().string() + "/cmdline");
    if (command.ok() && command->find("/run/godwit/local/" + name + "/") != std::string::npos)
      found += entry.path().string() + " " + command->c_str() + "\n";
  }
  Result<std::string> mounts = read_file("/proc/self/mountinfo");
  if (!mounts.ok() || mounts->find("/" + name) != std::string::npos) found += "a mount\n";
  return found;
}

struct Output {
  int status = -1;  // Of the shell; -1: it was killed.
  std::string text;
};

// Runs a command line in all namespaces of the node (not in its cgroup).
inline Output in_node(const NodeStatus& node, const std::string& command) {
  std::string line =
      "nsenter -t " + std::to_string(node.init_pid) + " -a -- sh -c '" + command + "' 2>&1";
  Output output;
  FILE* pipe = ::popen(line.c_str(), "re");
  if (pipe == nullptr) return output;
  char buffer[4096];
  while (std::size_t got = std::fread(buffer, 1, sizeof(buffer), pipe))
    output.text.append(buffer, got);
  int status = ::pclose(pipe);
  if (WIFEXITED(status)) output.status = WEXITSTATUS(status);
  while (!output.text.empty() && output.text.back() == '\n') output.text.pop_back();
  return output;
}

class LocalClusterTest : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root to make namespaces";
  }
  void TearDown() override {
    for (const std::string& name : names_) {
      Result<void> down = local_down(name);
      EXPECT_TRUE(down.ok()) << down.error().what();
      EXPECT_EQ(leftovers(name), "") << "of cluster " << name;
    }
  }

  std::string new_name() { return names_.emplace_back(unique_name()); }

  ClusterStatus status(const std::string& name) {
    Result<ClusterStatus> now = local_status(name);
    EXPECT_TRUE(now.ok()) << now.error().what();
    return now.ok() ? *now : ClusterStatus{};
  }

  std::vector<std::string> names_;
};

}  // namespace godwit::local
