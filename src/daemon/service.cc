#include "daemon/service.h"

#include <algorithm>
#include <set>

#include "base/guard.h"
#include "base/io.h"
#include "base/log.h"
#include "daemon/doctor.h"

namespace godwit::daemon {
namespace {

using std::chrono::milliseconds;

constexpr int routes_max = 5;  // A capsule that moves faster isn't followed.
constexpr milliseconds arrival_wait_max{20'000};
constexpr milliseconds arrival_poll{20};
constexpr std::size_t arguments_bytes_max = 2 << 20;
constexpr std::size_t name_bytes_max = 63;  // It is the hostname too.
constexpr std::size_t found_max = 4096;
constexpr int address_tries_max = 300;

bool valid_name(const std::string& name) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_' || c == '.';
  };
  return !name.empty() && name.size() <= name_bytes_max && name[0] != '-' && name[0] != '.' &&
         std::all_of(name.begin(), name.end(), allowed);
}

// "/usr/bin/blastn" -> "blastn-3f2a".
std::string default_name(const std::string& program, const std::string& id) {
  std::string base = program.substr(program.rfind('/') + 1);
  std::erase_if(base, [](char c) { return !valid_name(std::string(1, c)) && c != '-'; });
  return fmt::format("{}-{}", base.substr(0, 32), id.substr(0, 4));
}

}  // namespace

// ---- Where ----

Result<Service::Place> Service::locate_once(const rpc::Call& call, const std::string& reference,
                                            bool& arriving) {
  migrations_.note_grants();
  auto here = host_.find(call.uid, reference);
  const bool live_here = here.ok() && [&] {
    const std::lock_guard lock((*here)->mutex);
    return !(*here)->ended();
  }();
  if (live_here || (here.ok() && call.forwarded)) return Place{*here, nullptr};
  if (!here.ok() && here.error().code() != Errc::not_found) return std::move(here).error();
  arriving = host_.is_arriving(call.uid, reference);
  if (call.forwarded) return std::move(here).error();

  node::FindRequest question;
  question.set_capsule(reference);
  question.set_uid(call.uid);
  {
    // Where it was last: one question instead of one to each.
    std::unique_lock lock(mutex_);
    const auto known = found_at_.find(reference);
    std::string hint = known != found_at_.end() ? known->second : "";
    lock.unlock();
    if (hint.empty()) hint = host_.moved_to(reference).value_or("");
    auto peer = hint.empty() ? make_error(Errc::not_found, "no hint") : peers_.find(hint);
    if (peer.ok()) {
      auto answer = (*peer)->find(question);
      if (answer.ok() && answer->found() && !answer->ended()) return Place{nullptr, *peer};
    }
  }
  auto answers =
      peers_.ask_all<node::FindReply>([&](rpc::NodeClient& peer) { return peer.find(question); });
  std::string best;
  bool best_ended = true;
  for (const auto& [name, answer] : answers) {
    if (!answer.ok()) continue;
    arriving = arriving || answer->arriving();
    if (!answer->found() || (!best.empty() && !best_ended)) continue;
    best = name;
    best_ended = answer->ended();
  }
  if (!best.empty() && (!here.ok() || !best_ended)) {
    const std::lock_guard lock(mutex_);
    if (found_at_.size() >= found_max) found_at_.clear();
    found_at_[reference] = best;
    return Place{nullptr, TRY(peers_.find(best))};
  }
  if (here.ok()) return Place{*here, nullptr};
  std::string silent;
  for (const auto& [name, answer] : answers) {
    if (!answer.ok()) silent += (silent.empty() ? "" : ", ") + name;
  }
  if (silent.empty()) return std::move(here).error();
  return make_error(Errc::not_found, "there is no capsule {} on the nodes that answer ({} did not)",
                    reference, silent);
}

