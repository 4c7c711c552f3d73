#include "migrate/shell_adapter.h"

#include <fcntl.h>

#include "base/io.h"
#include "base/log.h"

namespace godwit::migrate {

void hurry(const capsule::Shell& shell, bool on) {
  Result<void> set = shell.tree().hurry(on);
  if (!set.ok()) LOG(debug, "weight of {}: {}", shell.tree().name(), set.error().what());
}

Result<capture::TreeRef> tree_of(capsule::Shell& shell) {
  capture::TreeRef tree{.freezer_path = shell.freezer_path(),
                        .freezer_v2 = shell.freezer_v2(),
                        .init_pid = shell.init_pid()};
  capsule::Stdio stdio = TRY(shell.init().stdio());
  constexpr int pipes = 1, pty = 2;
  if (stdio.info.kind == pipes) tree.stdio.kind = capture::TreeStdio::Kind::pipes;
  if (stdio.info.kind == pty) tree.stdio.kind = capture::TreeStdio::Kind::pty;
  tree.stdio.device = stdio.info.device;
  for (std::size_t i = 0; i < 3; ++i) tree.stdio.inode[i] = stdio.info.inode[i];
  return tree;
}

namespace {

std::string sleeps_path(const NodeEnv& env, const CapsuleId& id) {
  return env.capsule_run_dir(id) + "/sleeps";
}

}  // namespace

std::vector<sys::InterruptedSleep> noted_sleeps(const NodeEnv& env, const CapsuleId& id) {
  Result<std::string> noted = read_file(sleeps_path(env, id));
  if (!noted.ok()) return {};  // Never moved, never stopped.
  return sys::interrupted_sleeps_from_text(*noted);
}

void note_sleeps(const NodeEnv& env, const CapsuleId& id,
                 std::span<const sys::InterruptedSleep> sleeps) {
  Result<void> noted = replace_file(sleeps_path(env, id), sys::to_text(sleeps), false);
  if (!noted.ok()) LOG(warn, "sleeps of {}: {}", id, noted.error().what());
}

Result<restore::SkeletonSource::Forked> ShellAdapter::fork_skeleton(pid_t pid) {
  // Born into the tree's control groups (init/children.cc): to add it here once more would wait for
  // a grace period of RCU, 11 ms.
  capsule::Skeleton made = TRY(shell_.init().skeleton(pid));
  return Forked{.node_pid = made.node_pid,
                .channel = std::move(made.channel),
                .channel_there = made.channel_remote};
}

Result<UniqueFd> ShellAdapter::set_clocks(std::int64_t monotonic_delta_ns,
                                          std::int64_t boottime_delta_ns) {
  return shell_.init().clocks(
      {.monotonic_ns = monotonic_delta_ns, .boottime_ns = boottime_delta_ns});
}

Result<UniqueFd> ShellAdapter::stdio(std::uint32_t index, bool original) {
  capsule::Stdio stdio = TRY(shell_.init().stdio(original));
  // A terminal is one description for all three.
  std::size_t at = stdio.fds.size() == 1 ? 0 : index;
  if (at >= stdio.fds.size())
    return make_error(Errc::invalid, "the capsule has no stdio {}", index);
  return std::move(stdio.fds[at]);
}

Result<UniqueFd> ShellAdapter::terminal() {
  TRY(shell_.init().make_terminal());
  return stdio(0, true);
}

Result<UniqueFd> ShellAdapter::socket(const image::Socket& socket) {
  any_socket_ = true;
  return sockets_.make(socket);
}

Result<void> ShellAdapter::open_gate() {
  if (std::exchange(gate_open_, true)) return {};
  TRY(shell_.gate(true));
  return shell_.announce();
}

Result<void> ShellAdapter::start_traffic() {
  if (!any_socket_) return {};  // Then the program needn't wait for it.
  Result<void> open = open_gate();
  Result<void> released = sockets_.release();
  return open.ok() ? released : open;
}

Result<UniqueFd> ShellAdapter::root() {
  return open_fd(fmt::format("/proc/{}/root", shell_.init_pid()), O_PATH | O_DIRECTORY);
}

Result<void> ShellAdapter::set_last_pid(pid_t pid) { return shell_.init().set_last_pid(pid); }
Result<void> ShellAdapter::freeze_tree() { return shell_.tree().freeze(); }
Result<void> ShellAdapter::thaw_tree() { return shell_.tree().thaw(); }

}  // namespace godwit::migrate
