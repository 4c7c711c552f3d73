

// clang-format off: <signal.h> has a macro named as a field of the image.
#include "daemon/host.h"
// clang-format on

#include <signal.h>

#include <algorithm>
#include <chrono>
#include <filesystem>

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "base/thread_name.h"
#include "capsule/shell.h"
#include "daemon/capsule_spec.h"
#include "sys/namespaces.h"

namespace godwit::daemon {
namespace {

constexpr std::size_t id_prefix_min = 4;

// The operation of a capsule that comes from another node, and how long another one waits for its
// end.
constexpr const char* arrival = "migrated here";
constexpr std::chrono::seconds arrival_end_max{30};

}  // namespace

Operation::~Operation() {
  if (host_ != nullptr) host_->end_operation(capsule_);
}

Host::Host(const Config& config, Store store, Spares& spares)
    : config_(config), store_(std::move(store)), spares_(spares) {
  reaper_ = std::thread([this] {
    name_thread("reaper");
    reaper();
  });
}

Host::~Host() {
  {
    const std::lock_guard lock(reap_mutex_);
    stop_ = true;
  }
  reap_changed_.notify_all();
  reaper_.join();
  for (const auto& capsule : all()) {
    std::shared_ptr<Console> console;
    const std::lock_guard lock(capsule->mutex);
    console.swap(capsule->console);
  }
}

// ---- Start ----

Result<HostedPtr> Host::run(const api::RunRequest& request, const Account& account,
                            const std::string& id, const std::string& name, const std::string& ip,
                            std::uint32_t prefix_len) {
  auto capsule = std::make_shared<Hosted>();
  auto& record = capsule->record;
  *record.mutable_spec() = make_spec(config_, request, account, id, name, ip, prefix_len);
  record.set_state(state::starting);
  record.set_created_realtime_us(realtime_us());
  record.set_attach_id(request.attach_id());
  TRY(store_.save(record));
  {
    const std::lock_guard lock(mutex_);
    capsules_[id] = capsule;
  }
  auto begun = begin(capsule, "started");
  auto result = start_shell(capsule, request, account);
  spares_.restock();
  if (result.ok()) return capsule;
  // Nothing ran (or what ran is killed here): as if it had never been asked for.
  if (auto gone = capsule::Shell::destroy(config_.env, capsule->id()); !gone.ok()) {
    LOG(error, "capsule {} that could not start: {}", id, gone.error().what());
  }
  TRY(forget(capsule));
  return std::move(result).error();
}

Result<void> Host::start_shell(const HostedPtr& capsule, const api::RunRequest& request,
                               const Account&) {
  const image::CapsuleSpec spec = capsule->record.spec();
  auto shell = TRY(capsule::Shell::create(config_.env, spec, spares_.take_shell()));
  TRY(set_cpu_quota(capsule));
  std::error_code error;
  if (!std::filesystem::is_directory(fmt::format("/proc/{}/root{}", shell.init_pid(), spec.cwd()),
                                     error))
    return make_error(Errc::refused, "the working directory {} doesn't exist on {}", spec.cwd(),
                      config_.env.node);
  TRY(shell.gate(true));
  TRY(shell.announce());
  auto spawned = TRY(shell.init().spawn(make_spawn(spec, request)).with(spec.argv(0)));
  TRY(start_console(capsule, request.attach_id(), false));
  {
    const std::lock_guard lock(capsule->mutex);
    capsule->node_pid = spawned.node_pid;
    if (request.attach_id() == 0 && !request.keep_stdin() && !request.tty()) {
      capsule->console->close_stdin();
    }
  }
  return update(capsule, [](auto& record) { record.set_state(state::running); });
}

Result<sys::CgroupGroup> Host::tree(const HostedPtr& capsule) {
  return sys::CgroupGroup::open(TRY(capsule::Shell::cgroup_name(config_.env, capsule->id())) +
                                "/tree");
}

Result<void> Host::set_cpu_quota(const HostedPtr& capsule) {
  const double cpus = capsule->record.spec().cpus();
  if (cpus <= 0) return {};
  auto tree = TRY(this->tree(capsule));
  // A node with fewer cores gives what it has: it may have moved here from a larger one.
  const double cores = config_.cores > 0 ? std::min(cpus, config_.cores) : cpus;
  return tree.set_cpu_quota(cores * config_.core_speed).with("CPU limit");
}

Result<void> Host::start_console(const HostedPtr& capsule, std::uint64_t expected,
                                 bool for_anybody) {
  const std::string id = capsule->id().value;
  Console::Setup setup;
  setup.init_socket = capsule::Shell::socket_path(config_.env, capsule->id());
  setup.node = config_.env.node;
  setup.tty = capsule->record.spec().tty();
  setup.expected = expected;
  setup.keep_for_anybody = for_anybody;
  Console::Hooks hooks;
  std::weak_ptr<Hosted> weak = capsule;
  hooks.exited = [this, weak, id](int status) {
    if (auto capsule = weak.lock()) {
      const std::lock_guard lock(capsule->mutex);
      capsule->exit_pending = status;
    }
    queue_reap(id);
  };
  hooks.lost = [this, weak, id] {
    if (auto capsule = weak.lock()) {
      const std::lock_guard lock(capsule->mutex);
      capsule->init_lost = true;
    }
    queue_reap(id);
  };
  hooks.attached = [this, weak, id](std::uint64_t attach_id) {
    auto capsule = weak.lock();
    if (!capsule) return;
    auto saved = update(capsule, [&](auto& record) { record.set_attach_id(attach_id); });
    if (!saved.ok()) LOG(error, "record of {}: {}", id, saved.error().what());
  };
  auto console = TRY(Console::start(std::move(setup), std::move(hooks)));
  std::shared_ptr<Console> before;  // Destroyed without the lock: its thread may want it.
  const std::lock_guard lock(capsule->mutex);
  capsule->init_lost = false;
  before.swap(capsule->console);
  capsule->console = std::move(console);
  if (before) before->close("the streams were set up again");
  return {};
}

// ---- A daemon was here before ----

Result<std::vector<HostedPtr>> Host::adopt() {
  {
    auto moved = TRY(store_.load_moved());
    const std::lock_guard lock(mutex_);
    moved_ = std::move(moved);
  }
  std::vector<HostedPtr> undecided;
  std::vector<std::jthread> threads;  // An init that doesn't answer must not hold up the others.
  for (auto& record : TRY(store_.load())) {
    auto capsule = std::make_shared<Hosted>();
    capsule->record = std::move(record);
    {
      const std::lock_guard lock(mutex_);
      capsules_[capsule->id().value] = capsule;
    }
    const std::string& state = capsule->record.state();
    if (state == state::exited) continue;
    if (state == state::migrating || state == state::in_doubt || capsule->record.incoming()) {
      undecided.push_back(capsule);
      continue;
    }
    if (capsule->record.residual_size() > 0) undecided.push_back(capsule);  // Pages still come.
    threads.emplace_back([this, capsule] {
      auto adopted = adopt_one(capsule);
      if (adopted.ok()) return;
      LOG(error, "capsule {}: {}", capsule->id(), adopted.error().what());
      if (auto end = ended(capsule, SIGKILL, adopted.error().what()); !end.ok()) {
        LOG(error, "capsule {}: {}", capsule->id(), end.error().what());
      }
    });
  }
  threads.clear();
  remove_remains();
  return undecided;
}

// What has a directory but no record belongs to nobody: a `run` that was killed at its start,
// spares of the daemon before, shells that were retired in its time, a /tmp of before a reboot.
void Host::remove_remains() {
  std::error_code error;
  for (const auto& entry :
       std::filesystem::directory_iterator(config_.env.run_dir + "/capsules", error)) {
    const std::string id = entry.path().filename();
    if (by_id(id)) continue;
    LOG(info, "removing what is left of capsule {}", id);
    if (auto gone = capsule::Shell::destroy(config_.env, CapsuleId{id}); !gone.ok()) {
      LOG(error, "capsule {}: {}", id, gone.error().what());
    }
  }
  if (auto gone = capsule::Shell::remove_orphaned_state(config_.env); !gone.ok())
    LOG(error, "{}", gone.error().what());
}

Result<void> Host::adopt_one(const HostedPtr& capsule) {
  auto shell = TRY(capsule::Shell::open(config_.env, capsule->id()));
  const auto status = TRY(shell.init().status());
  if (capsule->record.state() == state::starting) {
    // The client was told nothing yet, or that it failed: whoever asked will ask again.
    return make_error(Errc::cancelled, "godwitd was restarted while the capsule was started");
  }
  if (status.exited == 0) {
    if (auto pidfd = shell.init().main_pidfd(); pidfd.ok()) {
      auto pid = sys::pid_of_pidfd(pidfd->get());
      if (pid.ok()) capsule->node_pid = *pid;
    }
  }
  TRY(start_console(capsule, capsule->record.attach_id(), false));
  LOG(info, "adopted capsule {} ({})", capsule->id(), capsule->record.spec().name());
  return {};
}

// ---- Records ----

Result<void> Host::update(const HostedPtr& capsule,
                          const std::function<void(node::CapsuleRecord&)>& change) {
  const std::lock_guard lock(capsule->mutex);
  if (!capsule->left_to.empty()) return {};
  node::CapsuleRecord next = capsule->record;
  change(next);
  TRY(store_.save(next));
  capsule->record = std::move(next);
  capsule->changed.notify_all();
  return {};
}

HostedPtr Host::by_id(const std::string& id) {
  const std::lock_guard lock(mutex_);
  const auto found = capsules_.find(id);
  return found == capsules_.end() ? nullptr : found->second;
}

std::vector<HostedPtr> Host::all() {
  const std::lock_guard lock(mutex_);
  std::vector<HostedPtr> all;
  for (const auto& [id, capsule] : capsules_) all.push_back(capsule);
  return all;
}

std::optional<std::string> Host::moved_to(const std::string& id) {
  const std::lock_guard lock(mutex_);
  const auto found = moved_.find(id);
  if (found == moved_.end()) return std::nullopt;
  return found->second;
}

// A live capsule is meant before an ended one of the same name, the latest before older ones.
Result<HostedPtr> Host::find(std::uint32_t uid, const std::string& reference) {
  HostedPtr best;
  std::pair<int, std::int64_t> best_rank{-1, 0};
  int prefix_matches = 0;
  for (const auto& capsule : all()) {
    const std::lock_guard lock(capsule->mutex);
    const auto& spec = capsule->record.spec();
    if (capsule->record.incoming() || capsule->serving || (uid != 0 && spec.uid() != uid)) continue;
    int rank = -1;
    if (spec.id() == reference) {
      rank = 3;
    } else if (spec.name() == reference) {
      rank = capsule->ended() ? 1 : 2;
    } else if (reference.size() >= id_prefix_min && spec.id().starts_with(reference)) {
      rank = 0;
      prefix_matches++;
    }
    const std::pair<int, std::int64_t> ranked{rank, capsule->record.created_realtime_us()};
    if (rank >= 0 && ranked > best_rank) {
      best = capsule;
      best_rank = ranked;
    }
  }
  if (!best) return make_error(Errc::not_found, "there is no capsule {}", reference);
  if (best_rank.first == 0 && prefix_matches > 1) {
    return make_error(Errc::invalid, "{} is the beginning of several ids", reference);
  }
  return best;
}

bool Host::is_arriving(std::uint32_t uid, const std::string& reference) {
  for (const auto& capsule : all()) {
    const std::lock_guard lock(capsule->mutex);
    const auto& spec = capsule->record.spec();
    if (!capsule->record.incoming() || (uid != 0 && spec.uid() != uid)) continue;
    if (spec.name() == reference ||
        (reference.size() >= id_prefix_min && spec.id().starts_with(reference))) {
      return true;
    }
  }
  return false;
}

bool Host::is_free(const std::string& name, const std::string& ip, const std::string& id,
                   bool& ip_taken) {
  bool name_taken = false;
  const auto compare = [&](const std::string& other_name, const std::string& other_ip) {
    name_taken = name_taken || other_name == name;
    ip_taken = ip_taken || (!ip.empty() && other_ip == ip);
  };
  for (const auto& capsule : all()) {
    const std::lock_guard lock(capsule->mutex);
    const auto& spec = capsule->record.spec();
    if (spec.id() != id && !capsule->ended()) compare(spec.name(), spec.ip());
  }
  const std::lock_guard lock(mutex_);
  for (const auto& [other, claim] : claims_) {
    if (other != id) compare(claim.name, claim.ip);
  }
  return !name_taken;
}

bool Host::claim(const std::string& name, const std::string& ip, const std::string& id,
                 bool& ip_taken) {
  {
    const std::lock_guard lock(mutex_);
    claims_[id] = {name, ip};
  }
  return is_free(name, ip, id, ip_taken);
}

void Host::unclaim(const std::string& id) {
  const std::lock_guard lock(mutex_);
  claims_.erase(id);
}

// ---- Operations ----

Result<Operation> Host::begin(const HostedPtr& capsule, const std::string& what) {
  std::unique_lock lock(capsule->mutex);
  // Its source has said "moved" already, while here the worker that brought it still ends.
  capsule->changed.wait_for(lock, arrival_end_max, [&] {
    return capsule->operation != arrival || capsule->record.incoming();
  });
  const std::string& name = capsule->record.spec().name();
  if (!capsule->left_to.empty()) {
    return make_error(Errc::not_found, "{} has moved to {}", name, capsule->left_to);
  }
  if (capsule->ended() || capsule->exit_pending) {
    return make_error(Errc::refused, "{} has ended", name);
  }
  if (!capsule->operation.empty()) {
    return make_error(Errc::refused, "{} is being {}", name, capsule->operation);
  }
  if (capsule->record.state() == state::in_doubt) {
    return make_error(Errc::in_doubt, "{} is in doubt: {}", name, capsule->record.note());
  }
  capsule->operation = what;
  return Operation(*this, capsule);
}

Operation Host::resume(const HostedPtr& capsule, const std::string& what) {
  const std::lock_guard lock(capsule->mutex);
  capsule->operation = what;
  return Operation(*this, capsule);
}

void Host::try_streams(const HostedPtr& capsule) {
  // Where it fails the worker has taken the shell apart already; the outcome comes soon.
  auto started = start_console(capsule, capsule->record.attach_id(), true);
  if (!started.ok()) LOG(info, "streams of {}: {}", capsule->id(), started.error().what());
}

void Host::end_operation(const HostedPtr& capsule) {
  {
    const std::lock_guard lock(capsule->mutex);
    capsule->operation.clear();
    capsule->changed.notify_all();
    if (!capsule->exit_pending && !capsule->init_lost) return;
  }
  queue_reap(capsule->id().value);
}

Result<Operation> Host::arrive(const node::CapsuleRecord& record) {
  auto capsule = std::make_shared<Hosted>();
  capsule->record = record;
  capsule->operation = arrival;
  TRY(store_.save(record));
  const std::lock_guard lock(mutex_);
  capsules_[record.spec().id()] = capsule;
  return Operation(*this, capsule);
}

Result<void> Host::started(const HostedPtr& capsule) {
  {
    const std::lock_guard lock(mutex_);
    moved_.erase(capsule->id().value);
  }
  TRY(store_.forget_moved(capsule->id()));
  TRY(update(capsule, [](auto& record) {
    record.set_incoming(false);
    record.set_state(state::running);
    record.set_migrations(record.migrations() + 1);
    record.clear_target();
    record.clear_note();
  }));
  if (auto limited = set_cpu_quota(capsule); !limited.ok()) {
    LOG(error, "capsule {}: {}", capsule->id(), limited.error().what());
  }
  auto init = capsule::InitClient::connect(capsule::Shell::socket_path(config_.env, capsule->id()));
  if (init.ok()) {
    if (auto pidfd = init->main_pidfd(); pidfd.ok()) {
      auto pid = sys::pid_of_pidfd(pidfd->get());
      const std::lock_guard lock(capsule->mutex);
      if (pid.ok()) capsule->node_pid = *pid;
    }
  }
  return start_console(capsule, capsule->record.attach_id(), true);
}

void Host::serves(const HostedPtr& capsule) {
  std::shared_ptr<Console> console;
  std::string target;
  {
    const std::lock_guard lock(capsule->mutex);
    if (capsule->serving) return;
    capsule->serving = true;
    target = capsule->record.target();
    console.swap(capsule->console);
    capsule->changed.notify_all();
  }
  if (!console) return;
  console->close("moved to " + target);
  console->stop();
}

Result<void> Host::leave(const HostedPtr& capsule, const NodeId& to) {
  // The hint first: a daemon killed between the two has one place too many, not one too few.
  TRY(store_.save_moved(capsule->id(), to));
  TRY(store_.remove(capsule->id()));
  {
    const std::lock_guard lock(mutex_);
    moved_[capsule->id().value] = to.value;
    capsules_.erase(capsule->id().value);
  }
  std::shared_ptr<Console> console;
  {
    const std::lock_guard lock(capsule->mutex);
    capsule->left_to = to.value;
    console.swap(capsule->console);
    capsule->changed.notify_all();
  }
  if (console) {
    console->close("moved to " + to.value);
    console->stop();
  }
  return {};
}

Result<void> Host::forget(const HostedPtr& capsule) {
  TRY(store_.remove(capsule->id()));
  {
    const std::lock_guard lock(mutex_);
    capsules_.erase(capsule->id().value);
  }
  const std::lock_guard lock(capsule->mutex);
  capsule->left_to = "nowhere";
  capsule->changed.notify_all();
  return {};
}

Result<void> Host::stayed(const HostedPtr& capsule, const std::string& note) {
  TRY(update(capsule, [&](auto& record) {
    record.set_state(state::running);
    record.set_note(note);
    record.clear_target();
  }));
  bool lost = false;
  {
    const std::lock_guard lock(capsule->mutex);
    capsule->serving = false;
    lost = !capsule->console || capsule->init_lost;
  }
  if (!lost) return {};
  return start_console(capsule, capsule->record.attach_id(), true);
}

void Host::sample() {
  for (const auto& capsule : all()) {
    const std::lock_guard lock(capsule->mutex);
    if (capsule->ended()) continue;
    auto group = tree(capsule);
    if (!group.ok()) continue;  // Not made yet, or just taken apart.
    auto cpu_us = group->cpu_usage_us();
    if (!cpu_us.ok()) continue;
    const std::int64_t now_us = monotonic_us();
    if (capsule->sampled_us != 0 && now_us > capsule->sampled_us && *cpu_us >= capsule->cpu_us) {
      const double cores = static_cast<double>(*cpu_us - capsule->cpu_us) /
                           static_cast<double>(now_us - capsule->sampled_us);
      capsule->cpu = capsule->cpu * 0.5 + cores * 0.5;
    }
    capsule->cpu_us = *cpu_us;
    capsule->sampled_us = now_us;
  }
}

std::uint64_t Host::memory_bytes(const HostedPtr& capsule) {
  auto group = tree(capsule);
  if (!group.ok()) return 0;
  auto bytes = group->memory_usage_bytes();
  return bytes.ok() ? *bytes : 0;
}

api::CapsuleInfo Host::info(const HostedPtr& capsule) {
  api::CapsuleInfo info;
  const std::lock_guard lock(capsule->mutex);
  const auto& record = capsule->record;
  const auto& spec = record.spec();
  info.set_id(spec.id());
  info.set_name(spec.name());
  info.set_arriving(record.incoming());
  info.set_node(record.incoming() ? record.source() : config_.env.node.value);
  info.set_state(record.state());
  info.set_user(spec.user());
  info.set_uid(spec.uid());
  *info.mutable_argv() = spec.argv();
  info.set_ip(spec.ip());
  info.set_cpus(spec.cpus());
  info.set_tty(spec.tty());
  info.set_migrations(record.migrations());
  *info.mutable_residual() = record.residual();
  info.set_wait_status(record.wait_status());
  info.set_note(record.note());
  info.set_created_realtime_us(record.created_realtime_us());
  info.set_ended_realtime_us(record.ended_realtime_us());
  const std::int64_t until_us = capsule->ended() ? record.ended_realtime_us() : realtime_us();
  info.set_age_us(until_us - spec.created_realtime_ns() / 1000);
  if (!capsule->ended()) {
    info.set_pid(capsule->node_pid);
    info.set_memory_bytes(memory_bytes(capsule));
    info.set_cpu(capsule->cpu);
  }
  return info;
}

}  // namespace godwit::daemon