// A capsule on its way is nobody's for a moment: the source has let go, the target hasn't noticed
// yet.
Result<Service::Place> Service::locate(const rpc::Call& call, const std::string& reference) {
  const auto until = std::chrono::steady_clock::now() + arrival_wait_max;
  while (true) {
    bool arriving = false;
    auto place = locate_once(call, reference, arriving);
    if (place.ok() || !arriving || call.is_cancelled() ||
        std::chrono::steady_clock::now() > until) {
      return place;
    }
    std::this_thread::sleep_for(arrival_poll);
  }
}

template <typename Reply>
Result<Reply> Service::route(const rpc::Call& call, const std::string& reference,
                             const std::function<Result<Reply>(const HostedPtr&)>& here,
                             const std::function<Result<Reply>(rpc::Api&)>& there) {
  for (int tried = 1;; ++tried) {
    Place place = TRY(locate(call, reference));
    auto result = place.capsule ? here(place.capsule) : there(place.peer->api());
    if (result.ok() || result.error().code() != Errc::not_found || tried == routes_max ||
        call.forwarded) {
      return result;
    }
  }
}

// ---- Run ----

Result<Account> Service::account_for(const rpc::Call& call, const std::string& user) {
  Account account = TRY(account_of(call.uid));
  if (user.empty()) return account;
  Account other = TRY(account_named(user));
  if (!call.root() && other.uid != call.uid) {
    return make_error(Errc::permission, "only root may run capsules for other users");
  }
  return other;
}

Result<api::RunReply> Service::run(const rpc::Call& call, const api::RunRequest& request) {
  std::string node = request.node();
  if (node == "best") node = TRY(migrations_.choose(0, true)).node;
  if (node.empty() || node == config_.env.node.value || call.forwarded) {
    return run_here(call, request);
  }
  api::RunRequest passed = request;
  passed.set_node(node);
  return TRY(peers_.find(node))->api().run(call, passed);
}

Result<api::RunReply> Service::run_here(const rpc::Call& call, const api::RunRequest& request) {
  const Account account = TRY(account_for(call, request.user()));
  if (request.argv_size() == 0 || request.argv(0).empty()) {
    return make_error(Errc::invalid, "run: no program");
  }
  if (request.ByteSizeLong() > arguments_bytes_max) {
    return make_error(Errc::invalid, "run: arguments and environment exceed {} bytes",
                      arguments_bytes_max);
  }
  if (request.cpus() < 0) return make_error(Errc::invalid, "run: cpus must not be negative");
  if (!config_.accepts) {
    return make_error(Errc::refused, "{} takes no capsules (drained)", config_.env.node);
  }
  const std::string id = random_hex(8);
  const std::string name =
      request.name().empty() ? default_name(request.argv(0), id) : request.name();
  if (!valid_name(name)) {
    return make_error(Errc::invalid, "name {}: letters, digits, '-', '_', '.', at most {}", name,
                      name_bytes_max);
  }
  Guard claim([&] { host_.unclaim(id); });  // The capsule itself holds them once it is known.
  std::string ip;
  std::uint32_t prefix_len = 0;
  for (int tried = 0;; ++tried) {
    ip = TRY(next_address(prefix_len));
    bool ip_taken = false;
    if (!TRY(claim_everywhere(name, ip, id, ip_taken))) {
      return make_error(Errc::refused, "there is a capsule named {} already", name);
    }
    if (!ip_taken) break;
    if (tried == address_tries_max) {
      return make_error(Errc::refused, "all addresses of {} are in use", config_.capsule_range);
    }
  }
  auto capsule = TRY(host_.run(request, account, id, name, ip, prefix_len));
  LOG(info, "capsule {} ({}) runs for {}", id, name, account.name);
  api::RunReply reply;
  *reply.mutable_capsule() = host_.info(capsule);
  return reply;
}

