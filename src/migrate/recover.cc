#include "migrate/recover.h"

#include "capsule/shell.h"
#include "capture/describe.h"
#include "capture/freeze.h"
#include "migrate/capsule_files.h"
#include "migrate/capsule_network.h"
#include "migrate/commit_record.h"
#include "migrate/fault_keeper.h"
#include "migrate/file_identity.h"
#include "migrate/shell_adapter.h"

namespace godwit::migrate {
namespace {

wire::Report report_of(const Result<void>& outcome) {
  wire::Report report;
  report.set_outcome(outcome.ok() ? wire::Report::DONE : wire::Report::FAILED);
  if (!outcome.ok()) report.set_reason(outcome.error().what());
  return report;
}

Result<void> recover(const NodeEnv& env, const wire::RecoverOrder& order) {
  CapsuleId id{order.capsule()};
  if (order.action() == wire::RecoverOrder::DESTROY) return capsule::Shell::destroy(env, id);
  capsule::Shell shell = TRY(capsule::Shell::open(env, id));
  hurry(shell, false);
  if (order.action() == wire::RecoverOrder::START) {
    TRY(recover_traffic(shell));
    // Contexts are clean since the seal, and a thread that waits for a missing page can't be
    // seized.
    TRY(shell.tree().thaw());
    CommitRecord record = TRY(CommitRecord::open(grant_path(env, id), true));
    if (TRY(record.read()).state == static_cast<std::uint32_t>(TargetState::granted))
      TRY(memory::TargetMemory::release_held(TRY(fault_keeper(env, id))));
    TRY(shell.announce());
    return shell.init().relay_go();
  }
  TRY(recover_traffic(shell));
  TRY(capture::recover(TRY(tree_of(shell))));
  return shell.init().relay_go();
}

Result<void> freeze(const NodeEnv& env, const wire::FreezeOrder& order) {
  capsule::Shell shell = TRY(capsule::Shell::open(env, CapsuleId{order.capsule()}));
  // Thawing is the same as after a tracer's death: contexts are made clean first.
  if (!order.frozen()) return capture::recover(TRY(tree_of(shell)));
  capture::FrozenTree tree = TRY(capture::freeze(TRY(tree_of(shell))));
  TRY(tree.seal());
  tree.commit();
  return {};
}

// What `compare` reads, and nothing else: an image of 60,000 mappings would be too long a question.
image::Capsule files_of(const image::Capsule& whole) {
  image::Capsule files;
  for (const image::Process& process : whole.processes())
    *files.add_processes()->mutable_mm()->mutable_mapped() = process.mm().mapped();
  for (const image::OpenFile& file : whole.files())
    if (file.has_ref()) *files.add_files()->mutable_ref() = file.ref();
  return files;
}

Result<std::vector<std::string>> compare(const wire::CheckOrder& order) {
  // A shell made here would show the node's own files, beside those that travel with the capsule.
  FileIdentity identity("", {order.shared_dirs().begin(), order.shared_dirs().end()});
  std::vector<std::string> reasons;
  TRY(identity.compare(order.files(), reasons));
  return reasons;
}

Result<std::vector<std::string>> check(const NodeEnv& env, const wire::CheckOrder& order,
                                       image::Capsule& must_be_there, std::uint64_t& kernel_needs) {
  capsule::Shell shell = TRY(capsule::Shell::open(env, CapsuleId{order.capsule()}));
  CapsuleNetwork network(shell);
  capture::TreeRef tree = TRY(tree_of(shell));
  tree.connections = &network;
  std::vector<std::string> reasons = TRY(capture::preflight(tree));
  if (!reasons.empty()) return reasons;  // What can't be described can't be checked further.
  if (order.inside()) {
    std::vector<sys::InterruptedSleep> sleeps = noted_sleeps(env, CapsuleId{order.capsule()});
    reasons = TRY(capture::preflight_inside(tree, sleeps, &kernel_needs));
    note_sleeps(env, CapsuleId{order.capsule()}, sleeps);
  }
  capture::LiveDescription live = TRY(capture::describe_live(tree));
  std::string root = fmt::format("/proc/{}/root", shell.init_pid());
  CapsuleFiles files(root);
  TRY(files.collect(live.capsule, live.node_pids));
  FileIdentity identity(root, {order.shared_dirs().begin(), order.shared_dirs().end()},
                        hash_dir(env));
  TRY(identity.identify(live.capsule, reasons));
  must_be_there = files_of(live.capsule);
  return reasons;
}

}  // namespace

wire::Report run_recover(const NodeEnv& env, const wire::RecoverOrder& order) {
  return report_of(recover(env, order));
}

wire::Report run_freeze(const NodeEnv& env, const wire::FreezeOrder& order) {
  return report_of(freeze(env, order));
}

wire::Report run_check(const NodeEnv& env, const wire::CheckOrder& order) {
  wire::Report report;
  std::uint64_t kernel_needs = 0;
  Result<std::vector<std::string>> reasons =
      order.has_files() ? compare(order) : check(env, order, *report.mutable_files(), kernel_needs);
  report.set_kernel_needs(kernel_needs);
  report.set_outcome(reasons.ok() ? wire::Report::DONE : wire::Report::FAILED);
  if (!reasons.ok()) {
    report.set_reason(reasons.error().what());
    return report;
  }
  for (const std::string& reason : *reasons) report.add_reasons(reason);
  return report;
}

}  // namespace godwit::migrate
