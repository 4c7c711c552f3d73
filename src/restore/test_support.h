// For the tests of this folder: a shell with a simple init, programs that are functions, a capture
// that covers what these programs do, and the copying of their pages.
#pragma once

#include <sys/types.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "image/image.pb.h"
#include "restore/restorer.h"
#include "restore/skeleton_source.h"
#include "sys/cgroup.h"

namespace godwit::restore {

// Why the tests can't run here; empty if they can.
std::string why_no_shells();

// Namespaces (pid, mount), a cgroup, an init that forks what it is asked to.
class TestShell final : public SkeletonSource {
 public:
  // `program` is what spawn() starts; its return value is the exit code.
  static Result<std::unique_ptr<TestShell>> create(const std::function<int()>& program = {});
  ~TestShell() override;

  // Its stdin, stdout and stderr are this shell's pipes. The answer is the node's pid.
  Result<pid_t> spawn(pid_t pid);
  // Wait status of the child of init with this pid in the shell.
  Result<int> wait_child(pid_t pid);
  void kill_init();  // And with it everything.

  // Our ends.
  int stdin_fd() const { return stdin_[1].get(); }
  int stdout_fd() const { return stdout_[0].get(); }
  // One byte of stdout; Errc::peer_lost or timeout if none comes.
  Result<char> read_byte();
  // `bytes` of stdout.
  Result<std::string> read_bytes(std::size_t bytes);
  Result<void> write_byte(char byte);

  Result<Forked> fork_skeleton(pid_t pid) override;
  pid_t init_pid() const override { return init_pid_; }
  Result<UniqueFd> set_clocks(std::int64_t monotonic_delta_ns,
                              std::int64_t boottime_delta_ns) override;
  Result<UniqueFd> stdio(std::uint32_t index, bool original) override;
  Result<UniqueFd> terminal() override;
  Result<UniqueFd> socket(const image::Socket& socket) override;
  Result<void> start_traffic() override { return {}; }
  Result<UniqueFd> root() override;
  Result<void> set_last_pid(pid_t pid) override;
  Result<void> freeze_tree() override;
  Result<void> thaw_tree() override;
  void fail_next_thaw() { fail_thaw_ = true; }

 private:
  TestShell() = default;
  Result<std::int64_t> ask(char what, std::int64_t a, std::int64_t b, int send_fd);
  Result<pid_t> child_node_pid(pid_t pid);

  pid_t init_pid_ = 0;
  UniqueFd channel_;
  UniqueFd stdin_[2], stdout_[2];
  std::unique_ptr<sys::CgroupGroup> group_;
  bool fail_thaw_ = false;
};

// A program that was stopped: seized by us, every thread in a ptrace stop.
class StoppedProgram {
 public:
  static Result<StoppedProgram> stop(pid_t node_pid, pid_t pid);
  StoppedProgram(StoppedProgram&&) = default;
  StoppedProgram& operator=(StoppedProgram&&) = delete;
  ~StoppedProgram();  // Ends it.
  Result<image::Capsule> describe();
  Result<void> resume();  // It runs on; the destructor no longer ends it.
  // All that the image says to be content, from here to there. Private anonymous memory, private
  // files.
  Result<void> copy_content(const image::Capsule& image, Restorer& to);

 private:
  StoppedProgram() = default;
  Result<void> describe_threads(image::Process& p);
  Result<void> describe_process(image::Process& p);
  Result<void> describe_memory(image::Capsule& c);
  Result<void> describe_files(image::Capsule& c);
  Result<std::uint32_t> private_file(image::Capsule& c, const std::string& proc_path,
                                     image::PrivateFile::Kind kind, const std::string& name);
  Result<std::uint32_t> mapped_file(image::Capsule& c, const std::string& proc_path,
                                    const std::string& name);
  Result<void> copy_process(const image::Process& p, Restorer& to);

  pid_t node_pid_ = 0, pid_ = 0;
  std::vector<pid_t> tids_;
  std::map<std::uint32_t, UniqueFd> content_;        // By PrivateFile id.
  std::map<std::uint64_t, std::uint32_t> by_inode_;  // To PrivateFile id.
};

}  // namespace godwit::restore