// Goes round, so that an address isn't given again soon: others may still believe it elsewhere.
Result<std::string> Service::next_address(std::uint32_t& prefix_len) {
  if (config_.capsule_range.empty()) return std::string();
  const AddressRange range = TRY(parse_range(config_.capsule_range));
  prefix_len = range.prefix_len;
  if (!config_.capsule_network.empty()) {
    prefix_len = TRY(parse_range(config_.capsule_network)).prefix_len;
  }
  const std::lock_guard lock(mutex_);
  const std::string path = config_.env.state_dir + "/next_address";
  std::uint32_t next = range.first;
  if (auto kept = read_file(path); kept.ok()) {
    next = static_cast<std::uint32_t>(std::strtoul(kept->c_str(), nullptr, 10));
  }
  if (next < range.first || next > range.last) next = range.first;
  TRY(replace_file(path, fmt::format("{}\n", next + 1), false));
  return format_address(next);
}

// False: the name is taken.
Result<bool> Service::claim_everywhere(const std::string& name, const std::string& ip,
                                       const std::string& id, bool& ip_taken) {
  if (!host_.claim(name, ip, id, ip_taken)) return false;
  if (ip_taken) return true;
  node::ClaimNameRequest request;
  request.set_name(name);
  request.set_ip(ip);
  request.set_id(id);
  auto answers = peers_.ask_all<node::ClaimNameReply>(
      [&](rpc::NodeClient& peer) { return peer.claim_name(request); });
  bool name_taken = false;
  for (const auto& [peer, answer] : answers) {
    if (!answer.ok()) continue;  // A node that is cut off can't be asked; ids tell capsules apart.
    name_taken = name_taken || answer->taken();
    ip_taken = ip_taken || answer->ip_taken();
  }
  return !name_taken;
}

// ---- Lists ----

Result<api::PsReply> Service::ps(const rpc::Call& call, const api::PsRequest& request) {
  api::PsReply reply;
  std::map<std::string, api::CapsuleInfo> seen;
  // A capsule that is moving may be told of twice: where it runs is what counts. Who asks one node
  // just before it starts there and the other just after it has left sees only that it is arriving.
  const auto add = [&](const api::CapsuleInfo& info) {
    auto [at, fresh] = seen.try_emplace(info.id(), info);
    if (fresh) return;
    const bool moving = at->second.state() == state::migrating && !info.arriving();
    if (at->second.arriving() || moving) at->second = info;
  };
  migrations_.note_grants();
  for (const auto& capsule : host_.all()) {
    {
      const std::lock_guard lock(capsule->mutex);
      const auto& record = capsule->record;
      if (!call.root() && record.spec().uid() != call.uid) continue;
    }
    add(host_.info(capsule));
  }
  if (!call.forwarded) {
    api::PsRequest everything = request;
    everything.set_all(true);
    auto answers = peers_.ask_all<api::PsReply>(
        [&](rpc::NodeClient& peer) { return peer.api().ps(call, everything); });
    for (const auto& [name, answer] : answers) {
      if (!answer.ok())
        reply.add_unreachable(name);
      else
        for (const auto& info : answer->capsules()) add(info);
    }
  }
  for (const auto& [id, info] : seen) {
    const std::string& wanted = request.capsule();
    if (!wanted.empty() && info.name() != wanted && !id.starts_with(wanted)) continue;
    if (!request.all() && wanted.empty() && info.state() == state::exited) continue;
    *reply.add_capsules() = info;
  }
  std::sort(reply.mutable_capsules()->begin(), reply.mutable_capsules()->end(),
            [](const auto& a, const auto& b) {
              return a.created_realtime_us() < b.created_realtime_us();
            });
  return reply;
}

Result<api::NodeInfo> Service::status(const node::StatusRequest&) {
  api::NodeInfo info = monitor_.info();
  std::uint32_t count = 0;
  for (const auto& capsule : host_.all()) {
    const std::lock_guard lock(capsule->mutex);
    if (!capsule->ended() && !capsule->record.incoming()) count++;
  }
  info.set_capsules(count);
  return info;
}

Result<api::NodesReply> Service::nodes(const rpc::Call&, const api::NodesRequest&) {
  api::NodesReply reply;
  *reply.add_nodes() = TRY(status(node::StatusRequest()));
  auto answers = peers_.ask_all<api::NodeInfo>(
      [](rpc::NodeClient& peer) { return peer.status(node::StatusRequest()); });
  for (const auto& [name, answer] : answers) {
    auto* info = reply.add_nodes();
    if (answer.ok()) {
      *info = *answer;
      continue;
    }
    info->set_name(name);
    info->set_address(peers_.config_of(name)->address);
    info->set_note(answer.error().what());
  }
  std::sort(reply.mutable_nodes()->begin(), reply.mutable_nodes()->end(),
            [](const auto& a, const auto& b) {  // n2 before n10
              return std::pair(a.name().size(), a.name()) < std::pair(b.name().size(), b.name());
            });
  return reply;
}

Result<api::HistoryReply> Service::history(const rpc::Call& call,
                                           const api::HistoryRequest& request) {
  History::Filter filter;
  filter.capsule = request.capsule();
  filter.any_user = call.root();
  filter.uid = call.uid;
  if (request.limit() != 0) filter.limit = std::min<std::uint32_t>(request.limit(), 10'000);
  api::HistoryReply reply;
  for (auto& migration : TRY(history_.list(filter))) {
    *reply.add_migrations() = std::move(migration);
  }
  if (call.forwarded) return reply;
  auto answers = peers_.ask_all<api::HistoryReply>(
      [&](rpc::NodeClient& peer) { return peer.api().history(call, request); });
  for (const auto& [name, answer] : answers) {
    if (!answer.ok())
      reply.add_unreachable(name);
    else
      reply.mutable_migrations()->MergeFrom(answer->migrations());
  }
  auto* all = reply.mutable_migrations();
  std::sort(all->begin(), all->end(), [](const auto& a, const auto& b) {
    return a.started_realtime_us() > b.started_realtime_us();
  });
  if (all->size() > static_cast<int>(filter.limit)) {
    all->DeleteSubrange(static_cast<int>(filter.limit),
                        all->size() - static_cast<int>(filter.limit));
  }
  return reply;
}

// ---- One capsule ----

Result<void> Service::logs(const rpc::Call& call, const api::LogsRequest& request,
                           rpc::Sink<api::LogsChunk>& sink) {
  const Place place = TRY(locate(call, request.capsule()));
  if (place.capsule) return host_.logs(call, place.capsule, request.follow(), sink);
  return place.peer->api().logs(call, request, sink);
}

Result<void> Service::attach(const rpc::Call& call, const api::AttachRequest::Open& open,
                             rpc::AttachChannel& channel) {
  const Place place = TRY(locate(call, open.capsule()));
  if (place.capsule) return host_.attach(call, place.capsule, open, channel);
  return place.peer->api().attach(call, open, channel);
}

Result<api::WaitReply> Service::wait(const rpc::Call& call, const api::WaitRequest& request) {
  return route<api::WaitReply>(
      call, request.capsule(),
      [&](const HostedPtr& capsule) { return host_.wait(call, capsule, request.timeout_us()); },
      [&](rpc::Api& owner) { return owner.wait(call, request); });
}

Result<api::SignalReply> Service::signal(const rpc::Call& call, const api::SignalRequest& request) {
  return route<api::SignalReply>(
      call, request.capsule(),
      [&](const HostedPtr& capsule) -> Result<api::SignalReply> {
        TRY(host_.signal(call, capsule, request.signal(), request.foreground()));
        return api::SignalReply();
      },
      [&](rpc::Api& owner) { return owner.signal(call, request); });
}

Result<api::KillReply> Service::kill(const rpc::Call& call, const api::KillRequest& request) {
  return route<api::KillReply>(
      call, request.capsule(),
      [&](const HostedPtr& capsule) -> Result<api::KillReply> {
        TRY(migrations_.kill(call, capsule));
        return api::KillReply();
      },
      [&](rpc::Api& owner) { return owner.kill(call, request); });
}

Result<api::FreezeReply> Service::freeze(const rpc::Call& call, const api::FreezeRequest& request) {
  return route<api::FreezeReply>(
      call, request.capsule(),
      [&](const HostedPtr& capsule) -> Result<api::FreezeReply> {
        TRY(migrations_.freeze(capsule, request.frozen()));
        return api::FreezeReply();
      },
      [&](rpc::Api& owner) { return owner.freeze(call, request); });
}

Result<void> Service::migrate(const rpc::Call& call, const api::MigrateRequest& request,
                              rpc::Sink<api::MigrateEvent>& sink) {
  const Place place = TRY(locate(call, request.capsule()));
  if (!place.capsule) return place.peer->api().migrate(call, request, sink);
  auto result =
      TRY(migrations_.migrate(place.capsule, request, [&](const api::MigrateProgress& progress) {
        api::MigrateEvent event;
        *event.mutable_progress() = progress;
        sink.write(event);  // A reader who has gone doesn't stop a migration.
      }));
  api::MigrateEvent event;
  *event.mutable_result() = std::move(result);
  sink.write(event);
  return {};
}

Result<api::CanMigrateReply> Service::can_migrate(const rpc::Call& call,
                                                  const api::CanMigrateRequest& request) {
  return route<api::CanMigrateReply>(
      call, request.capsule(),
      [&](const HostedPtr& capsule) { return migrations_.can_migrate(capsule, request.target()); },
      [&](rpc::Api& owner) { return owner.can_migrate(call, request); });
}

Result<api::DoctorReply> Service::doctor(const rpc::Call& call, const api::DoctorRequest& request) {
  if (!request.node().empty() && request.node() != config_.env.node.value && !call.forwarded) {
    return TRY(peers_.find(request.node()))->api().doctor(call, request);
  }
  return examine(config_);
}

Result<api::ResolveReply> Service::resolve(const rpc::Call& call,
                                           const api::ResolveRequest& request) {
  // Whether a node is lost for good is for those to say who run the cluster.
  if (!call.root()) return make_error(Errc::permission, "only root may resolve a doubt");
  return route<api::ResolveReply>(
      call, request.capsule(),
      [&](const HostedPtr& capsule) -> Result<api::ResolveReply> {
        TRY(migrations_.resolve(capsule, request.lost_node()));
        api::ResolveReply reply;
        *reply.mutable_capsule() = host_.info(capsule);
        return reply;
      },
      [&](rpc::Api& owner) { return owner.resolve(call, request); });
}

Result<api::RemoveReply> Service::remove(const rpc::Call& call, const api::RemoveRequest& request) {
  return route<api::RemoveReply>(
      call, request.capsule(),
      [&](const HostedPtr& capsule) -> Result<api::RemoveReply> {
        TRY(host_.remove(capsule));
        return api::RemoveReply();
      },
      [&](rpc::Api& owner) { return owner.remove(call, request); });
}

// ---- Node to node ----

Result<node::FindReply> Service::find(const node::FindRequest& request) {
  node::FindReply reply;
  migrations_.note_grants();
  reply.set_arriving(host_.is_arriving(request.uid(), request.capsule()));
  auto found = host_.find(request.uid(), request.capsule());
  if (!found.ok()) return reply;
  const std::lock_guard lock((*found)->mutex);
  reply.set_found(true);
  reply.set_id((*found)->record.spec().id());
  reply.set_ended((*found)->ended());
  return reply;
}

Result<node::ClaimNameReply> Service::claim_name(const node::ClaimNameRequest& request) {
  node::ClaimNameReply reply;
  bool ip_taken = false;
  reply.set_taken(!host_.is_free(request.name(), request.ip(), request.id(), ip_taken));
  reply.set_ip_taken(ip_taken);
  return reply;
}

Result<node::ReserveReply> Service::reserve(const std::string& peer,
                                            const node::ReserveRequest& request) {
  return migrations_.reserve(peer, request);
}

Result<node::ReleaseReply> Service::release(const std::string&,
                                            const node::ReleaseRequest& request) {
  return migrations_.release(request);
}

Result<node::OutcomeReply> Service::outcome(const std::string&,
                                            const node::OutcomeRequest& request) {
  return migrations_.outcome(request);
}

}  // namespace godwit::daemon
